"""Writing down how far a turn is: each step in one transaction that holds only while the worker owns the turn."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from time import monotonic
from typing import TypeVar, cast
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import Executable, Row, update

from sinas_server.backends.llm import Answer as ModelAnswer
from sinas_server.chats.ending import Ending, close, lock_canceled
from sinas_server.chats.events import Answer, Call, Runs, Segment
from sinas_server.chats.queued import IS_TOLD, hear, leave
from sinas_server.chats.record import (
    add_results,
    added,
    as_call,
    as_runs,
    locked_turn,
    read_calls,
    shown_call,
    stored_runs,
    summed,
    touch,
    within,
)
from sinas_server.chats.results import READ_RESULT, page_of
from sinas_server.chats.steps import ANSWERED, CONCLUDED, FINISHED, KNOWN_IDS, as_json, called
from sinas_server.chats.tables import CallStatus, MessageRow, Status, ToolCallRow, TurnRow
from sinas_server.chats.waits import asked_calls, settle, suspend, tell_parent
from sinas_server.chats.window import counted
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import ToolResult, Wait, Waiting
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import now
from sinas_server.providers.usage import ModelCall, Place, record, spending

Held = TypeVar("Held")


class LostTurnError(Exception):
    """The turn is no longer this worker's: it was canceled, deleted, or given to another after a long silence."""


@dataclass(frozen=True)
class Told:
    """An answer of the model and how it was sent to the readers."""

    answer: ModelAnswer
    call: ModelCall | None
    """What it cost, unless that is written down or no model was asked."""
    text: str
    runs: Runs
    offset: int
    calls: tuple[Call, ...] = ()
    usage: Mapping[str, JsonValue] | None = None
    """What it cost, if that is written down."""

    @classmethod
    def drafted(cls, draft: Mapping[str, JsonValue]) -> "Told":
        """An answer that is journaled as a draft, not sent yet."""
        text, usage = str(draft["text"]), cast(Mapping[str, JsonValue], draft["usage"])
        return cls(ModelAnswer(text, native=draft["native"]), None, text, as_runs(text), 0, usage=usage)

    @classmethod
    def instead(cls, text: str, usage: Mapping[str, JsonValue] | None = None) -> "Told":
        """What is said instead of an answer of the model; `usage`: what that has cost."""
        return cls(ModelAnswer(text), None, text, as_runs(text), 0, usage=usage)

    @property
    def shown_usage(self) -> Mapping[str, JsonValue] | None:
        """What it cost, as its message tells."""
        return self.usage if self.call is None else added({}, self.call)


def _noted(call: ModelCall | None) -> dict[str, object]:
    """What a chat's row keeps of a call."""
    found = counted(call)
    return {"counted": found} if found else {}


