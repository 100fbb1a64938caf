"""Where the points are: wrapped around the product's own steps in each forked role, so that it needs no fault hooks.

A step `x` has the points `x:before`, `x:commit` (its statements are sent), `x:committed` and `x:after`.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import psycopg
from sqlalchemy import exists, func, select
from sqlalchemy.exc import OperationalError

from sinas_server import app, roles
from sinas_server.backends.blobs import disk
from sinas_server.backends.stream import StreamEvent, StreamUnavailableError
from sinas_server.backends.stream.redis import RedisStreams
from sinas_server.chats.tables import ChatRow, TurnRow
from sinas_server.functions import jobs
from sinas_server.functions.tools import FunctionTools
from sinas_server.functions.trusted import TrustedHost
from sinas_server.kernel import job
from sinas_server.kernel.job import Claim, Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import TAKEN
from sinas_server.kernel.unit import Database, Db
from sinas_server.settings import Settings
from tests.faults.points import LostAnswerError, Points

JOURNAL = (
    *("answered", "finished", "closed_step", "waits", "paused", "heard", "drafted", "completed", "failed", "canceled"),
    "spent",
)
"""The methods of the journal that write."""
STEP: ContextVar[str | None] = ContextVar("STEP", default=None)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def lost_database() -> Exception:
    """What a statement raises whose answer got lost."""
    cause = psycopg.OperationalError("the connection is lost")
    return OperationalError("COMMIT", None, cause, connection_invalidated=True)


def lost_redis() -> Exception:
    """What the streams raise when an answer got lost."""
    return StreamUnavailableError("the connection is lost")


class Hooks:
    """The points of one role."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = root
        self.points = Points(root, settings.redis_url.get_secret_value())

    def reach(self, point: str, lost: Callable[[], Exception] = lost_database) -> None:
        """Pass a point; an answer that gets lost there is the error that the product knows."""
        try:
            self.points.reach(point)
        except LostAnswerError:
            raise lost() from None

    def around(self, owner: object, name: str, step: str, lost: Callable[[], Exception] = lost_database) -> None:
        """Points before and after each call of a coroutine function, and at the commits inside it."""
        original = getattr(owner, name)

        async def stepped(*args: object, **more: object) -> object:
            with self.points.working():
                self.reach(f"{step}:before", lost)
                token = STEP.set(step)
                try:
                    result = await original(*args, **more)
                finally:
                    STEP.reset(token)
                self.reach(f"{step}:after", lost)
                return result

        setattr(owner, name, stepped)

    def commits(self) -> None:
        """Points where steps commit: transactions, and statements that are one by themselves."""
        self._commits(Db, "commit")
        self._commits(Database, "direct")

    def _commits(self, owner: object, name: str) -> None:
        original = getattr(owner, name)

        async def commit(*args: object) -> object:
            step = STEP.get()
            if step is None:
                return await original(*args)
            self.reach(f"{step}:commit")
            result = await original(*args)
            self.reach(f"{step}:committed")
            return result

        setattr(owner, name, commit)

    def claims(self) -> None:
        """A worker that looks for work passes these points only if there is some; all but the last only if planned."""
        original = Worker._claim

        async def claim(worker: Worker[Any], most: int, *, has_slots: bool) -> list[Any]:
            if not await _is_due(worker):
                return []  # it will look again, and not take what becomes due now, before which something was planned
            step = f"{worker.job.queue}.claim"
            planned = (self.points.planned() or "").startswith(f"{step}:")
            if planned:
                self.reach(f"{step}:before")
            token = STEP.set(step if planned else None)
            try:
                claims = await original(worker, most, has_slots=has_slots)
            finally:
                STEP.reset(token)
            if claims:
                self.reach(f"{step}:after")
            return claims

        setattr(Worker, "_claim", claim)  # noqa: B010 - as above
        run_one = Worker._run_one

        async def run(worker: Worker[Any], row_id: UUID, work: Claim[Any]) -> None:
            with self.points.working():
                await run_one(worker, row_id, work)

        setattr(Worker, "_run_one", run)  # noqa: B010 - as above

    def quicker(self) -> None:
        """Retries and what a lost wake-up left behind are found sooner, which only saves time."""
        setattr(job, "POLL_SECONDS", 0.25)  # noqa: B010 - mypy is right not to like it; it is what we want

    def functions(self) -> None:
        """The points of an execution."""
        from sinas_server.backends.sandbox.native.sandbox import NativeSandbox  # lazy: as in roles.py

        self.quicker()
        self.claims()
        self.commits()
        self.around(jobs, "_begin", "begin")
        self.around(NativeSandbox, "run", "sandbox")
        self.around(jobs, "_finish", "finish")
        self.around(TrustedHost, "get_input", "input")

    def agents(self) -> None:
        """The points of a turn."""
        from sinas_server.chats import ask, loop, waits  # lazy: as above
        from sinas_server.chats.delegate import AgentTools  # lazy: as above
        from sinas_server.chats.hooks import MessageHooks  # lazy: as above
        from sinas_server.chats.journal import Journal  # lazy: as above
        from sinas_server.chats.summary import Memory  # lazy: as above

        setattr(ask, "COALESCE_SECONDS", 0.0)  # noqa: B010 - each piece is sent by itself, however slow the machine is
        self.quicker()
        self.claims()
        self.commits()
        setattr(loop, "prepare", _once_awaited(getattr(loop, "prepare")))  # noqa: B009, B010 - as above
        self.around(loop, "prepare", "prepare")
        self.around(loop, "read_history", "ask")
        for name in JOURNAL:
            self.around(Journal, name, name)
        self.around(Memory, "_written", "summarize")
        self.around(MessageHooks, "_started", "hook")
        self.around(FunctionTools, "call_tool", "tool")
        self.around(AgentTools, "call_tool", "delegate")
        self.around(waits, "_resume_soon", "resume")
        self.around(RedisStreams, "create", "create", lost_redis)
        self.around(RedisStreams, "expire", "expire", lost_redis)
        self.appends()

    def appends(self) -> None:
        """Points before and after each single event."""
        self.around(RedisStreams, "append", "append", lost_redis)
        append_one = RedisStreams.append

        async def append(
            streams: RedisStreams, channel: str, events: Sequence[StreamEvent], *, tell: Sequence[str] = ()
        ) -> None:
            for each in [[event] for event in events] or [[]]:
                await append_one(streams, channel, each, tell=tell)

        setattr(RedisStreams, "append", append)  # noqa: B010 - as above

    def scheduler(self) -> None:
        """The points of letting a turn go on that was told nothing, for each that is found."""
        from sinas_server.chats import stop, waits  # lazy: as above
        from sinas_server.kernel import blobs  # lazy: as above

        for loop in (waits.WAITS_LOOP, stop.SETTLE_LOOP, blobs.BLOBS_LOOP):
            object.__setattr__(loop, "every_seconds", 0.25)  # only saves time
        self.commits()
        self.around(waits, "resume_turn", "sweep")
        self.around(stop, "settle", "settle")
        self.around(blobs, "_free", "free")
        self.around(disk.DiskBlobs, "delete", "unlink")

    def api(self) -> None:
        """The points of requests: `mark.*` of what runs in a sandbox, `sse:before` before each event that is sent."""
        from sinas_server.chats import stop, waits  # lazy: as above
        from sinas_server.chats.follow import follow  # lazy: as above
        from sinas_server.kernel import blobs  # lazy: as above

        self.around(waits, "_resume_soon", "resume")
        self.around(stop, "settle", "settle")
        self.around(blobs, "keep", "keep")
        self.around(disk._StagedFile, "keep", "rename")
        follow.__defaults__ = (0.5,)  # readers look for a lost end sooner, which only saves time
        self.commits()
        original: Callable[..., App] = getattr(roles, "create_app")  # noqa: B009 - as above

        def create_app(settings: Settings, open_runtime: app.OpenRuntime) -> Watched:
            return Watched(self, original(settings, open_runtime))

        setattr(roles, "create_app", create_app)  # noqa: B010 - as above


