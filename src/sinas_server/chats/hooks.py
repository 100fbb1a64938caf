"""Hooks: functions of an agent that see each message before it counts, in their order.

A hook runs through the one door to functions with an identity of its own in the turn: whoever takes the turn up after a
crash finds the execution there is. What is decided stands in that execution: a hook that took too long is canceled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal, cast
from uuid import UUID

import structlog
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from sinas_server.agents.kind import AgentSpec, Hook, Hooks
from sinas_server.chats.content import cleaned
from sinas_server.chats.tables import LateHookRow, TurnRow
from sinas_server.functions import execute
from sinas_server.functions.cancel import cancel_executions
from sinas_server.functions.execute import Order
from sinas_server.functions.kind import FUNCTION, FunctionSpec
from sinas_server.functions.tables import ENDED, ExecutionRow, Status, Trigger
from sinas_server.kernel import lookup
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import BadRequestError, InvalidError, NotFoundError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tool import AgentContext, CallIdentity
from sinas_server.kernel.unit import Db

log = structlog.get_logger()
Role = Literal["user", "assistant"]
ASYNC_HOOK = "async hook"
"""The `trigger_id` of executions that nobody waits for; they go on when their turn is stopped."""
BEFORE_ALL = -1
"""The step of the hooks on what the user said; those on an answer are of the answer's step."""
BLOCKED = "This message was blocked."
"""The reply of a hook that blocks and names none."""


class HookError(Exception):
    """A hook that must pass (`on_timeout: block`) came to no result; the message is shown to the user."""


class _NoVerdictError(Exception):
    """A hook came to no result; the message says why."""


class Verdict(BaseModel):
    """What a hook function returns; nothing of it means that the message passes as it is."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    content: str | None = None
    block: bool = False
    reply: str | None = None


PASSES = Verdict()


@dataclass(frozen=True)
class Outcome:
    """What becomes of a message: its text after all hooks, or the reply of the one that blocked it."""

    content: str
    blocked: bool = False


@dataclass(frozen=True)
class MessageHooks:
    """The hooks of an agent, for one turn."""

    runtime: Runtime
    caller: Caller
    turn: TurnRow
    hooks: Hooks
    functions: Mapping[str, Resource[FunctionSpec]]
    """Those the agent's owner may execute now, by reference."""
    about: Mapping[str, JsonValue]
    """What a hook is given beside the message."""

    @property
    def see_users(self) -> bool:
        """Whether there are hooks on what the user says."""
        return bool(self.hooks.on_user_message)

    @property
    def hold_answers(self) -> bool:
        """Whether an answer may be shown only once hooks have seen it."""
        return any(not hook.run_async for hook in self.hooks.on_assistant_message)

    async def on_user(self, content: str) -> Outcome:
        """What becomes of what the user said. Raises `HookError`."""
        for index, hook in enumerate(self.hooks.on_user_message):
            if hook.run_async:
                await self._start(hook, self._call(BEFORE_ALL, index), ("user", content))
                continue
            verdict = await self._verdict(hook, self._call(BEFORE_ALL, index), ("user", content))
            if verdict.block:
                return Outcome(cleaned(verdict.reply or BLOCKED), blocked=True)
            content = content if verdict.content is None else cleaned(verdict.content)
        return Outcome(content)

    async def on_answer(self, content: str, step: int) -> Outcome:
        """What becomes of the final answer, of this step. Raises `HookError`."""
        for index, hook in enumerate(self.hooks.on_assistant_message):
            if hook.run_async:
                continue
            verdict = await self._verdict(hook, self._call(step, index), ("assistant", content))
            if verdict.block:
                return Outcome(cleaned(verdict.reply or BLOCKED), blocked=True)
            content = content if verdict.content is None else cleaned(verdict.content)
        return Outcome(content)

    async def start_late(self, db: Db, content: str, step: int) -> None:
        """Start the asynchronous hooks on the final answer, in the transaction that keeps it."""
        for index, hook in enumerate(self.hooks.on_assistant_message):
            function = self.functions.get(hook.function)
            if not hook.run_async or function is None:
                continue
            order = self._order(hook, self._call(step, index), ("assistant", content))
            try:
                found = await execute.start(db, self.runtime, self.caller, function, order)
            except (InvalidError, BadRequestError) as error:
                self._note(hook, error.detail)
            else:
                db.add(LateHookRow(execution_id=found, turn_id=self.turn.id, step=step, index=index))

    def _call(self, step: int, index: int) -> CallIdentity:
        """Tool calls count up from 0, hooks down from -1."""
        return CallIdentity(self.turn.chat_id, self.turn.id, step, -1 - index, None)

    def _order(self, hook: Hook, call: CallIdentity, said: tuple[Role, str]) -> Order:
        message: dict[str, JsonValue] = {"role": said[0], "content": said[1]}
        return Order(
            trigger=Trigger.HOOK,
            input={"message": message, **self.about},
            waits=not hook.run_async,
            timeout=None if hook.run_async else ceil(hook.timeout_seconds),
            trigger_id=ASYNC_HOOK if hook.run_async else None,
            call=call,
            location=("input",),
        )

    async def _verdict(self, hook: Hook, call: CallIdentity, said: tuple[Role, str]) -> Verdict:
        try:
            row = await self._ended(hook, call, said)
            if row.status != Status.COMPLETED:
                raise _NoVerdictError(row.error or row.status)
            return verdict_of(row.output_data)
        except _NoVerdictError as error:
            reason = str(error)
        self._note(hook, reason)
        if hook.on_timeout == "block":
            raise HookError(f"the hook '{hook.function}' must pass each message and did not: {reason}")
        return PASSES

    def _note(self, hook: Hook, reason: str) -> None:
        log.warning("hook without a result", hook=hook.function, turn=str(self.turn.id), reason=reason)

    async def _ended(self, hook: Hook, call: CallIdentity, said: tuple[Role, str]) -> ExecutionRow:
        known = await execute.of_call(self.runtime, call)
        if known is not None and f"{known.namespace}/{known.name}" != hook.function:
            raise _NoVerdictError("the agent's hooks were changed during the turn")
        execution_id = known.id if known else await self._started(hook, call, said)
        row = await execute.wait(self.runtime, execution_id, hook.timeout_seconds)
        if row.status in ENDED:
            return row
        async with self.runtime.database.unit() as db:
            await cancel_executions(db, self.runtime, ExecutionRow.id == execution_id)
        row = await execute.wait(self.runtime, execution_id, 0)
        if row.status == Status.CANCELLED:
            raise _NoVerdictError(f"it took longer than {hook.timeout_seconds:g} seconds")
        return row  # it ended at the last moment

    async def _started(self, hook: Hook, call: CallIdentity, said: tuple[Role, str]) -> UUID:
        function = self.functions.get(hook.function)
        if function is None:
            raise _NoVerdictError("the function does not exist, is not active, or the agent's owner may not execute it")
        try:
            return await execute.start_now(self.runtime, self.caller, function, self._order(hook, call, said))
        except (NotFoundError, InvalidError, BadRequestError) as error:
            raise _NoVerdictError(error.detail) from error

    async def _start(self, hook: Hook, call: CallIdentity, said: tuple[Role, str]) -> None:
        """Have an asynchronous hook begin; that it cannot is only noted."""
        try:
            await self._started(hook, call, said)
        except _NoVerdictError as error:
            self._note(hook, str(error))