class Journal:
    """The journal of one attempt at a turn. Each method that writes is one transaction."""

    def __init__(self, runtime: Runtime, turn: TurnRow, segment: Segment) -> None:
        """`turn`: as it was claimed; `segment`: what is journaled of its channel."""
        self.runtime = runtime
        self.turn = turn
        self.segment = segment
        self.step = turn.step
        self.usage: dict[str, JsonValue] = dict(turn.usage)
        self.has_pages = False
        """Whether a result of this attempt is so large that the model got its first page only."""
        self.draft = turn.draft
        """The final answer, while hooks look at it."""
        self._since = monotonic()

    @property
    def answer(self) -> Answer | None:
        """The answer of the current step, if it is journaled."""
        return self.segment.answers.get(self.step)

    @property
    def has_begun(self) -> bool:
        """Whether a model's answer is journaled."""
        return self.step > 0 or self.answer is not None or self.draft is not None

    @property
    def place(self) -> Place:
        """Where in the conversation the current step is."""
        return Place(self.turn.chat_id, self.turn.id, self.step)

    def worked(self) -> float:
        """Seconds of work on this turn, earlier attempts included as far as they were journaled."""
        return self.turn.worked_seconds + monotonic() - self._since

    async def answered(self, told: Told) -> None:
        """Keep an answer that calls tools, and the calls, before any of them is carried out."""
        usage, calls = self._with(told.call), await self._with_ids(told.calls)
        noted = {"the_calls": called(calls, told.answer), "the_count": as_json(counted(told.call) or None)}
        await self._write(ANSWERED, self._answer(told, calls, usage) | noted)
        self.usage = usage
        self.segment = self.segment.with_answer(Answer(self.step, told.runs, told.offset, calls))

    async def finished(self, call: Call, result: ToolResult) -> None:
        """Keep the result of a call; if it is the last of its step, all go to the conversation as in `closed_step`."""
        order = 1 + sum(known.done for known in self._calls)
        size = self.runtime.settings.tool_result_page
        large = len(result.content) > size and (call.tool or {}).get("toolset") != READ_RESULT.toolset
        told = page_of(result.content, 1, size, call.id) if large else result.content
        done = replace(
            call,
            status=CallStatus.DONE,
            finish_order=order,
            result=told,
            is_error=result.is_error,
            finished_on=self.turn.channel_id,
        )
        usage = self.usage if result.usage is None else summed(self.usage, result.usage)
        values = self._mine(usage) | {
            "my_step": self.step,
            "the_index": call.index,
            "is_last": all(known.done for known in self._calls if known.index != call.index),
            "the_result": told,
            "the_whole": result.content if large else None,
            "is_error_now": result.is_error,
            "the_channel": self.turn.channel_id,
            "the_order": order,
        }
        written = await self._write(FINISHED, values)
        self.usage = usage
        self.has_pages = self.has_pages or large
        self._note([done])
        self.step = written.step

    async def waits(self, call: Call, waiting: Waiting) -> None:
        """Keep what a call waits for, that has begun and is not done."""
        question: dict[str, JsonValue] | None = None
        if waiting.question is not None:
            options = None if waiting.options is None else list[JsonValue](waiting.options)
            question = {"question": waiting.question, "options": options}
        values: dict[str, object] = {"status": CallStatus.WAITING, "waits_for": waiting.wait, "question": question}
        values |= dict.fromkeys(("answer", "asked_at"))
        limit = (call.tool or {}).get("timeout") if waiting.wait == Wait.AGENT else None
        values["wait_until"] = now() + timedelta(seconds=limit) if isinstance(limit, int | float) else None
        async with self.runtime.database.unit() as db:
            await self._still_ours(db)
            await self._change(db, call, values)
        self._note([replace(call, **values)])  # type: ignore[arg-type]  # the columns are the fields

    @property
    def _calls(self) -> tuple[Call, ...]:
        return self.segment.answers[self.step].calls

    def _note(self, changed: Sequence[Call]) -> None:
        """Some calls of the current step are now these."""
        by_index = {call.index: call for call in changed}
        calls = tuple(by_index.get(known.index, known) for known in self._calls)
        self.segment = self.segment.with_answer(replace(self.segment.answers[self.step], calls=calls))

    async def _change(self, db: Db, call: Call, values: dict[str, object]) -> None:
        await db.execute(
            update(ToolCallRow)
            .where(
                ToolCallRow.turn_id == self.turn.id,
                ToolCallRow.step == self.step,
                ToolCallRow.index == call.index,
                ToolCallRow.status != CallStatus.DONE,
            )
            .values(**values)
        )

    async def closed_step(self) -> bool:
        """Give the results to the conversation, in the order of the calls, and go on to the next step.

        After them comes what the user has injected meanwhile; gives whether he has.
        """
        answer = self.segment.answers[self.step]
        async with self.runtime.database.unit() as db:
            is_told = await self._still_ours(db, step=self.step + 1)
            await add_results(db, self.turn, self.step, answer.calls)
            injected = await hear(db, self.turn, self.step) if is_told else ()
            await touch(db, self.turn.chat_id)
        self.segment = self.segment.with_answer(replace(answer, injected=injected))
        self.step += 1
        return is_told

    async def paused(self) -> bool:
        """Wait for what the calls of this step wait for, holding no worker; False if some need not wait any more."""
        async with self.runtime.database.unit() as db:
            await self._still_ours(db)
            goes_on, working = await settle(db, self.turn.id, self.step)
            if goes_on:
                self._note(await read_calls(within(db), self.turn.id, self.step))
                return False
            asked = [] if working else await asked_calls(db, self.turn.id)
            if not asked:
                segment = self.segment
                await self._still_ours(db, status=Status.WAITING, lease_until=None)
            else:
                below = [as_call(row) for row in asked if row.turn_id != self.turn.id]
                segment = await self._suspended(db, below)
        self.segment = segment
        return True

    async def _suspended(self, db: Db, below: Sequence[Call]) -> Segment:
        """Ask the user, and end the channel. `below`: what he is asked by called agents."""
        people = [call for call in self._calls if call.status == CallStatus.WAITING and call.waits_for != Wait.AGENT]
        asked = [call if call.asked_at else await self._asked(db, call) for call in people]
        turn = await locked_turn(db, self.turn.id)
        if turn is None:
            raise LostTurnError(str(self.turn.id))
        told = await suspend(db, turn, [*asked, *below], self.usage)
        tell_parent(db, self.runtime, turn)
        end = ("done", {"status": "suspended"})
        return replace(self.segment, suspended_step=self.step, asked=told, end=end)

    async def _asked(self, db: Db, call: Call) -> Call:
        settings = self.runtime.settings
        seconds = settings.approval_timeout if call.waits_for == Wait.APPROVAL else settings.input_timeout
        asked = replace(call, asked_at=now(), wait_until=now() + timedelta(seconds=seconds))
        await self._change(db, call, {"asked_at": asked.asked_at, "wait_until": asked.wait_until})
        return asked

    async def heard(self, content: str | None, parts: list[JsonValue] | None) -> None:
        """Keep what hooks made of what the user said, and that they let it pass."""
        async with self.runtime.database.unit() as db:
            await self._still_ours(db)
            await db.execute(
                update(MessageRow)
                .where(MessageRow.id == self.turn.message_id)
                .values(content=content, parts=parts, passed=True),
                execution_options={"synchronize_session": False},
            )

    async def drafted(self, told: Told) -> Told:
        """Keep the final answer aside until hooks have seen it; gives it as it is kept."""
        usage = self._with(told.call)
        draft = {"text": told.text, "native": told.answer.native, "usage": dict(told.shown_usage or {})}
        async with self.runtime.database.unit() as db:
            await self._still_ours(db, usage=usage, draft=draft)
            await self._record(db, told.call)
        self.usage = usage
        self.draft = draft
        return Told.drafted(draft)

    async def spent(self, call: ModelCall, also: Executable | None = None) -> None:
        """Count a call that is not the answer of this step. `also`: what keeps what it is good for."""
        async with self.runtime.database.unit() as db:
            await self._still_ours(db)
            await self._spent(db, replace(call, place=replace(call.place, step=None)))
            if also is not None:
                await db.execute(also)
        self.usage = added(self.usage, call)

    def _with(self, call: ModelCall | None) -> dict[str, JsonValue]:
        return self.usage if call is None else added(self.usage, call)

    async def _record(self, db: Db, call: ModelCall | None) -> None:
        if call is not None:
            await record(db, call)

    async def completed(self, told: Told, also: Callable[[Db], Awaitable[None]] | None = None) -> bool:
        """Keep the final answer and end the turn; unless the user has injected something, with which it goes on.

        `also`: what belongs into the same transaction. Gives whether the turn has ended.
        """
        usage, injected = self._with(told.call), cast(tuple[UUID, ...], ())
        async with self.runtime.database.unit() as db:
            written = (await (await db.connection()).execute(CONCLUDED, self._answer(told, (), usage))).first()
            goes_on = self._held(written).is_told
            if also is not None:
                await also(db)
            if goes_on:
                injected = await hear(db, self.turn, self.step)
                await touch(db, self.turn.chat_id, **_noted(told.call))
            else:
                await leave(db, self.runtime, [self.turn.chat_id], **_noted(told.call))
                tell_parent(db, self.runtime, self.turn)
        self.usage, self.draft = usage, None
        self.segment = self.segment.with_answer(Answer(self.step, told.runs, told.offset, injected=injected))
        if goes_on:
            self.step += 1
        else:
            self.segment = replace(self.segment, end=("done", {"status": "completed"}))
        return not goes_on

    async def failed(self, error: str, call: ModelCall | None = None) -> None:
        """End the turn without an answer. `call`: one of the model that is not journaled."""
        async with self.runtime.database.unit() as db:
            await self._still_ours(db)
            await self._spent(db, call)
            turn = await locked_turn(db, self.turn.id)
            if turn is None:
                raise LostTurnError(str(self.turn.id))
            self.segment = await close(db, self.runtime, turn, self.segment, Ending(Status.FAILED, error=error))

    async def canceled(self, partial: Runs, offset: int, call: ModelCall | None = None) -> bool:
        """If the turn was canceled, keep what was said so far and end it; otherwise it is not ours to end."""
        async with self.runtime.database.unit() as db:
            turn = await lock_canceled(db, self.turn.id)
            if turn is None:
                return False
            ending = Ending(Status.CANCELLED, partial=(partial, offset))
            segment = await close(db, self.runtime, turn, self.segment, ending)
            await self._spent(db, call)
        self.segment = segment
        return True

    async def _spent(self, db: Db, call: ModelCall | None) -> None:
        """Count a call whose answer is not kept."""
        if call is None:
            return
        await record(db, call)
        await db.execute(
            update(TurnRow).where(TurnRow.id == self.turn.id).values(usage=added(self.usage, call)),
            execution_options={"synchronize_session": False},
        )

    async def _still_ours(self, db: Db, **values: object) -> bool:
        """Lock the turn and note progress: whether the user has injected what it has not heard.

        Raises `LostTurnError`.
        """
        mine = (TurnRow.id == self.turn.id, TurnRow.attempt == self.turn.attempt, TurnRow.status == Status.RUNNING)
        progress = {"worked_seconds": self.worked(), "progress_attempt": self.turn.attempt}
        statement = update(TurnRow).where(*mine).values(**progress, **values).returning(IS_TOLD.label("is_told"))
        found = await db.execute(statement, execution_options={"synchronize_session": False})
        return bool(self._held(found.first()).is_told)

    def _mine(self, usage: Mapping[str, JsonValue]) -> dict[str, object]:
        """The parameters by which a statement holds the turn and notes progress."""
        turn = {"my_turn": self.turn.id, "my_attempt": self.turn.attempt, "my_seconds": self.worked()}
        return {**turn, "my_usage": as_json(usage)}

    async def _write(self, statement: Executable, values: dict[str, object]) -> Row[tuple[object, ...]]:
        rows = await self.runtime.database.direct(statement, values)
        row: Row[tuple[object, ...]] | None = rows[0] if rows else None
        return self._held(row)

    def _held(self, row: Held | None) -> Held:
        """What a statement gave that writes only while the turn is ours. Raises `LostTurnError`."""
        if row is None:
            raise LostTurnError(str(self.turn.id))
        return row

    async def _with_ids(self, calls: Sequence[Call]) -> tuple[Call, ...]:
        """The calls under ids that no other call of the chat has; only this turn adds any."""
        asked = {"chat": self.turn.chat_id, "ids": [call.id for call in calls]}
        known = {row.tool_call_id for row in await self.runtime.database.lookup(KNOWN_IDS, asked)}
        shown: list[Call] = []
        for call in calls:
            unique = f"{call.id or 'call'}-{self.turn.id.hex[:8]}-{self.step}-{call.index}"
            # What a called agent asks the user is answered in its caller's chat, where other ids are known too.
            is_taken = call.id in known or self.turn.parent_turn_id is not None
            started_on = None if call.requires_approval else self.turn.channel_id
            shown_id = unique if not call.id or is_taken else call.id
            shown.append(replace(call, id=shown_id, started_on=started_on))
            known.add(call.id)
        return tuple(shown)

    def _answer(self, told: Told, calls: Sequence[Call], usage: Mapping[str, JsonValue]) -> dict[str, object]:
        """The parameters of a statement that keeps an answer of the model."""
        return {
            **self._mine(usage),
            **spending(told.call),
            "my_step": self.step,
            "said_content": told.text or (None if calls else ""),
            "said_calls": as_json([shown_call(call) for call in calls] or None),
            "said_native": as_json(told.answer.native),
            "said_usage": as_json(told.shown_usage),
            "said_offset": told.offset,
            "said_runs": as_json(stored_runs(told.runs)),
        }
