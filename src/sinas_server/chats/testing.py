"""Chats under test: their models' answers are recorded or come from a recording, and some tools only seem to be called.

A test belongs to the chat it was begun in and reaches the chats of the agents called there. Each of these agents must
be the caller's to test (`sinas.agents.test`), since whoever writes the answers decides what its tools are called with.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Literal, cast
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from sinas_server.agents.kind import AGENT, AgentSpec
from sinas_server.backends.llm import Answer, Event, ModelRequest, ProviderConfig, ProviderError
from sinas_server.backends.llm.recording import (
    Asked,
    Said,
    as_asked,
    as_failed,
    as_said,
    fingerprint,
    say_again,
    unlike,
)
from sinas_server.chats.ask import ask
from sinas_server.chats.tables import ChatRow
from sinas_server.chats.testing_tables import RecordedRow, TestChatRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, NotFoundError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tool import Tool, ToolResult
from sinas_server.kernel.unit import Db
from sinas_server.kit.difference import differences

Mode = Literal["live", "record", "replay"]


class NotRecordedError(ConflictError):
    """The recording has no answer to what the model is asked; the message says in what the request differs."""

    code = "not_recorded"


class Stub(BaseModel):
    """What a tool returns instead of being called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tool: str = Field(
        min_length=1, max_length=600, description="The tool, as `namespace/name` or as the model sees it."
    )
    arguments: dict[str, JsonValue] = Field(default={}, description="Only for calls with these arguments among theirs.")
    result: JsonValue = Field(default=None, description="What it returns.")
    error: str | None = Field(default=None, max_length=10_000, description="How it fails instead.")

    def fits(self, tool: Tool, arguments: Mapping[str, JsonValue]) -> bool:
        """Whether it stands in for this call."""
        asked = next(differences(self.arguments, dict(arguments), partial=True), None) is None
        return self.tool in (tool.target, tool.name) and asked

    def told(self) -> ToolResult:
        """What the model gets."""
        if self.error is not None:
            return ToolResult(f"Error: {self.error}", is_error=True)
        return ToolResult(self.result if isinstance(self.result, str) else orjson.dumps(self.result).decode())


class Exchange(BaseModel):
    """A request to a model and its answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: dict[str, JsonValue] = Field(description="What the model saw: `model`, `settings`, `tools`, `messages`.")
    said: Said = Field(description="What it answered.")


@dataclass(frozen=True)
class ChatTest:
    """The test that a chat is part of."""

    id: UUID
    mode: Mode
    stubs: tuple[Stub, ...]

    def stub(self, tool: Tool, arguments: Mapping[str, JsonValue]) -> ToolResult | None:
        """The result of a call that is not to be carried out."""
        return next((stub.told() for stub in self.stubs if stub.fits(tool, arguments)), None)

    async def answer(
        self, runtime: Runtime, config: ProviderConfig, request: ModelRequest
    ) -> AsyncGenerator[list[Event], None]:
        """The model's answer. Raises `ProviderError`, and `NotRecordedError` where it should be in the recording.

        The same request gets the same answer throughout a test, so that a recording leaves no choice.
        """
        if self.mode == "live":
            async with aclosing(ask(runtime, config, request)) as groups:
                async for group in groups:
                    yield group
            return
        asked = as_asked(request)
        said = await self._recorded(runtime, asked)
        if said is None and self.mode == "replay":
            known = await runtime.database.read(select(RecordedRow.asked).where(RecordedRow.test_id == self.id))
            why = unlike(asked, [row.asked for row in known])
            raise NotRecordedError(f"the recording has no answer to what the model is asked now:\n{why}")
        if said is None:
            said = await self._record(runtime, config, request, asked)
        yield say_again(said, request)

    async def _recorded(self, runtime: Runtime, asked: Asked) -> Said | None:
        mine = (RecordedRow.test_id == self.id, RecordedRow.fingerprint == fingerprint(asked))
        rows = await runtime.database.read(select(RecordedRow.said).where(*mine))
        return Said.model_validate(rows[0].said) if rows else None

    async def _record(self, runtime: Runtime, config: ProviderConfig, request: ModelRequest, asked: Asked) -> Said:
        """Ask the model and keep what it says; what was kept first counts."""
        try:
            async with aclosing(ask(runtime, config, request)) as groups:
                events = [event async for group in groups for event in group]
            said = next(as_said(event, request) for event in events if isinstance(event, Answer))
        except ProviderError as error:
            said = as_failed(error)
        with suppress(IntegrityError):  # the chat was deleted meanwhile
            async with runtime.database.unit() as db:
                await keep(db, self.id, [Exchange(asked=asked, said=said)])
        return await self._recorded(runtime, asked) or said


async def keep(db: Db, test_id: UUID, exchanges: Sequence[Exchange]) -> None:
    """Add exchanges to a test's recording, unless their requests are in it already."""
    for exchange in exchanges:
        values = {
            "test_id": test_id,
            "fingerprint": fingerprint(exchange.asked),
            "asked": exchange.asked,
            "said": exchange.said.model_dump(mode="json", exclude_defaults=True),
        }
        await db.execute(insert(RecordedRow).values(**values).on_conflict_do_nothing())


async def recording_of(db: Db, test_id: UUID) -> list[Exchange]:
    """The recording of a test, in its order."""
    rows = await db.scalars(select(RecordedRow).where(RecordedRow.test_id == test_id).order_by(RecordedRow.seq))
    return [Exchange(asked=row.asked, said=Said.model_validate(row.said)) for row in rows]


async def test_of(runtime: Runtime, caller: Caller, chat: ChatRow, agent: Resource[AgentSpec]) -> ChatTest | None:
    """The test that a chat is part of, if it is part of one.

    Raises 403 where its agent is not the caller's to test, and 404 where it was just deleted.
    """
    if chat.test_id is None:
        return None
    caller.require(AGENT.plural, "test", agent.owner_id, agent.namespace, agent.name)
    query = select(TestChatRow.mode, TestChatRow.stubs).where(TestChatRow.id == chat.test_id)
    rows = await runtime.database.read(query)
    if not rows:  # it goes with the chat that it was begun in
        raise NotFoundError("the chat was deleted")
    return ChatTest(chat.test_id, cast(Mode, rows[0].mode), tuple(map(Stub.model_validate, rows[0].stubs)))
