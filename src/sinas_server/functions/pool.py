"""What a function worker does with its sandboxes when it is told to."""

from dataclasses import asdict

from pydantic import JsonValue

from sinas_server.backends.sandbox import MemberStats, Sandbox, SandboxUnavailable
from sinas_server.functions.shared_workers import container_name
from sinas_server.kernel.command import Handler, Json
from sinas_server.kernel.runtime import Runtime


def _sandbox(runtime: Runtime) -> Sandbox:
    if runtime.sandbox is None:
        raise ValueError("it runs no functions")
    return runtime.sandbox


def _described(members: tuple[MemberStats, ...]) -> list[JsonValue]:
    return [asdict(member) for member in members]


async def tell(runtime: Runtime, _: Json) -> Json:
    """The pool now."""
    sandbox = _sandbox(runtime)
    stats = sandbox.stats()
    return {
        "driver": str(sandbox.level.name),
        "idle": stats.idle,
        "in_use": stats.in_use,
        "total": stats.total,
        "max_size": stats.max_size,
        "max_executions": stats.max_executions,
        "idle_containers": _described(stats.idle_members),
        "in_use_containers": _described(stats.in_use_members),
    }


async def scale(runtime: Runtime, arguments: Json) -> Json:
    """Keep `target` sandboxes."""
    sandbox, target = _sandbox(runtime), int(str(arguments["target"]))
    previous = sandbox.stats().total
    return {"previous": previous, "current": await sandbox.scale(target)}


async def reload(runtime: Runtime, _: Json) -> Json:
    """Make the idle sandboxes anew."""
    sandbox = _sandbox(runtime)
    idle = sandbox.stats().idle
    return {"idle": idle, "renewed": await sandbox.reload()}


def _restarting(runtime: Runtime, name: str) -> tuple[Sandbox, str]:
    """Who would restart what has this name, and what it calls it."""
    shared = container_name(runtime.worker_name, "")
    if runtime.shared_pool is not None and name.startswith(shared):
        return runtime.shared_pool, name.removeprefix(shared)
    return _sandbox(runtime), name


async def find(runtime: Runtime, arguments: Json) -> Json:
    """Whether `restart` would find something of this name."""
    pool, name = _restarting(runtime, str(arguments["name"]))
    try:
        return {"found": await pool.has(name)}
    except SandboxUnavailable as error:
        raise ValueError(str(error)) from error


async def restart(runtime: Runtime, arguments: Json) -> Json:
    """Restart the sandbox, the shared worker or, with an engine, the platform's container of this name."""
    pool, name = _restarting(runtime, str(arguments["name"]))
    try:
        return {"over": await pool.restart(name)}
    except SandboxUnavailable as error:
        raise ValueError(str(error)) from error


POOL_COMMANDS: dict[str, Handler] = {
    "sandboxes.tell": tell,
    "sandboxes.scale": scale,
    "sandboxes.reload": reload,
    "containers.find": find,
    "containers.restart": restart,
}
