"""The routes every kind has below `/api/v1`. A slice mounts them and adds its own with ordinary decorators."""

import re
from datetime import datetime
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from sinas_server.kernel import lookup, store
from sinas_server.kernel.errors import InvalidError
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.kind import Kind, S, Spec
from sinas_server.kernel.secret import PLAIN
from sinas_server.kernel.store import Change, Filter, Resource

MAX_LIST = 1000
IfMatch = Annotated[
    str | None, Header(description='Refuse with 412 unless the stored version is this one, e.g. `"3"`.')
]


class Stored(BaseModel):
    """What every answer carries beside the declared fields."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    id: UUID = Field(description="Its id, which never changes.")
    user_id: UUID | None = Field(description="Its owner.")
    is_active: bool = Field(description="Whether it can be used; an inactive one is listed but answers 404 at runtime.")
    version: int = Field(description="Counts its changes; the ETag.")
    managed_by: str | None = Field(description="`config` or `pkg:<name>` if it is kept by one of these.")
    config_name: str | None = Field(description="The configuration that keeps it.")
    config_checksum: str | None = Field(description="Its checksum when it was last applied; another one means drift.")
    created_at: datetime = Field(description="When it was created.")
    created_by: UUID | None = Field(description="Who created it.")
    updated_at: datetime = Field(description="When it was last changed.")
    updated_by: UUID | None = Field(description="Who last changed it.")
    warnings: list[str] = Field(default=[], description="References that point to nothing yet.")


def icon_url(icon: object) -> str | None:
    """The address of an icon given as `url:<address>`."""
    return icon.removeprefix("url:") if isinstance(icon, str) and icon.startswith("url:") else None


def view(kind: Kind[S], resource: Resource[S]) -> dict[str, Any]:
    """A resource as answers show it."""
    names = {"namespace": resource.namespace, "name": resource.name} if kind.namespaced else {"name": resource.name}
    spec = store.shown(resource.spec)
    icon = {"icon_url": icon_url(spec["icon"])} if "icon" in spec else {}
    return {
        "id": resource.id,
        "user_id": resource.owner_id,
        **names,
        **spec,
        **icon,
        "is_active": resource.is_active,
        "version": resource.version,
        "managed_by": resource.managed_by,
        "config_name": resource.config_name,
        "config_checksum": resource.config_checksum,
        "created_at": resource.created_at,
        "created_by": resource.created_by,
        "updated_at": resource.updated_at,
        "updated_by": resource.updated_by,
        "warnings": list(resource.warnings),
    }


def answer(kind: Kind[S], resource: Resource[S], status: int = 200) -> Response:
    """The HTTP answer with one resource and its ETag."""
    return JsonAnswer(view(kind, resource), status, headers={"ETag": f'"{resource.version}"'})


def expected_version(if_match: str | None) -> int | None:
    """The version that `If-Match` names; None for no header or `*`."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = re.fullmatch(r'(?:W/)?"([0-9]{1,18})"|([0-9]{1,18})', if_match.strip())
    if found is None:
        raise InvalidError([(("header", "If-Match"), 'must be an ETag as answers carry it, like "3"')])
    return int(found[1] or found[2])


class Models:
    """The request and response models of a kind, made from its spec."""

    def __init__(self, kind: Kind[Any]) -> None:
        title = kind.spec.__name__.removesuffix("Spec")
        names = _names(kind)
        active: Any = (bool, Field(default=True, description="Whether it can be used."))
        self.create: Any = create_model(
            f"{title}Create",
            __base__=kind.spec,
            **names,
            **({} if "is_active" in kind.spec.model_fields else {"is_active": active}),
        )
        optional: dict[str, Any] = {key: _optional(info) for key, info in self.create.model_fields.items()}
        self.update: Any = create_model(f"{title}Update", __base__=Spec, **optional)
        secret = kind.spec.secret_fields()
        visible: dict[str, Any] = {
            key: (info.annotation, info) for key, info in kind.spec.model_fields.items() if key not in secret
        }
        if "icon" in visible:
            visible["icon_url"] = (str | None, Field(default=None, description="Where the icon can be fetched."))
        self.read: Any = create_model(f"{title}Response", __base__=Stored, **_plain_names(kind), **visible)
        fields: dict[str, Any] = {
            "id": (UUID, Field(description="Id of this version.")),
            f"{kind.name}_id": (UUID, Field(description=f"The {kind.label}.")),
            "version": (int, Field(description="Its number, counted from 1.")),
            "created_at": (datetime, Field(description="When it was made.")),
            "created_by": (UUID | None, Field(description="Who made it.")),
            **_plain_names(kind),
            **{key: value for key, value in visible.items() if key != "icon_url"},
        }
        self.version: Any = create_model(f"{title}VersionResponse", __base__=BaseModel, **fields)


