"""The Docker engine: what it can do, and the life of containers in it."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypedDict, cast

import aiodocker
import aiohttp
from pydantic import JsonValue

from sinas_server.backends.sandbox import SandboxUnavailable
from sinas_server.backends.sandbox.member import SpawnError

REQUEST_SECONDS = 60.0
NO_CONNECTION = 900
"""What aiodocker gives as the status when there was none."""
SOUND_RUNC = {(1, 2): 8, (1, 3): 3}
"""The patch releases from which on CVE-2025-31133, -52565 and -52881 are mended; all of 1.4 and later are."""

Json = dict[str, JsonValue]


class EngineError(SpawnError):
    """The engine refused or did not answer; the message says what."""


@dataclass(frozen=True)
class Facts:
    """What an engine says of itself."""

    version: str
    runtimes: frozenset[str]
    runc: str
    """Empty if it does not tell."""


class Found(TypedDict):
    """A container in a list."""

    id: str
    name: str
    state: str
    labels: dict[str, str]
    created: float


class _Labelled(TypedDict):
    Labels: dict[str, str] | None


class _Shown(TypedDict, total=False):
    """What the engine says of a container; nothing of one that does not exist."""

    Config: _Labelled
    Mounts: list[dict[str, str]]


@asynccontextmanager
async def _asking(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            yield
    except aiodocker.DockerError as error:
        if error.status == NO_CONNECTION:
            raise EngineError(f"the Docker engine does not answer: {error.message}") from error
        raise EngineError(f"the Docker engine could not {what}: {error.message}") from error
    except TimeoutError as error:
        raise EngineError(f"the Docker engine did not {what} within {REQUEST_SECONDS:g} s") from error
    except (OSError, aiohttp.ClientError, RuntimeError) as error:
        raise EngineError(f"the Docker engine does not answer: {error}") from error


def old_runc(version: str) -> bool:
    """Whether a version of runc may have the escapes of 2025; distributions mend them without a new number."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        return False
    major, minor, patch = map(int, found.groups())
    return (major, minor) < (1, 2) or patch < SOUND_RUNC.get((major, minor), 0)


class Engine:
    """A connection to an engine. Closed with `close`."""

    def __init__(self, host: str | None) -> None:
        """`host` as in `DOCKER_HOST`; None for that variable, or the socket in its usual place.

        Raises `SandboxUnavailable`.
        """
        try:
            self._docker = aiodocker.Docker(url=host)
        except (ValueError, AssertionError, OSError) as error:
            raise SandboxUnavailable(f"there is no Docker engine: {error or 'no socket in the usual place'}") from error

    async def facts(self) -> Facts:
        """What the engine is. Raises `EngineError`."""
        async with _asking("tell its version"):
            version = await self._docker.version()
            info = await self._docker.system.info()
        components = {part["Name"]: part["Version"] for part in version.get("Components", [])}
        return Facts(
            version=version["Version"],
            runtimes=frozenset(info.get("Runtimes", {})),
            runc=components.get("runc", ""),
        )

    async def has_image(self, name: str) -> bool:
        """Whether the image is there. Raises `EngineError`."""
        async with _asking("look for the image"):
            try:
                await self._docker.images.inspect(name)
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return False
                raise
        return True

    async def create(self, name: str, config: Json) -> str:
        """A new container; gives its id. Raises `EngineError`."""
        async with _asking("create a container"):
            return (await self._docker.containers.create(config, name=name)).id

    async def attach(self, container: str) -> aiodocker.stream.Stream:
        """Standard input, output and error of a container, to be had before it starts. Raises `EngineError`."""
        async with _asking("attach to a container"):
            stream = self._docker.containers.container(container).attach(stdin=True, stdout=True, stderr=True)
            try:
                return await stream.__aenter__()
            except BaseException:
                with suppress(AssertionError):  # it has no connection any more
                    await stream.close()
                raise

    async def start(self, container: str) -> None:
        """Start it. Raises `EngineError`."""
        async with _asking("start a container"):
            await self._docker.containers.container(container).start()

    async def remove(self, container: str) -> None:
        """Kill it and remove it, if it is still there. Raises `EngineError`."""
        async with _asking("remove a container"):
            try:
                await self._docker.containers.container(container).delete(force=True, v=True)
            except aiodocker.DockerError as error:
                if error.status not in {404, 409}:  # gone, or being removed
                    raise

    async def restart(self, container: str, seconds: int) -> None:
        """Stop it within `seconds`, and start it. Raises `EngineError`."""
        async with _asking("restart a container"):
            await self._docker.containers.container(container).restart(timeout=seconds)

    async def find(self, labels: Mapping[str, str]) -> list[Found]:
        """Containers with these labels, also those that do not run. Raises `EngineError`."""
        wanted = [f"{name}={value}" for name, value in labels.items()]
        async with _asking("list containers"):
            found = await self._docker.containers.list(all=True, filters={"label": wanted})
        return [
            Found(
                id=each.id,
                name=str(each["Names"][0]).removeprefix("/"),
                state=str(each["State"]),
                labels=dict(each["Labels"]),
                created=float(each["Created"]),
            )
            for each in found
        ]

    async def mounts(self, container: str) -> dict[str, str]:
        """Where the directories of a container are on the engine's machine: inside path to outside path.

        Empty for a container that does not exist. Raises `EngineError`.
        """
        mounts = (await self._show(container)).get("Mounts", [])
        return {mount["Destination"]: mount["Source"] for mount in mounts if mount.get("Source")}

    async def labels(self, container: str) -> dict[str, str]:
        """The labels of a container; empty for one that does not exist. Raises `EngineError`."""
        shown = await self._show(container)
        return (shown["Config"]["Labels"] or {}) if shown else {}

    async def _show(self, container: str) -> _Shown:
        async with _asking("inspect a container"):
            try:
                return cast(_Shown, await self._docker.containers.container(container).show())
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return {}
                raise

    async def close(self) -> None:
        """Close the connections."""
        await self._docker.close()
