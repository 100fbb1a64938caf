"""Secrets over HTTP: set, listed without their values, and deleted."""

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import AlreadyExistsError, ForbiddenError, NotFoundError
from sinas_server.kernel.http import CurrentCaller, CurrentDb, JsonAnswer, new_router
from sinas_server.kernel.kind import Kind
from sinas_server.kernel.routes import Stored, answer, asked, spec_of, view
from sinas_server.kernel.secret import PLAIN, Secret
from sinas_server.kernel.store import Change
from sinas_server.kernel.unit import Db
from sinas_server.secrets.kind import (
    MAX_VALUE,
    PRIVATE_SECRET,
    SECRET,
    SecretResource,
    SecretSpec,
    Visibility,
    of_visibility,
)

T = TypeVar("T")
Name = Annotated[str, Path(description="Its name, or its id.")]
Which = Annotated[
    Visibility | None,
    Query(
        description="Which of the two. Default: the shared one, if the caller may do this to it, else his private one."
    ),
]
MISSING: dict[int | str, dict[str, object]] = {404: {"description": "No such secret."}}


class SecretCreate(SecretSpec):
    """What a name shall stand for."""

    name: str = Field(min_length=1, max_length=255, pattern=SECRET.name_pattern, description="Its name.")


class SecretResponse(Stored):
    """A secret without its value."""

    name: str = Field(description="Its name.")
    description: str | None = Field(description="What it is for.")
    visibility: Visibility = Field(description="Whether it is `shared` by the installation or `private` to its owner.")


class SecretUpdate(BaseModel):
    """What changes; absent fields stay as they are."""

    value: Secret | None = Field(
        default=None, min_length=1, max_length=MAX_VALUE, description="The new credential; it takes effect at once."
    )
    description: str | None = Field(default=None, description="What it is for; null clears it.")


async def _one(db: Db, visibility: Visibility | None, step: Callable[[Kind[SecretSpec]], Awaitable[T]]) -> T:
    """What a step gives; with no visibility, of the shared secret if the caller may, else of his private one."""
    if visibility is not None:
        return await step(of_visibility(visibility))
    try:
        async with db.begin_nested():  # a refusal may come after the first writes
            return await step(SECRET)
    except (NotFoundError, ForbiddenError) as error:
        try:
            return await step(PRIVATE_SECRET)
        except NotFoundError:
            raise error from None


async def _put(db: Db, caller: Caller, name: str, spec: SecretSpec, change: Change) -> SecretResource:
    """Create a secret, or give the one there is another value."""
    kind = of_visibility(spec.visibility)
    try:
        return await store.create(db, caller, kind, ("", name), spec)
    except AlreadyExistsError:
        return await store.change(db, caller, kind, "", name, change)


def _router() -> APIRouter:
    router = new_router("/secrets", SECRET.plural)

    @router.post("", status_code=201, response_model=SecretResponse, summary="Create a secret, or replace its value")
    async def create(body: SecretCreate, db: CurrentDb, caller: CurrentCaller) -> Response:
        """By name and visibility: where one exists, the value is replaced, and the description if one is given."""
        given = asked(body).values
        change = Change({key: given[key] for key in ("value", "description") if key in given}, is_active=True)
        return answer(SECRET, await _put(db, caller, body.name, spec_of(SECRET, body), change), 201)

    @router.get("", response_model=list[SecretResponse], summary="List secrets, without their values")
    async def list_all(db: CurrentDb, caller: CurrentCaller) -> Response:
        """The shared ones that the caller may read, and his own private ones."""
        found = [*await store.find(db, caller, SECRET), *await store.find(db, caller, PRIVATE_SECRET)]
        found.sort(key=lambda secret: (secret.name, secret.spec.visibility))
        return JsonAnswer([view(SECRET, secret) for secret in found])

    @router.get("/{name}", response_model=SecretResponse, summary="Get a secret, without its value", responses=MISSING)
    async def get(name: Name, db: CurrentDb, caller: CurrentCaller, visibility: Which = None) -> Response:
        return answer(SECRET, await _one(db, visibility, lambda kind: store.read(db, caller, kind, "", name)))

    @router.put("/{name}", response_model=SecretResponse, summary="Change the value or description", responses=MISSING)
    async def update(
        name: Name, body: SecretUpdate, db: CurrentDb, caller: CurrentCaller, visibility: Which = None
    ) -> Response:
        values = body.model_dump(exclude_unset=True, context=PLAIN)
        change = Change({key: given for key, given in values.items() if given is not None or key == "description"})
        return answer(SECRET, await _one(db, visibility, lambda kind: store.change(db, caller, kind, "", name, change)))

    @router.delete("/{name}", status_code=204, summary="Delete a secret for good", responses=MISSING)
    async def delete(name: Name, db: CurrentDb, caller: CurrentCaller, visibility: Which = None) -> None:
        await _one(db, visibility, lambda kind: store.delete(db, caller, kind, "", name))

    return router


router = _router()
