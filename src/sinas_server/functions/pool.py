"""What a function worker does with its sandboxes when it is told to."""

from dataclasses import asdict

from pydantic import JsonValue

from sinas_server.backends.sandbox import MemberStats, Sandbox
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


POOL_COMMANDS: dict[str, Handler] = {"sandboxes.tell": tell, "sandboxes.scale": scale, "sandboxes.reload": reload}
