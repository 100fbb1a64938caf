"""Declarative apply: bring resources to what a document declares, all of it or nothing."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sinas_server.kernel import references, store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.declared import Entry, id_fields, keeps_secrets, read_entry
from sinas_server.kernel.errors import (
    AlreadyExistsError,
    InvalidError,
    Location,
    NotFoundError,
    PreconditionFailedError,
    SinasError,
)
from sinas_server.kernel.kind import Kind, Ref
from sinas_server.kernel.store import Change, Managed, Resource
from sinas_server.kernel.unit import Db
from sinas_server.kit.json import to_camel, to_snake

Action = Literal["create", "update", "unchanged", "delete"]


@dataclass(frozen=True)
class ResourceChange:
    """What happened (or would happen) to one resource."""

    action: Action
    kind: str
    name: str
    details: str | None = None
    changes: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Problem:
    """Something wrong at a place of the document."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass
class Report:
    """What an apply did, or would do."""

    changes: list[ResourceChange] = field(default_factory=list)
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def summary(self) -> dict[str, dict[str, int]]:
        """How many of each kind were created, updated, unchanged, deleted."""
        names = {"create": "created", "update": "updated", "unchanged": "unchanged", "delete": "deleted"}
        return {
            word: dict(Counter(change.kind for change in self.changes if change.action == action))
            for action, word in names.items()
        }


@dataclass(frozen=True)
class Order:
    """On whose behalf and how a document is applied."""

    caller: Caller
    managed: Managed
    force: bool = False


@dataclass
class _Work:
    """A document on its way in."""

    db: Db
    order: Order
    report: Report = field(default_factory=Report)
    pending: list[tuple[str, Ref]] = field(default_factory=list)
    """What was written refers to, with the place in the document."""
    seen: set[tuple[str, str]] = field(default_factory=set)


async def apply(
    db: Db, order: Order, kinds: Sequence[Kind[Any]], sections: Mapping[str, Any], *, dry_run: bool = False
) -> Report:
    """Apply the `spec` of a document. With errors, or as a dry run, nothing of it stays."""
    work = _Work(db, order)
    registered = list(db.info.get("after_commit", ()))
    try:
        async with db.begin_nested():
            await _sections(work, kinds, sections)
            if work.report.errors or dry_run:
                raise _AbandonedError
    except _AbandonedError:
        db.info["after_commit"] = registered
    return work.report


class _AbandonedError(Exception):
    """Leaves the savepoint without keeping anything."""


async def _sections(work: _Work, kinds: Sequence[Kind[Any]], sections: Mapping[str, Any]) -> None:
    named = {to_camel(to_snake(section)): (section, entries) for section, entries in sections.items()}
    for section in named.keys() - {kind.section for kind in kinds}:
        place = f"spec.{named[section][0]}"
        work.report.warnings.append(Problem(place, "this section is not known and was ignored"))
    for kind in kinds:
        section, entries = named.get(kind.section, (kind.section, None))
        if not isinstance(entries or [], list):
            work.report.errors.append(Problem(f"spec.{section}", "must be a list"))
            continue
        for index, entry in enumerate(entries or []):
            await _entry(work, kind, f"spec.{section}[{index}]", entry)
    known = {kind.name for kind in kinds}
    for place, ref in work.pending:
        if await references.missing(work.db, [ref]):
            found = work.report.errors if ref.kind in known else work.report.warnings
            found.append(Problem(place, f"{ref} does not exist"))


async def _entry(work: _Work, kind: Kind[Any], path: str, entry: object) -> None:
    report = work.report
    if not isinstance(entry, dict):
        report.errors.append(Problem(path, "must be an object"))
        return
    unknown: list[str] = []
    try:
        async with work.db.begin_nested():
            await _one(work, kind, path, await read_entry(work.db, kind, entry, unknown))
    except InvalidError as error:
        report.errors += [Problem(_place(kind, path, loc), message) for loc, message in error.problems]
    except SinasError as error:
        report.errors.append(Problem(path, error.detail))
    report.warnings += [Problem(f"{path}.{key}", "this key is not known and was ignored") for key in unknown]


