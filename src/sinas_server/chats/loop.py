"""The agent loop: ask the model, carry out the calls it asks for, until it answers; each step is journaled.

The turn may be taken up by another worker at any point: whatever the journal holds is not done again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

import orjson
import structlog
from pydantic import JsonValue
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.agents.kind import AgentSpec
from sinas_server.backends.llm import (
    Answer,
    AssistantMessage,
    Event,
    Message,
    ModelRequest,
    ProviderError,
    TextDelta,
    TextPart,
    ThinkingDelta,
    Usage,
    UserMessage,
)
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
from sinas_server.chats.summary import Memory
from sinas_server.chats.supply import readable, supplied, takes_last
from sinas_server.chats.tables import TurnRow
from sinas_server.chats.window import Window, counted, fitting, guessed
from sinas_server.kernel.errors import SinasError, UnavailableError
from sinas_server.kernel.job import InterruptedWorkError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db
from sinas_server.kit.cancel import to_the_end
from sinas_server.kit.schema import violations
from sinas_server.providers.admit import tokens_asked, within_budgets
from sinas_server.providers.resolve import NoProviderError, Resolved, resolve_fallback
from sinas_server.providers.usage import ModelCall, tokens_in

log = structlog.get_logger()
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
        self.provider: Resolved | None = None
        """The provider fallen back on, which answers the rest of this attempt; `fallen` of them were tried."""
        self.fallen = 0
        self.begun = False
        """Whether something of the current answer was heard."""
        self.counted: dict[str, JsonValue] = {}
        """How the model asked last counts tokens, see `window.counted`."""
        self.memory = Memory(runtime, journal, self._asking)

    def _asking(self, call: ModelCall | None) -> None:
        self.call = call

    async def run(self, *, interrupted: bool) -> None:
        """Take the turn to its end or its next pause. `interrupted`: an earlier worker may have begun it."""
        try:
            await self._in_time(interrupted=interrupted)
            if self.journal.segment.end is not None:  # else it waits, and its readers with it
                await self.channel.finish(self.journal.segment)
        except asyncio.CancelledError:
            await to_the_end(self._settle())
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
            while self.journal.answer is None:
                if await self._answered(prepared):
                    return
            if prepared.is_old:  # rights count at the time of the call
                prepared = await prepare(self.runtime, self.turn)
            await carry_out(self.runtime, prepared, self.journal, self.channel)
            if self.journal.has_pages:
                prepared = prepared.reading()
            if await self._paused():
                return

    async def _answered(self, prepared: Prepared) -> bool:
        """Have the model answer; whether the turn has ended with that: no tools are called, nothing was injected."""
        draft = self.journal.draft
        told = await self._ask(prepared) if draft is None else Told.drafted(draft)
        if told.calls:
            await self.journal.answered(told)
        elif await self._conclude(prepared, told):
            return True
        await self._pass_on()
        return False

    async def _paused(self) -> bool:
        """Close the step unless that is done, or pause if some of its calls wait; whether it did."""
        answer = self.journal.answer
        if answer is None:
            return False
        if not all(call.done for call in answer.calls):
            return await self.journal.paused()
        if await self.journal.closed_step():
            await self._pass_on()
        return False

    async def _pass_on(self) -> None:
        """Send what was just journaled."""
        self.speech = self.call = None
        await self.channel.catch_up(self.journal.segment)

    async def _blocked(self, prepared: Prepared) -> bool:
        """Have hooks see what the user said; whether one of them has ended the turn with an answer of its own."""
        said = await read_said(self.runtime.database.read, self.turn.message_id)
        if said.passed:
            return False
        content, parts = said.content, said.parts
        before = text_in(content, parts)
        outcome = await prepared.hooks.on_user(before)
        if outcome.blocked:
            return await self._say_last(Told.instead(outcome.content))
        if outcome.content != before:
            content, parts = with_text(parts, outcome.content)
        await self.journal.heard(content, parts)
        return False

    async def _conclude(self, prepared: Prepared, told: Told) -> bool:
        """Give the final answer, once the hooks that must see it have; whether the turn has ended with it."""
        hooks, step = prepared.hooks, self.journal.step
        if hooks.hold_answers:
            if self.journal.draft is None:
                told = await self.journal.drafted(told)
                self.call = None
            outcome = await hooks.on_answer(told.text, step)
            if outcome.blocked or outcome.content != told.text:
                told = Told.instead(outcome.content, told.usage)
            if outcome.blocked:
                return await self._say_last(told)
        return await self._say_last(told, lambda db: hooks.start_late(db, told.text, step))

    async def _say_last(self, told: Told, also: Callable[[Db], Awaitable[None]] | None = None) -> bool:
        """Send the final answer, or the rest of it. `also`, and what it gives: see `Journal.completed`."""
        speech = self.speech or Speech(self.channel, self.journal.step, self.turn.attempt)
        await speech.finish(told.runs)
        return await self.journal.completed(replace(told, offset=speech.offset), also)

    async def _ask(self, prepared: Prepared) -> Told:
        """The model's next answer, sent to the readers as it comes."""
        settings = self.runtime.settings
        prepared, history = await self._recalled(prepared)
        if not history:  # the chat was deleted: at least what the turn answers would be there
            raise LostTurnError(str(self.turn.id))
        self.speech = speech = Speech(self.channel, self.journal.step, self.turn.attempt)
        answer, call = await self._heard(prepared, history, speech)
        if self.turn.structured and not answer.tool_calls:
            problem = output_problem(prepared.prompt.agent, cleaned(answer.text))
            if problem is not None:
                answer, call = await self._repaired(prepared, history, (answer, problem), speech)
        text, calls = cleaned(answer.text), await as_calls(self.runtime, prepared, self.journal, answer)
        if calls and self.journal.step >= settings.max_tool_iterations:
            raise TurnError(f"the agent called tools {self.journal.step} times in a row without coming to an answer")
        if calls and prepared.hooks.hold_answers:  # no hook sees what is said beside calls, and so does nobody
            text = ""
        runs = speech.said if content(speech.said) == text else as_runs(text)
        if calls:
            await speech.finish(() if self.turn.structured else runs)
        return Told(answer, call, text, runs, speech.offset, calls)

    async def _recalled(self, prepared: Prepared) -> tuple[Prepared, Sequence[Message]]:
        """The conversation as the model is given it, and what it is asked with."""
        wanted = prepared.prompt.agent.history_summary
        if wanted is None:
            most = self.runtime.settings.max_history_messages
            return prepared, await read_history(self.runtime.database, self.turn, most)
        provider = self.provider or prepared.provider
        return await self.memory.recall(prepared, provider, wanted, self._window(prepared, provider))

    def _window(self, prepared: Prepared, provider: Resolved) -> Window:
        return Window.of(provider, {**prepared.counted, **self.counted})

    async def _repaired(
        self, prepared: Prepared, history: Sequence[Message], found: tuple[Answer, str], speech: Speech
    ) -> tuple[Answer, ModelCall]:
        """Another answer, of a model that is told what is wrong with its last one. Raises `TurnError` for the same."""
        answer, problem = found
        if self.call is not None:
            await self.journal.spent(self.call)
            self.call = None
        wrong = AssistantMessage(answer.text, native=answer.native)
        told = UserMessage((TextPart(f"Your {problem}. Give the whole answer again, corrected."),))
        answer, call = await self._heard(prepared, history, speech, (wrong, told))
        again = None if answer.tool_calls else output_problem(prepared.prompt.agent, cleaned(answer.text))
        if again is not None:
            raise TurnError(f"the agent's {again}")
        return answer, call

    async def _heard(
        self, prepared: Prepared, history: Sequence[Message], speech: Speech, after: tuple[Message, ...] = ()
    ) -> tuple[Answer, ModelCall]:
        """The model's answer, or that of the first provider to fall back on that gives one.

        `after`: what the model is told that is not part of the conversation.
        """
        while True:
            provider = self.provider or prepared.provider
            room = self._window(prepared, provider).room(prepared.prompt.request(after, provider.model))
            if room is not None:
                history = fitting(history, room)
            request = prepared.prompt.request([*readable(provider, history), *after], provider.model)
            try:
                return await self._heard_from(prepared, provider, request, speech)
            except ProviderError as error:
                following = None if self.begun else await self._fallback(prepared, history)
                if following is None:
                    raise
                log.warning("falling back", provider=provider.name, turn=str(self.turn.id), error=str(error))
            if self.call is not None:
                await self.journal.spent(replace(self.call, usage=Usage(), failed=True, estimated=False))
                self.call = None
            self.provider = following

    async def _fallback(self, prepared: Prepared, history: Sequence[Message]) -> Resolved | None:
        """The next provider to ask; one that is not available now, or cannot take what was sent, is passed over."""
        for fallback in prepared.prompt.agent.fallback_providers[self.fallen :]:
            self.fallen += 1
            with suppress(NoProviderError):
                found = await resolve_fallback(self.runtime.database, fallback.provider, fallback.model)
                if takes_last(found, history):
                    return found
        return None

    async def _heard_from(
        self, prepared: Prepared, provider: Resolved, request: ModelRequest, speech: Speech
    ) -> tuple[Answer, ModelCall]:
        """The model's answer; sent in one piece and later if it must be known to be final, or pass hooks."""
        answer: Answer | None = None
        self.begun = False
        async with within_budgets(self.runtime, prepared.payer, provider, request, PATIENCE_SECONDS):
            read = Usage(prompt_tokens=tokens_asked(request))
            size = 0 if provider.context_window is None else guessed(request)
            self.call = ModelCall(prepared.payer, provider, read, self.journal.place, estimated=True, guessed=size)
            whole = await supplied(self.runtime, request)
            asking = ask
            if prepared.test is not None:
                self.call = replace(self.call, replayed=prepared.test.mode == "replay")
                asking = prepared.test.answer
            async with aclosing(asking(self.runtime, provider.config, whole)) as groups:
                async for group in groups:
                    self.begun = True
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
        self.counted = counted(self.call)
        return replace(answer, native=storable(answer.native)), self.call

    def _say(self, speech: Speech, event: Event) -> None:
        if isinstance(event, TextDelta):
            speech.add("content", cleaned(event.text))
        elif isinstance(event, ThinkingDelta) and self.turn.include_thinking:
            speech.add("thinking", cleaned(event.text))


def output_problem(agent: AgentSpec, text: str) -> str | None:
    """Why an answer is not what the agent's `output_schema` asks for: JSON that meets it; None if it is."""
    try:
        value: JsonValue = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return f"answer is not JSON, as its output_schema asks for: {error}"
    found = violations(agent.output_schema, value)
    return f"answer does not meet its output_schema: {'; '.join(map(str, found))}" if found else None
