"""Something dies while bytes are kept, or freed: what a message shows can be read, and what nobody holds goes."""

import hashlib
import json
import os
from contextlib import suppress
from uuid import uuid4

import httpx2
import pytest

from tests.faults.harness import Json, Stack, eventually
from tests.faults.invariants import Invariants
from tests.faults.reader import Reader
from tests.faults.test_turns import each
from tests.media import b64


def files(stack: Stack) -> dict[str, str]:
    """What is kept: by its name the hash of each file, also of those that have not arrived."""
    found = {}
    for path in (stack.root / "blobs").glob("*/*"):
        try:
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:
            continue  # freed just now
    return found


def keys(stack: Stack) -> set[str]:
    """Those of the blobs that the database knows."""
    return {row["key"] for row in stack.rows("SELECT key FROM blobs")}


def held(stack: Stack) -> set[str]:
    """Those that a chat holds."""
    return {row["blob"] for row in stack.rows("SELECT blob FROM attachments")}


async def is_swept(stack: Stack) -> None:
    """After a while nothing is kept but what is held, and all of that."""
    await stack.whole()
    stack.rows("UPDATE blobs SET used_at = now() - interval '2 hours' RETURNING 1")
    for path in (stack.root / "blobs/staging").glob("*"):
        with suppress(FileNotFoundError):  # tidied just now
            os.utime(path, (0, 0))

    async def clean() -> bool:
        return keys(stack) == held(stack) and files(stack) == {key: key for key in held(stack)}

    await eventually(clean, "what nobody holds stays")


class Sent:
    """Bytes that nobody has sent before, sent to an agent."""

    def __init__(self, invariants: Invariants) -> None:
        self.invariants = invariants
        self.stack = invariants.stack
        self.content = uuid4().bytes * 100
        self.chat_id = ""

    @property
    def key(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    async def open_chat(self) -> None:
        """In which they will be sent."""
        self.chat_id = (await self.stack.ask("POST", "/agents/t/dice/chats", {}))["id"]

    async def send(self) -> None:
        """Until it is answered; then all are read back."""
        part = {"type": "file", "file_data": b64(self.content), "filename": "a.bin", "mime_type": "application/x-a"}
        reader = Reader(self.stack, self.chat_id, key=str(uuid4()))
        chat = await reader.say([part])
        self.invariants.answered(chat, reader)
        await self.is_there(chat)

    async def is_there(self, chat: Json) -> None:
        """The message shows the bytes."""
        [shown] = json.loads(chat["messages"][0]["content"])
        async with self.stack.client() as client:

            async def read() -> httpx2.Response | None:
                answer = await client.get(shown["file_url"])
                return None if answer.status_code == 503 else answer

            answer = await eventually(read, "no database")
        assert (answer.status_code, answer.content) == (200, self.content)
        assert files(self.stack)[self.key] == self.key


async def test_a_trace_has_these_points_and_no_more(stack: Stack) -> None:
    sent = Sent(Invariants(stack))
    await sent.open_chat()
    stack.forget_trace()
    await sent.send()
    passed = await stack.trace("expire:after")
    assert [passed[point] for point in ("keep:before", "rename:before", "request:committed")] == [1, 1, 1]
    await stack.ask("DELETE", f"/chats/{sent.chat_id}")
    stack.forget_trace()
    await is_swept(stack)
    passed = await stack.trace("free:after")
    assert [passed[point] for point in ("free:before", "unlink:before", "free:committed")] == [1, 1, 1]


KEEPING = [("keep:before", 1), ("rename:before", 1), ("rename:after", 1), *each("request", 1)]
"""Before there is anything; with the row alone; with the bytes; before and after there is a message that shows them."""


@pytest.mark.parametrize(
    ("point", "actions"),
    [
        *(pytest.param(point, "api", id=f"{point}-api") for point, _ in KEEPING),
        ("keep:before", "postgres"),
        ("rename:before", "postgres"),
        ("request:commit", "postgres"),
        ("request:committed", "lose"),
    ],
)
async def test_something_dies_while_bytes_are_kept(
    stack: Stack, invariants: Invariants, point: str, actions: str
) -> None:
    sent = Sent(invariants)
    await sent.open_chat()
    stack.plan(point, 1, actions)
    await sent.send()
    await stack.happened()
    await invariants.ends()
    await is_swept(stack)
    await sent.is_there(await stack.ask("GET", f"/chats/{sent.chat_id}"))


@pytest.mark.parametrize("point", ["keep:before", "rename:before", "rename:after", "request:commit"])
async def test_what_was_never_said_goes(stack: Stack, invariants: Invariants, point: str) -> None:
    """Who sent it does not try again: no row shows it, and its bytes do not stay."""
    sent = Sent(invariants)
    await sent.open_chat()
    stack.plan(point, 1, "api")
    part = {"type": "file", "file_data": b64(sent.content), "filename": "a.bin", "mime_type": "application/x-a"}
    async with stack.client() as client:
        with pytest.raises(httpx2.TransportError):
            await client.post(f"/chats/{sent.chat_id}/messages", json={"content": [part]})
    await stack.happened()
    await stack.whole()
    assert sent.key not in held(stack)
    assert (sent.key in keys(stack)) == (point != "keep:before"), "the database knows of all bytes there may be"
    await is_swept(stack)
    assert sent.key not in {*keys(stack), *files(stack)}
    await sent.send()  # and it can be said after all


@pytest.mark.parametrize(
    ("point", "actions"),
    [
        *((point, "scheduler") for point in ("unlink:before", "unlink:after", "free:commit", "free:committed")),
        ("unlink:before", "postgres"),
        ("free:commit", "postgres"),
        ("free:committed", "lose"),
    ],
)
@pytest.mark.parametrize("again", [False, True], ids=["gone", "again"])
async def test_something_dies_while_bytes_are_freed(stack: Stack, point: str, actions: str, again: bool) -> None:
    sent = Sent(Invariants(stack))  # of what goes with its chat
    await sent.open_chat()
    await sent.send()
    await stack.ask("DELETE", f"/chats/{sent.chat_id}")
    stack.plan(point, 1, actions)
    stack.rows("UPDATE blobs SET used_at = now() - interval '2 hours' RETURNING 1")
    await stack.happened()
    if again:  # the same bytes come while they are being freed
        await stack.whole()
        await sent.open_chat()
        await sent.send()
    await is_swept(stack)
    assert (sent.key in files(stack)) == again