class Watched:
    """The application, watched."""

    def __init__(self, hooks: Hooks, app: App) -> None:
        self._hooks = hooks
        self._app = app
        self._marks = os.open(hooks.root / "marks.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._hooks.points.working():
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        for mark in parse_qs(scope["query_string"].decode()).get("mark", ()):
            os.write(self._marks, f"{mark}\n".encode())
            self._hooks.reach(f"mark.{mark.partition('.')[0]}")
        streams = False

        async def watched(message: Message) -> None:
            nonlocal streams
            if message["type"] == "http.response.start":
                streams = any(b"event-stream" in value for _, value in message["headers"])
            elif streams and message.get("body"):
                self._hooks.reach("sse:before")
            await send(message)

        token = STEP.set("request" if scope["method"] == "POST" else None)
        try:
            await self._app(scope, receive, watched)
        finally:
            STEP.reset(token)


async def _is_due(worker: Worker[Any]) -> bool:
    table: Any = worker.job.table
    new = (table.status == "PENDING") & (table.run_at <= func.now())
    lost = table.status.in_(TAKEN) & (table.lease_until < func.now()) & table.id.not_in(list(worker.running))
    return bool((await worker.runtime.database.rows(select(exists().where(new | lost))))[0][0])


Prepare = Callable[[Runtime, TurnRow], Awaitable[object]]


def _once_awaited(prepare: Prepare) -> Prepare:
    """Has the agent `called` begin only when its caller waits for it, however long that takes."""

    async def prepare_late(runtime: Runtime, turn: TurnRow) -> object:
        is_called = select(ChatRow.id).where(ChatRow.id == turn.chat_id, ChatRow.agent_name == "called").exists()
        caller = select(TurnRow.id).where(TurnRow.id == turn.parent_turn_id, TurnRow.status == "RUNNING").exists()
        while (await runtime.database.rows(select(is_called & caller)))[0][0]:
            await asyncio.sleep(0.01)
        return await prepare(runtime, turn)

    return prepare_late
