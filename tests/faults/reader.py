"""A client that follows a channel whatever happens, and judges each event: no gap, no repeat, or a restart."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import httpx2
import orjson

from tests.faults.harness import PATIENCE, Json, Stack, eventually

Place = tuple[int, int]


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    place: Place
    name: str
    data: Json


@dataclass
class Reader:
    """What one client has seen of a turn."""

    stack: Stack
    chat_id: str
    hop: int = 0
    """After so many events it drops its connection by itself; 0: never."""
    path: str = "messages/stream"
    """Where it begins a turn of the chat."""
    key: str | None = None
    """Its `Idempotency-Key`: with one it asks again until it is answered."""
    when_busy: str = "queue"
    """What is to become of what it says while a turn runs."""
    texts: dict[int, str] = field(default_factory=dict)
    """Phase → the text of the answer in it."""
    started: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    injected: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """The calls that wait for the user."""
    restarts: int = 0
    connections: int = 0
    end: Event | None = None
    channel: str | None = None
    how: str | None = None
    """Whether what it said has started a turn, or was queued or injected."""
    _place: Place = (0, 0)
    _spoken: dict[int, int] = field(default_factory=dict)

    async def say(self, content: str | list[Json]) -> Json:
        """Send a message and follow the answer to its end; gives the chat as it is right after."""
        async with self.stack.client() as client:
            try:
                await self._post(client, content)
            except httpx2.TransportError:
                if self.channel is None and (
                    self.key is not None or not (await eventually(self._was_saved, "no database"))[0]
                ):
                    await asyncio.sleep(0.05)
                    return await self.say(content)
        return await self.follow()

    async def go_on(self, channel: str) -> Json:
        """Follow the channel on which a turn goes on after its user was asked; gives the chat right after."""
        self.channel, self.end, self._place, self.asked = channel, None, (0, 0), []
        return await self.follow()

    async def _post(self, client: httpx2.AsyncClient, content: str | list[Json]) -> None:
        headers = {} if self.key is None else {"Idempotency-Key": self.key}
        path = f"/chats/{self.chat_id}/{self.path}"
        body = {"content": content, "when_busy": self.when_busy}
        async with client.stream("POST", path, json=body, headers=headers) as answer:
            if answer.status_code == 503:
                await asyncio.sleep(0.1)
                raise httpx2.ReadError("not now")
            assert answer.status_code == 200, await answer.aread()
            self.channel, self.how = answer.headers["X-Channel-ID"], answer.headers["X-Message-Status"]
            await self._take_all(answer)

    async def _was_saved(self) -> list[bool]:
        query = "SELECT id FROM channels WHERE chat_id = %(chat)s"
        found = self.stack.rows(query, chat=self.chat_id)
        self.channel = str(found[0]["id"]) if found else None
        return [bool(found)]

    async def follow(self) -> Json:
        """Read on until the end, over as many connections as it takes; gives the chat as it is right after."""
        async with asyncio.timeout(PATIENCE):
            while self.end is None:
                try:
                    await self._go_on()
                except httpx2.TransportError:
                    await asyncio.sleep(0.02)
            return await self.chat()

    async def chat(self) -> Json:
        """The chat as it is."""
        async with self.stack.client() as client:
            while True:
                with suppress(httpx2.TransportError):
                    answer = await client.get(f"/chats/{self.chat_id}")
                    if answer.status_code == 200:
                        return dict(answer.json())
                    assert answer.status_code == 503, answer.text
                await asyncio.sleep(0.1)

    async def _go_on(self) -> None:
        self.connections += 1
        last = f"{self._place[0]}-{self._place[1]}" if self._place > (0, 0) else "0"
        by_header = self.connections % 2 == 0
        async with (
            self.stack.client() as client,
            client.stream(
                "GET",
                f"/chats/{self.chat_id}/stream/{self.channel}",
                params={} if by_header else {"last_id": last},
                headers={"Last-Event-ID": last} if by_header else {},
            ) as answer,
        ):
            if answer.status_code == 503:
                await asyncio.sleep(0.1)
                return
            assert answer.status_code == 200, await answer.aread()
            await self._take_all(answer)

    async def _take_all(self, answer: httpx2.Response) -> None:
        count = 0
        async for event in _events(answer):
            self._take(event)
            count += 1
            if self.end is not None or count == self.hop:
                return

    def _take(self, event: Event) -> None:
        phase, n = event.place
        assert event.place > self._place, f"{event} repeats or goes back from {self._place}"
        self._place = event.place
        if event.name == "message":
            text = event.data["content"]
            assert self._spoken.get(phase, 0) + len(text) == n, (
                f"{event} leaves a gap after {self._spoken} in {self.texts}"
            )
            self._spoken[phase] = n
            self.texts[phase] = self.texts.get(phase, "") + text
        elif event.name == "restart":
            assert "content" not in event.data
            self.restarts += 1
            self._spoken[phase], self.texts[phase] = n, ""
        elif event.name == "tool_start":
            assert event.data["tool_call_id"] not in self.started
            self.started.append(event.data["tool_call_id"])
        elif event.name == "tool_end":
            assert event.data["tool_call_id"] not in self.results
            self.results[event.data["tool_call_id"]] = event.data["result"]
        elif event.name == "injected":
            assert not set(event.data["message_ids"]) & set(self.injected)
            self.injected += event.data["message_ids"]
        elif event.name in ("approval_required", "input_required"):
            assert event.data["tool_call_id"] not in self.asked
            self.asked.append(event.data["tool_call_id"])
        elif event.name == "round_suspended":
            assert event.data["tool_call_ids"] == self.asked
        else:
            assert event.name in ("done", "error"), event
            self.end = event


async def both(patient: Reader, restless: Reader, content: str) -> Json:
    """One says something and another follows it, to the end; gives the chat as it is right after."""

    async def hop() -> Json:
        async def is_open() -> bool:
            return patient.channel is not None

        await eventually(is_open, "no channel")
        restless.channel = patient.channel
        return await restless.follow()

    chat, _ = await asyncio.gather(patient.say(content), hop())
    return chat


async def _events(answer: httpx2.Response) -> AsyncIterator[Event]:
    """Parses SSE."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if "data" in fields:
            phase, _, n = fields["id"].partition("-")
            yield Event((int(phase), int(n)), fields["event"], orjson.loads(fields["data"]))
        fields = {}