def _names(kind: Kind[Any]) -> dict[str, Any]:
    name = Field(min_length=1, max_length=255, pattern=kind.name_pattern, description="Its name.")
    if not kind.namespaced:
        return {"name": (str, name)}
    namespace = Field(
        default="default",
        min_length=1,
        max_length=255,
        pattern=kind.namespace_pattern,
        description="The group it belongs to; its name is unique within.",
    )
    return {"namespace": (str, namespace), "name": (str, name)}


def _plain_names(kind: Kind[Any]) -> dict[str, Any]:
    name: dict[str, Any] = {"name": (str, Field(description="Its name."))}
    return ({"namespace": (str, Field(description="The group it belongs to."))} if kind.namespaced else {}) | name


def _optional(info: FieldInfo) -> tuple[Any, FieldInfo]:
    return info.annotation, FieldInfo.merge_field_infos(info, default=None, default_factory=None)


def spec_of(kind: Kind[S], body: Spec) -> S:
    """The spec inside a validated create body."""
    fields = kind.spec.model_fields
    return cast(S, kind.spec.model_construct(**{key: getattr(body, key) for key in fields}))


def asked(body: Spec, if_match: str | None = None) -> Change:
    """The change that an update body asks for: absent = unchanged."""
    values = body.model_dump(exclude_unset=True, by_alias=True, context=PLAIN)
    return Change(
        namespace=values.pop("namespace", None),
        name=values.pop("name", None),
        is_active=values.pop("is_active", None),
        values=values,
        if_version=expected_version(if_match),
    )


def crud_router(kind: Kind[S]) -> APIRouter:
    """Create, list, get, update, delete, versions, restore and undelete for one kind."""
    router = new_router(f"/{kind.route}", kind.route)
    models = Models(kind)
    _add_collection_routes(router, kind, models)
    _add_item_routes(router, kind, models)
    _add_history_routes(router, kind, models)
    return router


def _add_collection_routes(router: APIRouter, kind: Kind[Any], models: Models) -> None:
    Create: Any = models.create
    Read: Any = models.read
    noun = kind.label

    @router.post("", status_code=201, response_model=Read, summary=f"Create a {noun}")
    async def create(body: Create, db: CurrentDb, caller: CurrentCaller) -> Response:
        name = (getattr(body, "namespace", ""), body.name)
        change = Change(is_active=getattr(body, "is_active", None))
        return answer(kind, await store.create(db, caller, kind, name, spec_of(kind, body), change), 201)

    @router.get("", response_model=list[Read], summary=f"List {kind.plural.replace('_', ' ')}")
    async def list_all(
        db: CurrentDb,
        caller: CurrentCaller,
        namespace: Annotated[str | None, Query(description="Only those of this namespace.")] = None,
        skip: Annotated[int, Query(ge=0, le=MAX_INT, description="How many to leave out.")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LIST, description="The most to return.")] = MAX_LIST,
        deleted: Annotated[bool, Query(description="Those that were deleted and can be restored.")] = False,
    ) -> Response:
        only = Filter(namespace=namespace, skip=skip, limit=limit, deleted=deleted)
        return JsonAnswer([view(kind, found) for found in await store.find(db, caller, kind, only)])


def _item_path(kind: Kind[Any]) -> str:
    return "/{namespace}/{name}" if kind.namespaced else "/{name}"


def where_of(kind: Kind[Any]) -> Any:
    """A dependency that gives (namespace, name) from the path, whichever form the kind has."""
    if kind.namespaced:

        async def namespaced(
            namespace: Annotated[str, Path(description="Its namespace.")],
            name: Annotated[str, Path(description="Its name.")],
        ) -> tuple[str, str]:
            return namespace, name

        return namespaced

    async def named(name: Annotated[str, Path(description="Its name or id.")]) -> tuple[str, str]:
        return "", name

    return named


def id_of(kind: Kind[Any]) -> Any:
    """The same from an id in the path, `{<kind>_id}`."""

    async def known(
        caller: CurrentCaller,
        runtime: Run,
        resource_id: Annotated[UUID, Path(alias=f"{kind.name}_id", description="Its id.")],
    ) -> tuple[str, str]:
        return await lookup.place(runtime.database, kind, resource_id)

    return known


