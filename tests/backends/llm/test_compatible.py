"""Servers that speak OpenAI's chat completions in their own way: little is said, or much, or the line stays open."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from sinas_server.backends.llm import Answer, ProviderConfig, ProviderError, ToolCall
from sinas_server.backends.llm.remote import RemoteModel
from tests.backends.llm.asking import Verbatim, ask

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BARE: list[dict[str, object]] = [
    {"choices": [{"delta": {"content": "Hi"}}]},
    {"object": "chunk", "choices": [{"index": 0, "delta": {"content": " there"}, "finish_reason": None}]},
    {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]}}]},
    {"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
]
"""Neither ids nor models nor times: the types of the client refuse each."""


@asynccontextmanager
async def server(chunks: Sequence[object], *, ends: bool = True) -> AsyncIterator[tuple[str, Callable[[], int]]]:
    """A server that gives every request these chunks: its address, and how many connections there were.

    `ends`: whether the answer is ended after `[DONE]`; else nothing more is said, and the line stays open.
    """
    serving: list[asyncio.Task[None]] = []
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.decode().lower().split("\r\n") if line.startswith("content-length"))
            await reader.readexactly(int(length.partition(":")[2]))
            writer.write(HEAD)
            for data in (*map(json.dumps, chunks), "[DONE]"):
                event = f"data: {data}\n\n".encode()
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            if not ends:
                await left.wait()
                return
            writer.write(b"0\r\n\r\n")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await talk(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.create_task(serve(reader, writer)))

    async with await asyncio.start_server(begin, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", lambda: len(serving)
        left.set()
        await asyncio.wait(serving, timeout=10)


async def answer(model: RemoteModel | Verbatim) -> Answer:
    last = [event async for event in model.stream(ask())][-1]
    assert isinstance(last, Answer)
    return last


@pytest.mark.parametrize("verbatim", [False, True])
async def test_chunks_that_leave_out_what_nobody_needs(verbatim: bool, drained: None) -> None:
    async with server(BARE) as (address, connections):
        model = RemoteModel(ProviderConfig("openai", "key", address))
        for _ in range(2):
            found = await answer(Verbatim(model) if verbatim else model)
            assert (found.text, found.tool_calls) == ("Hi there", (ToolCall("a", "f", "{}"),))
            assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 2)
        await model.close()
        assert connections() == 1, "an answer that was read to its end leaves its connection to the next request"


@pytest.mark.parametrize("verbatim", [False, True])
async def test_a_line_that_stays_open_keeps_nobody_waiting(verbatim: bool) -> None:
    async with server(BARE, ends=False) as (address, connections):
        model = RemoteModel(ProviderConfig("openai", "key", address))
        for number in (1, 2):
            found = await asyncio.wait_for(answer(Verbatim(model) if verbatim else model), 30)
            assert (found.text, connections()) == ("Hi there", number)
        await model.close()


@pytest.mark.parametrize("verbatim", [False, True])
@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        ({"error": {"message": "the GPU is on fire"}}, "the GPU is on fire"),
        ({"error": "the GPU is on fire"}, "the GPU is on fire"),
        (
            {**BARE[0], "id": "x", "created": 1, "model": "m", "object": "chat.completion.chunk", "error": "late"},
            "late",
        ),
        ([1, 2], "no chat completion"),
    ],
)
async def test_what_is_no_chunk_is_told(chunk: object, said: str, verbatim: bool) -> None:
    async with server([BARE[0], chunk]) as (address, _):
        model = RemoteModel(ProviderConfig("openai", "key", address))
        with pytest.raises(ProviderError, match=said) as raised:
            await answer(Verbatim(model) if verbatim else model)
        assert raised.value.retryable
        await model.close()
