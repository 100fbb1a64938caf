"""Approving packages and withdrawing them, over HTTP or by an agent: either asks for another set of packages."""

from collections.abc import Mapping

from sinas_server.dependencies.kind import DEPENDENCY, DependencySpec
from sinas_server.dependencies.requirement import name_of
from sinas_server.dependencies.sets import QUEUE
from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.job import wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.unit import Db


async def approve_package(
    db: Db, runtime: Runtime, caller: Caller, values: Mapping[str, object]
) -> Resource[DependencySpec]:
    """Approve a package by `package_name` and `version`. Raises 403, 422, and 400 if it is approved already."""
    spec = store.validated(DEPENDENCY, dict(values))
    found = await store.create(db, caller, DEPENDENCY, ("", name_of(values)), spec)
    db.after_commit(lambda: wake(runtime, QUEUE))
    return found


async def withdraw_package(db: Db, runtime: Runtime, caller: Caller, name: str) -> None:
    """Withdraw the approval of this name or id. Raises 404 and 403."""
    await store.delete(db, caller, DEPENDENCY, "", name)
    db.after_commit(lambda: wake(runtime, QUEUE))