def by_id_router(kind: Kind[S]) -> APIRouter:
    """Get, update and delete by id, for a kind with namespaces whose clients go by ids."""
    router = new_router(f"/{kind.route}", kind.route)
    models, noun, path = Models(kind), kind.label, f"/{{{kind.name}_id}}"
    Read: Any = models.read
    Update: Any = models.update
    At = Annotated[tuple[str, str], Depends(id_of(kind))]
    missing: dict[int | str, dict[str, Any]] = {404: {"description": f"No such {noun}."}}

    @router.get(path, response_model=Read, summary=f"Get a {noun} by id", responses=missing)
    async def get_by_id(at: At, db: CurrentDb, caller: CurrentCaller) -> Response:
        return answer(kind, await store.read(db, caller, kind, *at))

    summary = f"Update a {noun} by id: absent fields stay as they are"

    @router.patch(path, response_model=Read, summary=summary, responses=missing)
    async def update_by_id(
        at: At, body: Update, db: CurrentDb, caller: CurrentCaller, if_match: IfMatch = None
    ) -> Response:
        return answer(kind, await store.change(db, caller, kind, *at, asked(body, if_match)))

    @router.delete(path, status_code=204, summary=f"Delete a {noun} by id", responses=missing)
    async def delete_by_id(at: At, db: CurrentDb, caller: CurrentCaller, if_match: IfMatch = None) -> None:
        await store.delete(db, caller, kind, *at, if_version=expected_version(if_match))

    return router


def _add_item_routes(router: APIRouter, kind: Kind[Any], models: Models) -> None:
    path, noun = _item_path(kind), kind.label
    Update: Any = models.update
    At = Annotated[tuple[str, str], Depends(where_of(kind))]
    missing: dict[int | str, dict[str, Any]] = {404: {"description": f"No such {noun}."}}

    @router.get(path, response_model=models.read, summary=f"Get a {noun}", responses=missing)
    async def get(at: At, db: CurrentDb, caller: CurrentCaller) -> Response:
        return answer(kind, await store.read(db, caller, kind, *at))

    async def update(at: At, body: Update, db: CurrentDb, caller: CurrentCaller, if_match: IfMatch = None) -> Response:
        return answer(kind, await store.change(db, caller, kind, *at, asked(body, if_match)))

    summary = f"Update a {noun}: absent fields stay as they are"
    for method in ("PUT", "PATCH"):
        router.add_api_route(
            path,
            update,
            methods=[method],
            name=f"update_{method.lower()}",
            response_model=models.read,
            summary=summary,
            responses=missing,
        )

    @router.delete(path, status_code=204, summary=f"Delete a {noun}", responses=missing)
    async def delete(at: At, db: CurrentDb, caller: CurrentCaller, if_match: IfMatch = None) -> None:
        await store.delete(db, caller, kind, *at, if_version=expected_version(if_match))


def _add_history_routes(router: APIRouter, kind: Kind[Any], models: Models) -> None:
    path, noun = _item_path(kind), kind.label
    Version: Any = models.version
    At = Annotated[tuple[str, str], Depends(where_of(kind))]
    Number = Annotated[int, Path(ge=1, le=MAX_INT, description="The version, counted from 1.")]

    @router.get(f"{path}/versions", response_model=list[Version], summary=f"List the versions of a {noun}")
    async def list_versions(at: At, db: CurrentDb, caller: CurrentCaller) -> Response:
        found = await store.versions(db, caller, kind, *at)
        return JsonAnswer(
            [
                {
                    "id": row.id,
                    f"{kind.name}_id": row.resource_id,
                    "version": row.version,
                    **({"namespace": row.namespace} if kind.namespaced else {}),
                    "name": row.name,
                    **store.shown(cast(Spec, spec)),
                    "created_at": row.created_at,
                    "created_by": row.created_by,
                }
                for row, spec in found
            ]
        )

    @router.post(
        f"{path}/versions/{{version}}/restore", response_model=models.read, summary=f"Restore a {noun}'s version"
    )
    async def restore(at: At, version: Number, db: CurrentDb, caller: CurrentCaller) -> Response:
        return answer(kind, await store.restore(db, caller, kind, *at, version))

    @router.post(f"{path}/undelete", response_model=models.read, summary=f"Bring back a deleted {noun}")
    async def undelete(at: At, db: CurrentDb, caller: CurrentCaller) -> Response:
        return answer(kind, await store.undelete(db, caller, kind, *at))


def runtime_list_router(kind: Kind[S]) -> APIRouter:
    """`GET /<plural>` and `GET /discovery/<plural>`: the active ones that the caller may use."""
    router = new_router("", kind.route)
    Read: Any = Models(kind).read

    async def list_usable(
        db: CurrentDb,
        caller: CurrentCaller,
        namespace: Annotated[str | None, Query(description="Only those of this namespace.")] = None,
    ) -> Response:
        only = Filter(namespace=namespace, action=kind.discover or "read", active_only=True)
        return JsonAnswer([view(kind, found) for found in await store.find(db, caller, kind, only)])

    summary = f"List the {kind.plural.replace('_', ' ')} you may use"
    for path, name in ((f"/{kind.route}", "list_usable"), (f"/discovery/{kind.route}", "discover")):
        router.add_api_route(path, list_usable, name=name, response_model=list[Read], summary=summary)
    return router
