"""Dependencies over HTTP: approving packages, and seeing what became of the set they make."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field
from sqlalchemy import insert, select

from sinas_server.dependencies.approve import approve_package, withdraw_package
from sinas_server.dependencies.kind import DEPENDENCY, DependencySpec
from sinas_server.dependencies.requirement import locked_versions
from sinas_server.dependencies.sets import QUEUE
from sinas_server.dependencies.standing import Standing, State, state_of
from sinas_server.dependencies.tables import PackageSetRow
from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.job import wake
from sinas_server.kernel.routes import MAX_LIST
from sinas_server.kernel.store import Resource


class DependencyInstall(BaseModel):
    """The package to approve."""

    package_name: str = Field(min_length=1, max_length=255, description="As the package index has it, with extras.")
    version: str | None = Field(default=None, max_length=255, description="`2.1.0`, `>=2,<3`, or null for any.")


class DependencyResponse(BaseModel):
    """An approved package."""

    id: UUID = Field(description="Its id.")
    package_name: str = Field(description="Its name with extras, as indexes compare it.")
    version: str | None = Field(description="The version that was approved; null for any.")
    installed_at: datetime = Field(description="When it was approved.")
    installed_by: UUID | None = Field(description="Who approved it; null for the platform itself.")
    status: State = Field(description="How far the set is that holds it; `ready` when functions can import it.")
    message: str | None = Field(description="Why it failed, or is tried again.")
    installed_version: str | None = Field(description="The version that functions import now.")
    managed_by: str | None = Field(description="`config` or `pkg:<name>` if it is kept by one of these.")


class LockedPackage(BaseModel):
    """A package of a set."""

    name: str = Field(description="Its name.")
    version: str = Field(description="Its version.")


class PackageSetResponse(BaseModel):
    """A set of packages."""

    id: UUID = Field(description="Its id.")
    status: State = Field(description="How far it is.")
    message: str | None = Field(description="Why it failed, or is tried again.")
    requirements: list[str] = Field(description="What was approved when it was resolved.")
    left_out: dict[str, str] = Field(description="Requirements that it does without, with the reason.")
    packages: list[LockedPackage] = Field(description="All that is installed, also what others need.")
    created_at: datetime = Field(description="When it was asked for.")
    ready_at: datetime | None = Field(description="When functions could first use it.")


def _view(found: Resource[DependencySpec], standing: Standing) -> dict[str, object]:
    status, message = standing.of(found.spec.requirement)
    installed = locked_versions(standing.ready.lock) if standing.ready is not None else {}
    return {
        "id": found.id,
        "package_name": found.spec.package_name,
        "version": found.spec.version,
        "installed_at": found.created_at,
        "installed_by": None if found.owner_id == SYSTEM.id else found.owner_id,
        "status": status,
        "message": message,
        "installed_version": installed.get(found.name),
        "managed_by": found.managed_by,
    }


def _set_view(row: PackageSetRow) -> dict[str, object]:
    packages = [{"name": name, "version": version} for name, version in sorted(locked_versions(row.lock).items())]
    return {
        "id": row.id,
        "status": state_of(row),
        "message": row.message,
        "requirements": row.requirements,
        "left_out": row.left_out,
        "packages": packages,
        "created_at": row.created_at,
        "ready_at": row.ready_at,
    }


def _router() -> APIRouter:
    router = new_router(f"/{DEPENDENCY.route}", DEPENDENCY.route)

    @router.post(
        "",
        response_model=DependencyResponse,
        summary="Approve a Python package for functions",
        responses={400: {"description": "It is approved already."}},
    )
    async def approve(body: DependencyInstall, runtime: Run, db: CurrentDb, caller: CurrentCaller) -> Response:
        """Answers at once; `status` tells later when functions can import it, or why not."""
        found = await approve_package(db, runtime, caller, body.model_dump())
        return JsonAnswer(_view(found, Standing(None, None)))

    @router.get("", response_model=list[DependencyResponse], summary="List the approved Python packages")
    async def list_all(runtime: Run, db: CurrentDb, caller: CurrentCaller) -> Response:
        standing = await Standing.now(runtime)
        return JsonAnswer([_view(found, standing) for found in await store.find(db, caller, DEPENDENCY)])

    @router.delete(
        "/{dependency_id}",
        status_code=204,
        summary="Withdraw the approval of a Python package",
        responses={404: {"description": "No such approval."}},
    )
    async def withdraw(
        dependency_id: Annotated[str, Path(description="Its id, or the package's name.")],
        runtime: Run,
        db: CurrentDb,
        caller: CurrentCaller,
    ) -> None:
        """Functions that are started later cannot import it, as soon as the set without it is ready."""
        await withdraw_package(db, runtime, caller, dependency_id)

    _add_set_routes(router)
    return router


def _add_set_routes(router: APIRouter) -> None:
    @router.get("/sets", response_model=list[PackageSetResponse], summary="List the sets of packages, the newest first")
    async def list_sets(
        db: CurrentDb,
        caller: CurrentCaller,
        skip: Annotated[int, Query(ge=0, le=MAX_INT, description="How many to leave out.")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LIST, description="The most to return.")] = 20,
    ) -> Response:
        """What the approved packages were resolved to, one set for each change."""
        caller.require(DEPENDENCY.plural, "read", None)
        query = (
            select(PackageSetRow)
            .where(PackageSetRow.status != "SUPERSEDED")
            .order_by(PackageSetRow.created_at.desc())
            .offset(skip)
            .limit(limit)
        )
        return JsonAnswer([_set_view(row) for row in await db.scalars(query)])

    @router.post(
        "/sets", status_code=202, response_model=PackageSetResponse, summary="Resolve the approved packages again"
    )
    async def resolve(runtime: Run, db: CurrentDb, caller: CurrentCaller) -> Response:
        """After a failure whose reason is gone. Versions that still fit stay as they are."""
        caller.require(DEPENDENCY.plural, "update", None)
        row = (await db.execute(insert(PackageSetRow).returning(PackageSetRow))).scalar_one()
        db.after_commit(lambda: wake(runtime, QUEUE))
        return JsonAnswer(_set_view(row), 202)


router = _router()
"""Below `/api/v1`."""
