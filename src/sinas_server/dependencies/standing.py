"""How far an approved package is on its way to functions, judged by the sets of packages."""

from dataclasses import dataclass
from enum import StrEnum

from sinas_server.dependencies.sets import newest_set, ready_set
from sinas_server.dependencies.tables import PackageSetRow
from sinas_server.kernel.runtime import Runtime


class State(StrEnum):
    """How far a set of packages is."""

    PENDING = "pending"
    RESOLVING = "resolving"
    INSTALLING = "installing"
    READY = "ready"
    FAILED = "failed"


def state_of(row: PackageSetRow) -> State:
    """How far a set is."""
    if row.status == "COMPLETED":
        return State.READY if row.ready_at else State.INSTALLING
    states = {"PENDING": State.PENDING, "RUNNING": State.RESOLVING}
    return states.get(row.status, State.FAILED)


@dataclass(frozen=True)
class Standing:
    """The sets by which an approval is judged."""

    ready: PackageSetRow | None
    newest: PackageSetRow | None

    @classmethod
    async def now(cls, runtime: Runtime) -> "Standing":
        """As they are now."""
        newest = await newest_set(runtime.database)  # first: it may become the one that is ready meanwhile
        return cls(await ready_set(runtime.database), newest)

    def of(self, requirement: str) -> tuple[State, str | None]:
        """How far one requirement is, with the reason."""
        ready, newest = self.ready, self.newest
        if ready is not None and requirement in ready.requirements and requirement not in ready.left_out:
            return State.READY, None
        if newest is None or (newest.read_at and requirement not in newest.requirements):
            return State.PENDING, None
        if requirement in newest.left_out:
            return State.FAILED, newest.left_out[requirement]
        return state_of(newest), newest.message
