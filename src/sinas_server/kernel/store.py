"""Reading and writing resources of any kind: plain functions over the one resources table."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic
from uuid import UUID

import orjson
from pydantic import ValidationError
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from sinas_server.kernel import references
from sinas_server.kernel.access import Caller, OwnedColumns
from sinas_server.kernel.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    KeyMissingError,
    NotFoundError,
    PreconditionFailedError,
)
from sinas_server.kernel.kind import Kind, S
from sinas_server.kernel.sealed import seal, unseal
from sinas_server.kernel.secret import PLAIN, SecretContext
from sinas_server.kernel.tables import ResourceRow, ResourceVersionRow
from sinas_server.kernel.unit import Database, Db
from sinas_server.kit.places import place_in

COLUMNS = OwnedColumns((ResourceRow.namespace, ResourceRow.name), ResourceRow.owner_id)
NAME_ONLY = OwnedColumns((ResourceRow.name,), ResourceRow.owner_id)


@dataclass(frozen=True)
class Resource(Generic[S]):
    """A stored resource with its spec parsed: what every slice works with."""

    id: UUID
    kind: str
    namespace: str
    name: str
    owner_id: UUID | None
    spec: S
    is_active: bool
    version: int
    checksum: str
    managed_by: str | None
    config_name: str | None
    config_checksum: str | None
    created_at: datetime
    created_by: UUID | None
    updated_at: datetime
    updated_by: UUID | None
    warnings: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True)
class Change:
    """What an update asks for; None leaves things as they are."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the spec in plain form."""
    namespace: str | None = None
    name: str | None = None
    is_active: bool | None = None
    if_version: int | None = None
    managed: "Managed | None" = None


AnyResource = Resource[Any]
"""A resource, whatever its spec."""


@dataclass(frozen=True)
class Managed:
    """By what a resource is kept: `config` or `pkg:<name>`, and the name of that configuration."""

    by: str
    config_name: str | None = None


def plain(spec: S) -> dict[str, Any]:
    """A spec as data, secrets readable: only for building another spec."""
    return spec.model_dump(by_alias=True, context=PLAIN)


def shown(spec: S) -> dict[str, Any]:
    """A spec as answers and exports show it: JSON, without the secrets."""
    return spec.model_dump(mode="json", by_alias=True, exclude=set(spec.secret_fields()))


def fingerprint(db: Db, spec: S) -> str:
    """The checksum of a spec (SHA-256, hex); a changed secret changes it, but it reveals nothing."""
    data = spec.model_dump(mode="json", by_alias=True, context=SecretContext("digest", db.sealer))
    return hashlib.sha256(orjson.dumps(data, option=orjson.OPT_SORT_KEYS)).hexdigest()


def validated(kind: Kind[S], values: Mapping[str, Any], location: tuple[str | int, ...] = ("body",)) -> S:
    """A spec from plain data. Raises `InvalidError` with each field and reason below `location`."""
    try:
        return kind.spec.model_validate(values, context=PLAIN)
    except ValidationError as error:
        problems = [
            ((*location, *place_in(values, item["loc"], missing=item["type"] == "missing")), item["msg"])
            for item in error.errors(include_url=False)
        ]
        raise InvalidError(problems) from error


def load(db: Db | Database, kind: Kind[S], row: ResourceRow, *, lenient: bool = False) -> Resource[S]:
    """The resource behind a row. Raises `KeyMissingError` for secrets that cannot be read, unless `lenient`."""
    spec, problems = unseal(db.sealer, kind, row)
    if problems and not lenient:
        raise KeyMissingError(problems[0])
    return Resource(
        id=row.id,
        kind=row.kind,
        namespace=row.namespace,
        name=row.name,
        owner_id=row.owner_id,
        spec=spec,
        is_active=row.is_active,
        version=row.version,
        checksum=row.checksum,
        managed_by=row.managed_by,
        config_name=row.config_name,
        config_checksum=row.config_checksum,
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
        warnings=problems,
    )


