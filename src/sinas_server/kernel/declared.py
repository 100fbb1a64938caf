"""Resources as YAML writes them: camelCase keys, names instead of ids, and back."""

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union, cast, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import select

from sinas_server.kernel import store
from sinas_server.kernel.errors import InvalidError
from sinas_server.kernel.kind import IdOf, Kind, S
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Db
from sinas_server.kit.json import to_camel, to_snake

Values = dict[str, Any]


def id_fields(kind: Kind[Any]) -> dict[str, IdOf]:
    """The fields that hold another resource's id, with what YAML writes instead."""
    return {
        name: mark for name, info in kind.spec.model_fields.items() for mark in info.metadata if isinstance(mark, IdOf)
    }


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _inside(annotation: object) -> object:
    """What a list holds, through unions and annotations; the annotation itself for anything else."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is list:
            return get_args(part)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return next((part for part in get_args(annotation) if part is not type(None)), annotation)
    return annotation


def snake_keys(value: object, annotation: object, path: str, unknown: list[str]) -> object:
    """Keys of nested models in snake_case; free-form objects (schemas, parameters) stay as written."""
    if isinstance(value, list):
        inner = _inside(annotation)
        return [snake_keys(item, inner, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
    model = next(_models(annotation), None)
    if not isinstance(value, dict) or model is None or get_origin(_inside(annotation)) is dict:
        return value
    known = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
    result: Values = {}
    for key, item in value.items():
        name = to_snake(str(key))
        if name not in known:
            unknown.append(f"{path}.{key}")
            continue
        result[name] = snake_keys(item, known[name], f"{path}.{key}", unknown)
    return result


@dataclass
class Entry:
    """An entry of a document as resources are made from it."""

    namespace: str
    name: str = ""
    is_active: bool = True
    values: Values = field(default_factory=dict)
    """Fields of the spec."""


async def read_entry(db: Db, kind: Kind[S], raw: dict[Any, Any], unknown: list[str]) -> Entry:
    """A YAML entry in plain form; the paths of unknown keys are added to `unknown`. Raises `InvalidError`."""
    renamed = {yaml: own for own, yaml in kind.yaml_renames.items()}
    ids = {mark.yaml_name: (own, mark) for own, mark in id_fields(kind).items()}
    entry = Entry("default" if kind.namespaced else "")
    for key, value in raw.items():
        plain = to_snake(str(key))
        if plain == "name" and kind.name_from is None:
            entry.name = _text("name", value)
        elif plain == "namespace" and kind.namespaced:
            entry.namespace = "default" if value is None else _text("namespace", value)
        elif plain == "is_active":
            entry.is_active = _flag(value)
        elif plain in ids:
            own, mark = ids[plain]
            entry.values[own] = await _id_of(db, mark, own, value)
        elif (own := renamed.get(plain, plain)) in kind.spec.model_fields:
            entry.values[own] = snake_keys(value, kind.spec.model_fields[own].annotation, str(key), unknown)
        else:
            unknown.append(str(key))
    if kind.name_from is not None:
        entry.name = kind.name_from(entry.values)
    if not entry.name:
        raise InvalidError([(("body", "name"), "is missing")])
    return entry


def _text(own: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidError([(("body", own), "must be a text")])
    return value


def _flag(value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InvalidError([(("body", "is_active"), "must be true or false")])
    return value is not False


async def _id_of(db: Db, mark: IdOf, own: str, name: object) -> str | None:
    if name is None:
        return None
    query = select(ResourceRow.id).where(
        ResourceRow.kind == mark.kind, ResourceRow.name == str(name), ResourceRow.deleted_at.is_(None)
    )
    found = await db.scalar(query)
    if found is None:
        raise InvalidError([(("body", own), f"{mark.kind.replace('_', ' ')} '{name}' does not exist")])
    return str(found)


async def write_entry(db: Db, kind: Kind[S], resource: Resource[S], *, placeholders: bool = False) -> Values:
    """A resource as a YAML entry: defaults left out; secrets left out, or as `${NAME}` placeholders."""
    entry: Values = {"namespace": resource.namespace} if kind.namespaced else {}
    if kind.name_from is None:
        entry["name"] = escaped(resource.name)
    ids = id_fields(kind)
    spec = resource.spec.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude=set(resource.spec.secret_fields())
    )
    for own, value in spec.items():
        if own in ids:
            name = await db.scalar(select(ResourceRow.name).where(ResourceRow.id == UUID(value)))
            entry[to_camel(ids[own].yaml_name)] = escaped(name)
        else:
            annotation = kind.spec.model_fields[own].annotation
            entry[to_camel(kind.yaml_renames.get(own, own))] = camel_keys(escaped(value), annotation)
    if placeholders:
        for own in sorted(resource.spec.secret_fields()):
            if getattr(resource.spec, own) is not None:
                variable = _variable(resource.name) if own == "value" else _variable(resource.name, own)
                entry[to_camel(kind.yaml_renames.get(own, own))] = f"${{{variable}}}"
    if not resource.is_active:
        entry["isActive"] = False
    return entry


def _variable(*parts: str) -> str:
    return re.sub(r"[^A-Z0-9_]", "_", "_".join(parts).upper()).lstrip("0123456789") or "_"


def camel_keys(value: object, annotation: object) -> object:
    """The reverse of `snake_keys`."""
    if isinstance(value, list):
        return [camel_keys(item, _inside(annotation)) for item in value]
    model = next(_models(annotation), None)
    if not isinstance(value, dict) or model is None or get_origin(_inside(annotation)) is dict:
        return value
    known = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
    return {to_camel(key): camel_keys(item, known.get(key)) for key, item in value.items()}


Plain = TypeVar("Plain")


def escaped(value: Plain) -> Plain:
    """`$` of what looks like a variable doubled, so that an export reads back the same."""
    done: Any = value
    if isinstance(value, dict):
        done = {key: escaped(item) for key, item in value.items()}
    elif isinstance(value, list):
        done = [escaped(item) for item in value]
    elif isinstance(value, str):
        done = re.sub(r"\$\{([A-Z_][A-Z0-9_]*)\}", r"$${\1}", value)
    return cast(Plain, done)


def keeps_secrets(values: Values, old: Resource[S]) -> Values:
    """The values with the stored secrets where the entry leaves them out, or has `null` for one that must be there."""
    kept, fields = store.plain(old.spec), type(old.spec).model_fields
    stored = {field: kept[field] for field in old.spec.secret_fields() if field in kept}
    keep = {field for field in stored if fields[field].is_required() and values.get(field) is None}
    return {**values, **{field: stored[field] for field in stored if field in keep or field not in values}}
