"""The agent loop: ask the model, carry out the calls it asks for, until it answers; each step is journaled.

The turn may be taken up by another worker at any point: whatever the journal holds is not done again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

import orjson
from pydantic import JsonValue
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.llm import Answer, Event, Message, ProviderError, TextDelta, ThinkingDelta, Usage
from sinas_server.chats.ask import ask
from sinas_server.chats.calls import as_calls, carry_out, storable
from sinas_server.chats.content import cleaned, text_in, with_text
from sinas_server.chats.ending import abandon_deleted
from sinas_server.chats.events import content
from sinas_server.chats.history import read_history
from sinas_server.chats.hooks import HookError
from sinas_server.chats.journal import Journal, LostTurnError, Told
from sinas_server.chats.live import Channel, Speech
from sinas_server.chats.prepare import Prepared, prepare
from sinas_server.chats.prompt import PromptError
from sinas_server.chats.record import as_runs, read_said
from sinas_server.chats.tables import TurnRow
from sinas_server.kernel.errors import SinasError, UnavailableError
from sinas_server.kernel.job import InterruptedWorkError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db
from sinas_server.kit.schema import violations
from sinas_server.providers.admit import tokens_asked, within_budgets
from sinas_server.providers.usage import ModelCall, tokens_in

MAX_FRUITLESS = 10
"""A turn that outlives this many workers without getting further is taken for their killer."""

PATIENCE_SECONDS = 30.0
"""How long a turn waits while what is left of a budget is held by other calls."""


class TurnError(Exception):
    """The turn cannot come to an answer; the message is shown to the user."""


class AgentLoop:
    """One attempt at a turn."""

    def __init__(self, runtime: Runtime, turn: TurnRow, journal: Journal, channel: Channel) -> None:
        self.runtime = runtime
        self.turn = turn
        self.journal = journal
        self.channel = channel
        self.speech: Speech | None = None
        self.call: ModelCall | None = None
        """What is being asked of the model, or was and is not journaled yet."""

    async def run(self, *, interrupted: bool) -> None:
        """Take the turn to its end or its next pause. `interrupted`: an earlier worker may have begun it."""
        try:
            await self._in_time(interrupted=interrupted)
            if self.journal.segment.end is not None:  # else it waits, and its readers with it
                await self.channel.finish(self.journal.segment)
        except asyncio.CancelledError:
            await self._settle()
            raise
        except LostTurnError:
            await self._settle()

    async def fail(self, error: str) -> None:
        """End the turn with an error."""
        await self.channel.open(self.journal.segment, interrupted=True)
        await self.journal.failed(error)
        await self.channel.finish(self.journal.segment)

    async def _settle(self) -> None:
        """If it was the user who stopped the turn: keep what was said."""
        said, offset = (self.speech.sent, self.speech.offset) if self.speech else ((), 0)
        with suppress(SQLAlchemyError, InterruptedWorkError):  # whoever stopped it settles it otherwise
            if await self.journal.canceled(said, offset, self._cut_off()):
                await self.channel.finish(self.journal.segment)
            await abandon_deleted(self.runtime, self.turn.id)

    def _cut_off(self) -> ModelCall | None:
        """The call that was not heard to its end, with the tokens that were said so far."""
        if self.call is None or not self.call.estimated or self.speech is None:
            return self.call
        said = tokens_in("".join(text for _, text in self.speech.said))
        return replace(self.call, usage=replace(self.call.usage, completion_tokens=said))

    async def _in_time(self, *, interrupted: bool) -> None:
        try:
            async with asyncio.timeout(max(0.0, self.turn.timeout - self.turn.worked_seconds)) as limit:
                await self._go_on(await self._ready(interrupted=interrupted))
        except TimeoutError:
            if not limit.expired():
                raise
            await self.journal.failed(f"the turn took longer than {self.turn.timeout:g} seconds", self._cut_off())
        except UnavailableError as error:
            raise InterruptedWorkError(error.detail) from error
        except ProviderError as error:
            failed = self.call and replace(self.call, usage=Usage(), failed=True, estimated=False)
            await self.journal.failed(str(error), failed)
        except (TurnError, HookError, PromptError, SinasError) as error:
            await self.journal.failed(str(error), self.call)

    async def _ready(self, *, interrupted: bool) -> Prepared:
        """Open the channel, and meanwhile look up what the turn needs."""
        opening = self.channel.open(self.journal.segment, interrupted=interrupted)
        opened, prepared = await asyncio.gather(opening, prepare(self.runtime, self.turn), return_exceptions=True)
        if opened is not None:
            raise opened
        if isinstance(prepared, BaseException):  # told on the channel, which therefore comes first
            raise prepared
        self.channel.unknown = self.channel.unknown and self.journal.answer is None
        return prepared

    async def _go_on(self, prepared: Prepared) -> None:
        if self.turn.attempt - self.turn.progress_attempt > MAX_FRUITLESS:
            raise TurnError(f"gave up: {MAX_FRUITLESS} workers were lost while working on it")
        if prepared.hooks.see_users and not self.journal.has_begun and await self._blocked(prepared):
            return
        while True:
            if self.journal.answer is None:
                draft = self.journal.draft
                told = await self._ask(prepared) if draft is None else Told.drafted(draft)
                if not told.calls:
                    await self._conclude(prepared, told)
                    return
                await self.journal.answered(told)
                self.speech = self.call = None
                await self.channel.catch_up(self.journal.segment)
            if prepared.is_old:  # rights count at the time of the call
                prepared = await prepare(self.runtime, self.turn)
            await carry_out(self.runtime, prepared, self.journal, self.channel)
            if self.journal.has_pages:
                prepared = prepared.reading()
            answer = self.journal.segment.answers[self.journal.step]
            if all(call.done for call in answer.calls):
                await self.journal.closed_step()
            elif await self.journal.paused():
                return

    async def _blocked(self, prepared: Prepared) -> bool:
        """Have hooks see what the user said; whether one of them answered instead of the model."""
        said, parts = await read_said(self.runtime.database.read, self.turn.id)
        before = text_in(said, parts)
        outcome = await prepared.hooks.on_user(before)
        if outcome.blocked:
            await self._say_last(Told.instead(outcome.content))
            return True
        if outcome.content != before:
            await self.journal.heard(*with_text(parts, outcome.content))
        return False

    async def _conclude(self, prepared: Prepared, told: Told) -> None:
        """Give the final answer, once the hooks that must see it have."""
        hooks, step = prepared.hooks, self.journal.step
        if hooks.hold_answers:
            if self.journal.draft is None:
                told = await self.journal.drafted(told)
                self.call = None
            outcome = await hooks.on_answer(told.text, step)
            if outcome.blocked or outcome.content != told.text:
                told = Told.instead(outcome.content, told.usage)
            if outcome.blocked:
                await self._say_last(told)
                return
        await self._say_last(told, lambda db: hooks.start_late(db, told.text, step))

    async def _say_last(self, told: Told, also: Callable[[Db], Awaitable[None]] | None = None) -> None:
        """Send the final answer, or the rest of it, and end the turn. `also`: see `Journal.completed`."""
        speech = self.speech or Speech(self.channel, self.journal.step, self.turn.attempt)
        await speech.finish(told.runs)
        await self.journal.completed(replace(told, offset=speech.offset), also)

    async def _ask(self, prepared: Prepared) -> Told:
        """The model's next answer, sent to the readers as it comes."""
        settings = self.runtime.settings
        history = await read_history(
            self.runtime.database, self.turn.chat_id, self.turn.id, settings.max_history_messages
        )
        self.speech = speech = Speech(self.channel, self.journal.step, self.turn.attempt)
        answer, call = await self._heard(prepared, history, speech)
        text, calls = cleaned(answer.text), as_calls(prepared, answer)
        if calls and self.journal.step >= settings.max_tool_iterations:
            raise TurnError(f"the agent called tools {self.journal.step} times in a row without coming to an answer")
        if calls and prepared.hooks.hold_answers:  # no hook sees what is said beside calls, and so does nobody
            text = ""
        runs = speech.said if content(speech.said) == text else as_runs(text)
        if self.turn.structured and not calls:
            _check_output(prepared, text)
        if calls:
            await speech.finish(() if self.turn.structured else runs)
        return Told(answer, call, text, runs, speech.offset, calls)

    async def _heard(self, prepared: Prepared, history: Sequence[Message], speech: Speech) -> tuple[Answer, ModelCall]:
        """The model's answer; sent in one piece and later if it must be known to be final, or pass hooks."""
        answer: Answer | None = None
        request = prepared.prompt.request(history)
        async with within_budgets(self.runtime, prepared.payer, prepared.provider, request, PATIENCE_SECONDS):
            read = Usage(prompt_tokens=tokens_asked(request))
            self.call = ModelCall(prepared.payer, prepared.provider, read, self.journal.place, estimated=True)
            async with aclosing(ask(self.runtime, prepared.provider.config, request)) as groups:
                async for group in groups:
                    for event in group:
                        if isinstance(event, Answer):
                            answer = event
                        elif not (self.turn.structured or prepared.hooks.hold_answers):
                            self._say(speech, event)
                    if answer is None:
                        await speech.flush()
        if answer is None:
            raise ProviderError("the model's answer has no end")
        self.call = replace(self.call, usage=answer.usage, estimated=False)
        return replace(answer, native=storable(answer.native)), self.call

    def _say(self, speech: Speech, event: Event) -> None:
        if isinstance(event, TextDelta):
            speech.add("content", cleaned(event.text))
        elif isinstance(event, ThinkingDelta) and self.turn.include_thinking:
            speech.add("thinking", cleaned(event.text))


def _check_output(prepared: Prepared, text: str) -> None:
    """Raise `TurnError` unless the text is JSON that meets the agent's `output_schema`."""
    try:
        value: JsonValue = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise TurnError(f"the agent's answer is not JSON, as its output_schema asks for: {error}") from error
    found = violations(prepared.prompt.agent.output_schema, value)
    if found:
        raise TurnError(f"the agent's answer does not meet its output_schema: {'; '.join(map(str, found))}")
