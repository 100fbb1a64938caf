"""Declarative apply: bring resources to what a document declares, all of it or nothing."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sinas_server.kernel import references, store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.declared import Values, keeps_secrets, read_entry
from sinas_server.kernel.errors import InvalidError, NotFoundError, SinasError
from sinas_server.kernel.kind import Kind, Ref
from sinas_server.kernel.store import Change, Managed, Resource
from sinas_server.kernel.unit import Db

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


async def apply(
    db: Db, order: Order, kinds: Sequence[Kind[Any]], sections: Mapping[str, Any], *, dry_run: bool = False
) -> Report:
    """Apply the `spec` of a document. With errors, or as a dry run, nothing of it stays."""
    report = Report()
    registered = list(db.info.get("after_commit", ()))
    try:
        async with db.begin_nested():
            await _sections(db, order, kinds, sections, report)
            if report.errors or dry_run:
                raise _AbandonedError
    except _AbandonedError:
        db.info["after_commit"] = registered
    return report


class _AbandonedError(Exception):
    """Leaves the savepoint without keeping anything."""


async def _sections(
    db: Db, order: Order, kinds: Sequence[Kind[Any]], sections: Mapping[str, Any], report: Report
) -> None:
    known = {kind.section for kind in kinds}
    for section in sections:
        if section not in known:
            report.warnings.append(Problem(f"spec.{section}", "this section is not known and was ignored"))
    pending: list[tuple[str, Ref]] = []
    for kind in kinds:
        entries = sections.get(kind.section) or []
        if not isinstance(entries, list):
            report.errors.append(Problem(f"spec.{kind.section}", "must be a list"))
            continue
        for index, entry in enumerate(entries):
            await _entry(db, order, kind, (f"spec.{kind.section}[{index}]", entry), report, pending)
    for path, ref in pending:
        if await references.missing(db, [ref]):
            report.errors.append(Problem(f"{path}.{ref.field}", f"{ref} does not exist"))


async def _entry(
    db: Db,
    order: Order,
    kind: Kind[Any],
    at: tuple[str, object],
    report: Report,
    pending: list[tuple[str, Ref]],
) -> None:
    path, entry = at
    if not isinstance(entry, dict):
        report.errors.append(Problem(path, "must be an object"))
        return
    unknown: list[str] = []
    try:
        async with db.begin_nested():
            change, resource = await _one(db, order, kind, path, await read_entry(db, kind, entry, path, unknown))
    except InvalidError as error:
        report.errors += [Problem(".".join(map(str, loc)), message) for loc, message in error.problems]
    except SinasError as error:
        report.errors.append(Problem(path, error.detail))
    else:
        report.changes.append(change)
        if change.details:
            report.warnings.append(Problem(path, change.details))
        pending += [(path, ref) for ref in kind.references(resource.spec)]
    report.warnings += [Problem(where, "this key is not known and was ignored") for where in unknown]


async def _one(
    db: Db, order: Order, kind: Kind[Any], path: str, declared: tuple[str, str, bool, Values]
) -> tuple[ResourceChange, Resource[Any]]:
    namespace, name, is_active, values = declared
    _check_names(kind, path, namespace, name)
    ref = "/".join(kind.where(namespace, name))
    try:
        old = await store.read(db, order.caller, kind, namespace, name)
    except NotFoundError:
        spec = store.validated(kind, values, (path,))
        change = Change(is_active=is_active, managed=order.managed)
        made = await store.create(db, order.caller, kind, (namespace, name), spec, change)
        return ResourceChange("create", kind.name, ref), made
    if old.managed_by != order.managed.by and not order.force:
        owner = f"is managed by {old.managed_by}" if old.managed_by else "was not created by a configuration"
        return ResourceChange("unchanged", kind.name, ref, f"{ref} {owner}; left alone (use force to take over)"), old
    spec = store.validated(kind, keeps_secrets(kind, values, old), (path,))
    same = store.fingerprint(db, spec) == old.checksum and old.is_active == is_active
    if same and old.managed_by == order.managed.by and old.config_checksum == old.checksum:
        return ResourceChange("unchanged", kind.name, ref), old
    differences = _differences(store.shown(old.spec), store.shown(spec))
    new = await store.change(
        db,
        order.caller,
        kind,
        namespace,
        name,
        Change(store.plain(spec), is_active=is_active, managed=order.managed),
    )
    return ResourceChange("update", kind.name, ref, changes=differences), new


def _check_names(kind: Kind[Any], path: str, namespace: str, name: str) -> None:
    problems = []
    if not re.fullmatch(kind.name_pattern.strip("^$"), name) or len(name) > 255:
        problems.append(((f"{path}.name",), f"'{name}' is not a valid name"))
    if kind.namespaced and not re.fullmatch(kind.namespace_pattern.strip("^$"), namespace):
        problems.append(((f"{path}.namespace",), f"'{namespace}' is not a valid namespace"))
    if problems:
        raise InvalidError(problems)


def _differences(old: Values, new: Values) -> dict[str, Any]:
    return {key: {"old": old.get(key), "new": value} for key, value in new.items() if old.get(key) != value}
