"""A fake of the LLM providers' HTTP APIs, with every failure a test can want, in one process of its own.

    python -m tests.fakes.llm_server --port 9000          # prints its address when it listens; --port 0 picks one

It speaks, always streaming (but for embeddings):

    POST /v1/chat/completions           OpenAI            endpoint http://127.0.0.1:9000/v1
    POST /ollama/v1/chat/completions    Ollama            endpoint http://127.0.0.1:9000/ollama
    POST /mistral/v1/chat/completions   Mistral           endpoint http://127.0.0.1:9000/mistral
    POST /v1/messages                   Anthropic         endpoint http://127.0.0.1:9000
    POST .../v1/embeddings              of the three that have them; a vector depends on its text alone
    GET  .../v1/models, /ollama/api/tags                  the names in llm_wire.MODELS; 503 under /broken

A request that its provider would refuse, for the names and ids of its tools, is refused (`llm_rules`).

What it answers is a list of replies (`Reply`; JSON in the control calls). For each request the first reply whose `when`
is in the last message, and whose `after_tool` agrees with whether that message is a tool result, is used and
consumed (`times` says how often; null = always). With none left it sends `Reply()`, or what `default` was set to.

    POST   /control/replies    [{"text": "Hi", "chunks": 20}, {"status": 429, "error": "slow down"}]   append
    PUT    /control/default    {"text": "Hello", "chunks": 20}
    POST   /control/release    let every answer that waits at `hold_after` go on
    GET    /control/requests   [{"path", "headers", "body", "held", "finished", "closed_early"}] as they came
    DELETE /control            forget replies, default and requests

In a test's own event loop: `async with FakeLLM() as fake: fake.replies.append(Reply(...)); fake.url; fake.requests`.
"""

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tests.fakes.llm_rules import refusal
from tests.fakes.llm_wire import embeddings, error_body, model_list, stream_error, stream_events

Provider = Literal["openai", "anthropic", "mistral", "ollama"]


class Call(BaseModel):
    """A tool call; the id is not unique unless given, as with many servers."""

    name: str
    arguments: str = "{}"
    id: str = "call_0"


class Reply(BaseModel):
    """One answer, or one failure."""

    model_config = ConfigDict(extra="forbid")

    text: str = "Hello from the fake model."
    thinking: str = ""
    signature: str = "c2lnbmF0dXJl"
    redacted: str = ""  # Anthropic's encrypted thinking, after the other
    tool_calls: list[Call] = Field(default_factory=list)
    recorded: str | None = None  # the stream as a provider wrote it, instead of one made from the rest
    prompt_tokens: int = 11
    completion_tokens: int = 7
    cached_tokens: int = 0
    finish_reason: str | None = None  # in OpenAI's words; None = by content

    retry_after: str | None = None  # header of a failure
    chunks: int | None = None  # pieces of the text; None = by chunk_size
    chunk_size: int = 8
    delay: float = 0  # seconds before the first byte
    pause: float = 0  # seconds between events
    split_every: int | None = None  # write the stream in pieces of so many bytes
    split_at: int | None = None  # and the first piece of so many
    cut_after: int | None = None  # end after so many bytes of the stream
    cut_clean: bool = False  # end as if that were all, instead of breaking the connection
    fail_after: int | None = None  # report `error` inside the stream after so many events
    hold_after: int | None = None  # wait for /control/release after so many events

    status: int = 200
    error: str = "something went wrong"  # `{key}` is replaced by the key that was sent
    error_code: str | None = None  # the machine's word for it

    when: str = ""
    after_tool: bool | None = None
    times: int | None = 1