def _place(kind: Kind[Any], path: str, location: Sequence[str | int]) -> str:
    """Where in the document a field is: `spec.llmProviders[0].type` for ("body", "provider_type")."""
    ids = {field: mark.yaml_name for field, mark in id_fields(kind).items()}
    for part in location[1:]:
        name = kind.yaml_renames.get(str(part), ids.get(str(part), str(part)))
        path += f"[{part}]" if isinstance(part, int) else f".{to_camel(name)}"
    return path


async def _one(work: _Work, kind: Kind[Any], path: str, entry: Entry) -> None:
    _check_names(kind, entry)
    ref = "/".join(kind.where(entry.namespace, entry.name))
    if (kind.name, ref) in work.seen:
        raise InvalidError([(("body", "name"), f"{kind.label} '{ref}' is declared twice")])
    work.seen.add((kind.name, ref))
    try:
        change, resource = await _written(work, kind, ref, entry)
    except (AlreadyExistsError, PreconditionFailedError):  # somebody else has written it since it was looked at
        change, resource = await _written(work, kind, ref, entry)
    work.report.changes.append(change)
    if change.details:
        work.report.warnings.append(Problem(path, change.details))
        return
    work.pending += [(_place(kind, path, ("body", ref.field)), ref) for ref in kind.references(resource.spec)]


async def _written(work: _Work, kind: Kind[Any], ref: str, entry: Entry) -> tuple[ResourceChange, Resource[Any]]:
    db, order = work.db, work.order
    name = (entry.namespace, entry.name)
    try:
        old = await store.read(db, order.caller, kind, *name)
    except NotFoundError:
        spec = store.validated(kind, entry.values)
        asked = Change(is_active=entry.is_active, managed=order.managed)
        return ResourceChange("create", kind.name, ref), await store.create(db, order.caller, kind, name, spec, asked)
    if old.managed_by != order.managed.by and not order.force:
        owner = f"is managed by {old.managed_by}" if old.managed_by else "was not created by a configuration"
        return ResourceChange("unchanged", kind.name, ref, f"{ref} {owner}; left alone (use force to take over)"), old
    spec = store.validated(kind, keeps_secrets(entry.values, old))
    same = store.fingerprint(db, spec) == old.checksum and old.is_active == entry.is_active
    if same and old.managed_by == order.managed.by and old.config_checksum == old.checksum:
        return ResourceChange("unchanged", kind.name, ref), old
    asked = Change(store.plain(spec), is_active=entry.is_active, if_version=old.version, managed=order.managed)
    new = await store.change(db, order.caller, kind, *name, asked)
    return ResourceChange("update", kind.name, ref, changes=_differences(old, new)), new


def _check_names(kind: Kind[Any], entry: Entry) -> None:
    problems: list[tuple[Location, str]] = []
    for own, value, pattern in (
        ("name", entry.name, kind.name_pattern),
        ("namespace", entry.namespace, kind.namespace_pattern if kind.namespaced else "^$"),
    ):
        if len(value) > 255 or not re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value):
            problems.append((("body", own), f"'{value[:300]}' is not a valid {own}"))
    if problems:
        raise InvalidError(problems)


def _differences(old: Resource[Any], new: Resource[Any]) -> dict[str, Any]:
    """Field → old and new value; of a secret only that it changed."""
    before, after = store.shown(old.spec), store.shown(new.spec)
    changed: dict[str, Any] = {
        key: {"old": before.get(key), "new": value} for key, value in after.items() if before.get(key) != value
    }
    for secret in sorted(new.spec.secret_fields()):
        if getattr(old.spec, secret) != getattr(new.spec, secret):
            changed[secret] = {"old": "(secret)", "new": "(secret)"}
    if old.is_active != new.is_active:
        changed["is_active"] = {"old": old.is_active, "new": new.is_active}
    return changed