def _scope(kind: Kind[S], owner: UUID | None) -> str:
    return str(owner) if kind.per_user else ""


async def _row(db: Db, caller: Caller, kind: Kind[S], namespace: str, name: str, *, lock: bool = False) -> ResourceRow:
    """The row behind a name (of a kind without namespaces: or behind an id). Raises `NotFoundError`."""
    query = select(ResourceRow).where(
        ResourceRow.kind == kind.name, ResourceRow.deleted_at.is_(None), ResourceRow.scope == _scope(kind, caller.id)
    )
    if lock:  # what the session read before the lock may be old
        query = query.with_for_update().execution_options(populate_existing=True)
    row = await db.scalar(query.where(ResourceRow.namespace == namespace, ResourceRow.name == name))
    if row is None and not kind.namespaced and (row_id := _as_uuid(name)):
        row = await db.scalar(query.where(ResourceRow.id == row_id))
    if row is None:
        raise NotFoundError(f"{kind.called(namespace, name)} not found")
    return row


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


async def read(db: Db, caller: Caller, kind: Kind[S], namespace: str, name: str, action: str = "read") -> Resource[S]:
    """One resource by name. Raises `NotFoundError`, then `ForbiddenError`."""
    row = await _row(db, caller, kind, namespace, name)
    caller.require(kind.plural, action, row.owner_id, *kind.where(row.namespace, row.name))
    return load(db, kind, row)


async def use(db: Db, caller: Caller, kind: Kind[S], namespace: str, name: str, action: str) -> Resource[S]:
    """One resource at a runtime door: like `read`, but an inactive one is not found."""
    resource = await read(db, caller, kind, namespace, name, action)
    if not resource.is_active:
        raise NotFoundError(f"{kind.called(resource.namespace, resource.name)} is not active")
    return resource


async def fetch(db: Db, kind: Kind[S], resource_id: UUID) -> Resource[S] | None:
    """One resource by id for the platform's own work, without asking for permissions; None if it is gone."""
    row = await db.scalar(
        select(ResourceRow).where(
            ResourceRow.id == resource_id, ResourceRow.kind == kind.name, ResourceRow.deleted_at.is_(None)
        )
    )
    return None if row is None else load(db, kind, row)


@dataclass(frozen=True)
class Filter:
    """Which resources a list shows."""

    namespace: str | None = None
    action: str = "read"
    active_only: bool = False
    deleted: bool = False
    managed_only: bool = False
    skip: int = 0
    limit: int | None = None


EVERYTHING = Filter()


async def find(db: Db, caller: Caller, kind: Kind[S], only: Filter = EVERYTHING) -> list[Resource[S]]:
    """The resources the caller may see, by namespace and name: exactly those that `read` would allow."""
    columns = COLUMNS if kind.namespaced else NAME_ONLY
    query = (
        select(ResourceRow)
        .where(ResourceRow.kind == kind.name, ResourceRow.scope == _scope(kind, caller.id))
        .where(caller.visible(kind.plural, only.action, columns))
        .where(ResourceRow.deleted_at.is_not(None) if only.deleted else ResourceRow.deleted_at.is_(None))
        .order_by(ResourceRow.namespace, ResourceRow.name, ResourceRow.id)
        .offset(only.skip)
        .limit(only.limit)
    )
    if only.namespace is not None:
        query = query.where(ResourceRow.namespace == only.namespace)
    if only.active_only:
        query = query.where(ResourceRow.is_active)
    if only.managed_only:
        query = query.where(ResourceRow.managed_by.is_not(None))
    return [load(db, kind, row, lenient=True) for row in await db.scalars(query)]