@dataclass
class Request:
    """What a client sent, and what became of it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    held: bool = False  # waits at `hold_after`
    finished: bool = False
    closed_early: bool = False


@dataclass
class FakeLLM:
    """The server; also an async context manager that listens on a free loopback port."""

    port: int = 0
    replies: list[Reply] = field(default_factory=list)
    default: Reply = field(default_factory=Reply)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def endpoint(self, provider: Provider) -> str:
        """The endpoint to configure for a provider."""
        return self.url + {"openai": "/v1", "anthropic": "", "mistral": "/mistral", "ollama": "/ollama"}[provider]

    def release(self) -> None:
        """Let the answers that wait go on."""
        self._released.set()
        self._released = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        path = target.partition("?")[0]
        if path.startswith("/control"):
            return await _send(writer, 200, self._control(method, path, raw))
        provider = _provider(path, headers)
        if path.startswith("/broken"):
            return await _send(writer, 503, error_body(provider, Reply(status=503), "no list today"))
        if method == "GET":
            return await _send(writer, 200, model_list(provider, tags=path.endswith("/api/tags")))
        request = Request(path, headers, json.loads(raw))
        self.requests.append(request)
        refused = refusal(provider, request.body) if "messages" in request.body else None
        if refused is not None:
            request.finished = True
            return await _send(writer, 400, error_body(provider, Reply(status=400), refused))
        embeds = path.endswith("/embeddings")
        reply = self.default if embeds else self._choose(request.body)
        await asyncio.sleep(reply.delay)
        if reply.status != 200:
            key = headers.get("authorization", "").removeprefix("Bearer ")
            request.finished = True
            body = error_body(provider, reply, reply.error.format(key=key))
            return await _send(writer, reply.status, body, reply.retry_after)
        if embeds:
            request.finished = True
            return await _send(writer, 200, embeddings(request.body))
        return await self._stream(reader, writer, request, reply, provider)

    async def _stream(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: Request,
        reply: Reply,
        provider: Provider,
    ) -> bool:
        kind = b"text/event-stream"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\ntransfer-encoding: chunked\r\n\r\n")
        gone = asyncio.ensure_future(reader.read(1))  # a client that sends nothing but an end has left
        try:
            async for piece in self._pieces(request, reply, provider, gone):
                if gone.done():
                    request.closed_early = True
                    return False
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                if reply.pause or reply.split_every or reply.split_at or reply.hold_after is not None:
                    await writer.drain()
                    await asyncio.sleep(reply.pause)
        except ConnectionError:
            request.closed_early = True
            raise
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        if reply.cut_after is not None and not reply.cut_clean:
            return False
        request.finished = True
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _pieces(
        self, request: Request, reply: Reply, provider: Provider, gone: "asyncio.Future[bytes]"
    ) -> AsyncIterator[bytes]:
        """The writes: one per event, unless the reply asks for other cuts."""
        events = [reply.recorded.encode()] if reply.recorded else stream_events(provider, request.body, reply)
        if reply.fail_after is not None:
            events = [*events[: reply.fail_after], stream_error(provider, reply.error)]
        if reply.split_every or reply.split_at or reply.cut_after is not None:
            whole = b"".join(events)[: reply.cut_after]
            size = reply.split_every or len(whole) or 1
            start = 0
            for stop in [*range(reply.split_at or size, len(whole), size), len(whole)]:
                if whole[start:stop]:
                    yield whole[start:stop]
                start = stop
            return
        for index, event in enumerate(events):
            if index == reply.hold_after:
                released = asyncio.ensure_future(self._released.wait())
                either: set[asyncio.Future[Any]] = {released, gone}
                request.held = True
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                request.held = False
                released.cancel()
            yield event

    def _choose(self, body: dict[str, Any]) -> Reply:
        last = (body.get("messages") or body["input"])[-1]  # the latter in OpenAI's Responses API
        text = json.dumps(last, ensure_ascii=False)
        is_result = last["role"] == "tool" or '"tool_result"' in text
        for reply in self.replies:
            if reply.when in text and reply.after_tool in (None, is_result):
                if reply.times is not None:
                    reply.times -= 1
                    if reply.times <= 0:
                        self.replies.remove(reply)
                return reply
        return self.default

    def _control(self, method: str, path: str, raw: bytes) -> object:
        if (method, path) == ("POST", "/control/replies"):
            self.replies += TypeAdapter(list[Reply]).validate_json(raw)
        elif (method, path) == ("PUT", "/control/default"):
            self.default = Reply.model_validate_json(raw)
        elif (method, path) == ("POST", "/control/release"):
            self.release()
        elif (method, path) == ("DELETE", "/control"):
            self.replies, self.default, self.requests = [], Reply(), []
        elif (method, path) == ("GET", "/control/requests"):
            return [vars(request) for request in self.requests]
        else:
            return {"error": f"no control {method} {path}"}
        return {"ok": True}


def _provider(path: str, headers: dict[str, str]) -> Provider:
    if path.startswith("/mistral"):
        return "mistral"
    if path.startswith("/ollama"):
        return "ollama"
    return "anthropic" if path.endswith("/messages") or "anthropic-version" in headers else "openai"


async def _send(writer: asyncio.StreamWriter, status: int, body: object, retry_after: str | None = None) -> bool:
    data = json.dumps(body).encode()
    later = b"retry-after: %b\r\n" % retry_after.encode() if retry_after is not None else b""
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"
        % (status, len(data), later, data)
    )
    await writer.drain()
    return True


async def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    async with FakeLLM(port=parser.parse_args().port) as fake:
        print(fake.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
