"""What a pool asks of a sandbox, and of where it comes from; each driver has both."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from sinas_server.backends.sandbox import Limits


class SpawnError(Exception):
    """One sandbox could not be made; the message says why."""


class Member(Protocol):
    """A sandbox in the pool."""

    @property
    def name(self) -> str:
        """Tells it from the others of this worker."""
        ...

    @property
    def limits(self) -> Limits:
        """What it was made for."""
        ...

    @property
    def packages(self) -> str | None:
        """The hash of the set of packages it was made with."""
        ...

    @property
    def executions(self) -> int:
        """How many it has been used for."""
        ...

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call when it has died by itself."""
        ...

    def kill(self) -> None:
        """End it, and everything that runs in it."""
        ...

    async def bury(self) -> None:
        """Wait for its end and free what it held."""
        ...

    async def renewed(self) -> bool:
        """Wait until it can be used again after an execution; False if it cannot."""
        ...


M_co = TypeVar("M_co", bound=Member, covariant=True)


class Source(Protocol[M_co]):
    """Where sandboxes come from."""

    @property
    def broken(self) -> bool:
        """Whether it must be repaired before it can make any."""
        ...

    async def repair(self) -> None:
        """Bring it back. Raises `SandboxUnavailable`."""
        ...

    async def make(self, limits: Limits) -> M_co:
        """A sandbox that nobody has used. Raises `SpawnError`."""
        ...

    async def close(self) -> None:
        """End it, with all it made."""
        ...