async def create(
    db: Db, caller: Caller, kind: Kind[S], name: tuple[str, str], spec: S, change: Change | None = None
) -> Resource[S]:
    """Store a new resource owned by the caller. Raises `AlreadyExistsError`, `InvalidError` for dangling references."""
    asked = change or Change()
    namespace, own_name = name
    caller.require(kind.plural, "create", caller.id, *kind.where(namespace, own_name))
    checksum = fingerprint(db, spec)
    values = {
        "kind": kind.name,
        "scope": _scope(kind, caller.id),
        "namespace": namespace,
        "name": own_name,
        "owner_id": caller.id,
        "created_by": caller.id,
        "updated_by": caller.id,
        "spec": seal(db.sealer, spec),
        "is_active": asked.is_active is not False,
        "checksum": checksum,
        **_managed_values(asked.managed, checksum),
    }
    try:
        async with db.begin_nested():
            row = (await db.execute(insert(ResourceRow).values(**values).returning(ResourceRow))).scalar_one()
    except IntegrityError as error:
        raise AlreadyExistsError(f"{kind.called(namespace, own_name)} already exists") from error
    return await _written(db, caller, kind, None, row)


def _managed_values(managed: Managed | None, checksum: str) -> dict[str, Any]:
    if managed is None:
        return {}
    return {"managed_by": managed.by, "config_name": managed.config_name, "config_checksum": checksum}


async def _written(db: Db, caller: Caller, kind: Kind[S], old: Resource[S] | None, row: ResourceRow) -> Resource[S]:
    """What follows every write: the version kept, references recorded, the slice told."""
    new = load(db, kind, row)
    warnings = await references.record(db, row.id, list(kind.references(new.spec)))
    await db.execute(
        insert(ResourceVersionRow).values(
            resource_id=row.id,
            version=row.version,
            namespace=row.namespace,
            name=row.name,
            spec=row.spec,
            is_active=row.is_active,
            created_by=caller.id,
        )
    )
    db.actor = caller
    await kind.on_change(db, old, new)
    return replace(new, warnings=tuple(warnings))


async def change(db: Db, caller: Caller, kind: Kind[S], namespace: str, name: str, asked: Change) -> Resource[S]:
    """Update a resource: merge, validate, store the next version. Raises 404, 403, 412, 422; 400 for a taken name."""
    row = await _row(db, caller, kind, namespace, name, lock=True)
    where = kind.where(row.namespace, row.name)
    caller.require(kind.plural, "update", row.owner_id, *where)
    if asked.if_version is not None and asked.if_version != row.version:
        raise PreconditionFailedError(f"{kind.called(*_pair(row))} is at version {row.version}, not {asked.if_version}")
    old = load(db, kind, row, lenient=asked.values.keys() >= kind.spec.secret_fields())
    spec = validated(kind, {**plain(old.spec), **asked.values})
    values = {**_next(db, row, spec, asked), "updated_by": caller.id}
    renamed = (values["namespace"], values["name"]) != _pair(row)
    if renamed:
        caller.require(kind.plural, "update", row.owner_id, *kind.where(values["namespace"], values["name"]))
        await references.refuse_if_used(db, row, "rename")
    if (
        not renamed
        and values["checksum"] == row.checksum
        and values["is_active"] == row.is_active
        and not asked.managed
    ):
        return old
    statement = update(ResourceRow).where(ResourceRow.id == row.id).values(**values).returning(ResourceRow)
    try:
        async with db.begin_nested():
            updated = (await db.execute(statement, execution_options={"populate_existing": True})).scalar_one()
    except IntegrityError as error:
        taken = kind.called(values["namespace"], values["name"])
        raise AlreadyExistsError(f"{taken} already exists") from error
    return await _written(db, caller, kind, old, updated)


def _pair(row: ResourceRow) -> tuple[str, str]:
    return row.namespace, row.name