def verdict_of(result: JsonValue) -> Verdict:
    """What a hook function returned. Raises an error for what is neither nothing nor an object of this form."""
    if result is None:
        return PASSES
    try:
        return Verdict.model_validate(result)
    except ValidationError as error:
        raise _NoVerdictError('it must return null, {"content": "…"} or {"block": true, "reply": "…"}') from error


def late_content(execution: ExecutionRow) -> str | None:
    """What an asynchronous hook on an answer makes of it; None for nothing."""
    if execution.status != Status.COMPLETED:
        return None
    try:
        content = verdict_of(execution.output_data).content
    except _NoVerdictError as error:
        log.warning("hook without a result", execution=str(execution.id), reason=str(error))
        return None
    return None if content is None else cleaned(content)


async def hooks_of(
    runtime: Runtime,
    caller: Caller,
    turn: TurnRow,
    agent: Resource[AgentSpec],
    lending: tuple[AgentContext, str | None],
) -> MessageHooks:
    """The hooks of a turn's agent; `lending`: what its owner lends it, and the session key of the chat."""
    context, session_key = lending
    hooks = agent.spec.hooks or Hooks()
    wanted = [hook.function for hook in (*hooks.on_user_message, *hooks.on_assistant_message)]
    usable = await lookup.lent(runtime.database, context, FUNCTION, wanted, "execute")
    about: dict[str, object] = {
        "chat_id": str(turn.chat_id),
        "agent": {"namespace": agent.namespace, "name": agent.name},
        "session_key": session_key,
        "user_id": str(turn.user_id),
    }
    functions = {function.ref: function for function in usable}
    return MessageHooks(runtime, caller, turn, hooks, functions, cast(dict[str, JsonValue], about))
