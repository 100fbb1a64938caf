"""The containers that the platform itself runs in: those of the Compose project of this process."""

import asyncio
import re
import socket
from pathlib import Path

import structlog

from sinas_server.backends.sandbox.docker.engine import Engine, EngineError, Found

log = structlog.get_logger()

PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"
STOP_SECONDS = 15
"""How long what runs in a container has to stop in order."""
PATIENCE_SECONDS = 5.0
"""How long the end of a restart is waited for: what is restarted may be part of the way on which the answer goes."""
ID_LENGTH = 12
"""Of an id that is a host name."""


def own_container() -> str:
    """The id of the container that this process runs in, as the mounts that engines make tell; else the host's name."""
    mounts = Path("/proc/self/mountinfo")  # Linux only
    text = mounts.read_text() if mounts.exists() else ""
    found = re.search(r"/containers/([0-9a-f]{64})/hostname /etc/hostname ", text)
    return found.group(1) if found else socket.gethostname()


class Deployment:
    """What the engine may be told to restart: nothing but the project that this process belongs to."""

    def __init__(self, engine: Engine, own: str) -> None:
        """`own` is the name or id of this process' container."""
        self._engine = engine
        self._own = own
        self._restarts: set[asyncio.Task[None]] = set()

    async def find(self, name: str) -> Found | None:
        """The container of this name or id, or the only one of a service of this name. Raises `EngineError`."""
        project = (await self._engine.labels(self._own)).get(PROJECT)
        if project is None:
            return None
        containers = await self._engine.find({PROJECT: project})
        named = [each for each in containers if _is_called(each, name)]
        of_service = [each for each in containers if each["labels"].get(SERVICE) == name]
        return next(iter(named), of_service[0] if len(of_service) == 1 else None)

    async def restart(self, name: str) -> bool:
        """Restart it; False if that goes on by itself. Raises `EngineError`."""
        found = await self.find(name)
        if found is None:
            raise EngineError(f"there is no container {name} of this deployment")
        log.info("restarting a container", container=found["name"])
        task = asyncio.create_task(self._engine.restart(found["id"], STOP_SECONDS))
        self._restarts.add(task)
        task.add_done_callback(self._over)
        if _is_called(found, self._own):  # the answer has to go first
            return False
        await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
        if not task.done():
            return False
        await task
        return True

    def _over(self, task: "asyncio.Task[None]") -> None:
        self._restarts.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a container was not restarted", error=str(error))


def _is_called(container: Found, name: str) -> bool:
    return name == container["name"] or (len(name) >= ID_LENGTH and container["id"].startswith(name))