def _next(db: Db, row: ResourceRow, spec: S, asked: Change) -> dict[str, Any]:
    """The columns of the next version. Editing detaches from a package; what a config keeps stays kept and drifts."""
    checksum = fingerprint(db, spec)
    detached = {"managed_by": None} if (row.managed_by or "").startswith("pkg:") else {}
    return {
        "namespace": row.namespace if asked.namespace is None else asked.namespace,
        "name": row.name if asked.name is None else asked.name,
        "spec": seal(db.sealer, spec),
        "is_active": row.is_active if asked.is_active is None else asked.is_active,
        "checksum": checksum,
        "version": row.version + 1,
        "updated_at": func.now(),
        **(_managed_values(asked.managed, checksum) if asked.managed else detached),
    }


async def delete(
    db: Db, caller: Caller, kind: Kind[S], namespace: str, name: str, if_version: int | None = None
) -> None:
    """Delete a resource: its name is free at once, and it can be restored for a while. Raises 404, 403, 409, 412."""
    row = await _row(db, caller, kind, namespace, name, lock=True)
    caller.require(kind.plural, "delete", row.owner_id, *kind.where(row.namespace, row.name))
    if if_version is not None and if_version != row.version:
        raise PreconditionFailedError(f"{kind.called(*_pair(row))} is at version {row.version}, not {if_version}")
    await references.refuse_if_used(db, row, "delete")
    old = load(db, kind, row, lenient=True)
    await db.execute(update(ResourceRow).where(ResourceRow.id == row.id).values(deleted_at=func.now()))
    db.actor = caller
    await kind.on_change(db, old, None)


async def undelete(db: Db, caller: Caller, kind: Kind[S], namespace: str, name: str) -> Resource[S]:
    """Bring back what was last deleted under this name. Raises 404, 403, or 409 if the name is taken again."""
    query = (
        select(ResourceRow)
        .where(ResourceRow.kind == kind.name, ResourceRow.scope == _scope(kind, caller.id))
        .where(ResourceRow.namespace == namespace, ResourceRow.name == name, ResourceRow.deleted_at.is_not(None))
        .order_by(ResourceRow.deleted_at.desc())
        .limit(1)
        .with_for_update()
    )
    row = await db.scalar(query)
    if row is None:
        raise NotFoundError(f"no deleted {kind.called(namespace, name)} can be restored")
    caller.require(kind.plural, "delete", row.owner_id, *kind.where(namespace, name))
    values = {"deleted_at": None, "version": row.version + 1, "updated_at": func.now(), "updated_by": caller.id}
    statement = update(ResourceRow).where(ResourceRow.id == row.id).values(**values).returning(ResourceRow)
    try:
        async with db.begin_nested():
            restored = (await db.execute(statement, execution_options={"populate_existing": True})).scalar_one()
    except IntegrityError as error:
        raise ConflictError(f"{kind.called(namespace, name)} exists again; rename or delete it first") from error
    return await _written(db, caller, kind, None, restored)


async def versions(
    db: Db, caller: Caller, kind: Kind[S], namespace: str, name: str
) -> list[tuple[ResourceVersionRow, S]]:
    """Every version of a resource, the newest first."""
    resource = await read(db, caller, kind, namespace, name)
    rows = await db.scalars(
        select(ResourceVersionRow)
        .where(ResourceVersionRow.resource_id == resource.id)
        .order_by(ResourceVersionRow.version.desc())
    )
    return [(row, unseal(db.sealer, kind, row)[0]) for row in rows]


async def restore(db: Db, caller: Caller, kind: Kind[S], namespace: str, name: str, version: int) -> Resource[S]:
    """Make an earlier version the next one. Raises 404 if there is no such version."""
    for row, spec in await versions(db, caller, kind, namespace, name):
        if row.version == version:
            if problems := unseal(db.sealer, kind, row)[1]:
                raise KeyMissingError(problems[0])
            return await change(db, caller, kind, namespace, name, Change(plain(spec), is_active=row.is_active))
    raise NotFoundError(f"{kind.called(namespace, name)} has no version {version}")
