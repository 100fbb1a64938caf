"""What an execution in the shared pool may ask of the platform: secrets, and a person's input."""

import asyncio
from collections.abc import Mapping
from time import monotonic
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import Integer, Text, Uuid, bindparam, literal_column, null, select, update

from sinas_server.backends.sandbox import HostRefusalError
from sinas_server.backends.stream import Listener
from sinas_server.functions.execute import OURS, Standing, ours, topic
from sinas_server.functions.patience import patiently
from sinas_server.functions.tables import ExecutionRow, Status
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import BadRequestError, KeyMissingError, UnauthorizedError
from sinas_server.kernel.job import Claim, InterruptedWorkError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db
from sinas_server.kit.texts import storable
from sinas_server.secrets.resolve import resolve_secret, usable_names

LOOK_SECONDS = 5.0
"""A lost signal delays the answer to a prompt by at most this."""

_WHICH = (ExecutionRow.id == bindparam("our_id", type_=Uuid),)
_PAUSE = (
    update(ExecutionRow)
    .where(*OURS, ExecutionRow.pauses == bindparam("known_pauses", type_=Integer))
    .values(
        status=Status.AWAITING_INPUT.value,
        prompt=bindparam("new_prompt", type_=Text),
        answer=null(),
        pauses=ExecutionRow.pauses + 1,
    )
    .returning(ExecutionRow.id)
)
"""Counts the pause, so that one whose answer got lost is not done again: somebody may have said something since."""
_LOOK = select(ExecutionRow.status, ExecutionRow.attempt, ExecutionRow.answer).where(*_WHICH)
_GIVE_UP = (
    update(ExecutionRow)
    .where(*_WHICH, ExecutionRow.status == literal_column("'AWAITING_INPUT'"))
    .values(status=Status.RUNNING.value, prompt=null())
    .returning(ExecutionRow.id)
)


def answer_topic(execution_id: UUID) -> str:
    """The signal that a paused execution was given its input."""
    return f"answer:{execution_id}"


async def give_input(db: Db, runtime: Runtime, row: ExecutionRow, text: str) -> None:
    """Let a paused execution go on with `text` after this transaction. Raises `BadRequestError` if it does not wait."""
    waits = (ExecutionRow.id == row.id, ExecutionRow.status == Status.AWAITING_INPUT)
    going = {"status": Status.RUNNING, "prompt": None, "answer": text}
    found = await db.execute(
        update(ExecutionRow).where(*waits).values(**going).returning(ExecutionRow.id),
        execution_options={"synchronize_session": False},
    )
    if found.first() is None:
        await db.refresh(row)
        raise BadRequestError(f"the execution does not wait for input: it is {row.status}")
    db.after_commit(lambda: runtime.signals.signal(answer_topic(row.id)))


async def find_owner(runtime: Runtime, owner_id: UUID | None) -> Caller | None:
    """The owner of a function as he is now; None if he is gone or deactivated."""
    if owner_id is None:
        return None
    try:
        return await act_for(runtime, Principal(owner_id), "system")
    except UnauthorizedError:
        return None


class TrustedHost:
    """`backends.sandbox.Host` for one attempt at an execution."""

    def __init__(self, runtime: Runtime, claim: Claim[ExecutionRow], owner: Caller) -> None:
        self.waited = 0.0
        """Seconds in which it waited for people."""
        self.has_asked = False
        """Whether it has asked for input, so that running it anew would ask again."""
        self._pauses = claim.row.pauses
        self._one_by_one = asyncio.Lock()
        self._runtime = runtime
        self._claim = claim
        self._row = claim.row
        self._owner = owner
        self._user = Caller(claim.row.user_id, claim.row.user_email, (), via="function")

    async def get_secret(self, name: str) -> str | None:
        """The user's private secret, else the shared one, if the function's owner may use it; audited.

        Raises `HostRefusalError` for one that cannot be decrypted.
        """
        row = self._row
        detail: Mapping[str, JsonValue] = {"execution_id": str(row.id), "function": f"{row.namespace}/{row.name}"}

        async def resolve() -> str | None:
            async with self._runtime.database.unit() as db:
                try:
                    return await resolve_secret(db, self._user, self._owner, name, detail)
                except KeyMissingError as error:
                    raise HostRefusalError(error.detail) from error

        return await patiently(resolve)

    async def list_secrets(self) -> list[str]:
        """The names that `get_secret` would find."""

        async def names() -> list[str]:
            async with self._runtime.database.unit() as db:
                return await usable_names(db, self._user, self._owner)

        return await patiently(names)

    async def get_input(self, prompt: str) -> str:
        """Pause the execution and free its slot until somebody answers, or `FUNCTION_INPUT_TIMEOUT` is over."""
        async with self._one_by_one:  # its threads may all ask
            return await self._pause(storable(prompt))

    async def _pause(self, prompt: str) -> str:
        row, database, signals = self._row, self._runtime.database, self._runtime.signals
        began, self.has_asked = monotonic(), True
        async with signals.listen(answer_topic(row.id)) as listener:
            which = {**ours(row), "known_pauses": self._pauses, "new_prompt": prompt}
            await patiently(lambda: database.direct(_PAUSE, which))
            self._pauses += 1
            await signals.signal(topic(row.id), Standing(row.id, Status.AWAITING_INPUT, prompt=prompt).note())
            try:
                with self._claim.slot.left():
                    return await self._answered(listener, began)
            finally:
                self.waited += monotonic() - began

    async def _answered(self, listener: Listener, began: float) -> str:
        limit = self._runtime.settings.function_input_timeout - self.waited
        database, which = self._runtime.database, {"our_id": self._row.id}
        while True:
            [now] = await patiently(lambda: database.lookup(_LOOK, which))
            if now.status == Status.RUNNING and now.attempt == self._row.attempt and now.answer is not None:
                return str(now.answer)
            if now.status != Status.AWAITING_INPUT or now.attempt != self._row.attempt:
                raise InterruptedWorkError("the execution is no longer this worker's")
            left = began + limit - monotonic()
            given_up = left <= 0 and bool(await patiently(lambda: database.direct(_GIVE_UP, which)))
            if given_up:
                seconds = self._runtime.settings.function_input_timeout
                raise HostRefusalError(f"nobody answered within {seconds:g} seconds (FUNCTION_INPUT_TIMEOUT)")
            await listener.wait(min(LOOK_SECONDS, max(left, 0.0)))
