"""Who is calling and what they may do: one matcher, asked in Python or compiled to SQL.

A permission is `<service>.<resource>[/<path>].<action>:<scope>`. Wildcards match whole segments; a trailing `*`
covers one or more; a key without a path (or whose path is all wildcards) covers every path; `:all` grants `:own`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal
from uuid import UUID

from sqlalchemy import ColumnElement, and_, false, func, or_, true
from sqlalchemy.orm import InstrumentedAttribute

from sinas_server.kernel.errors import ForbiddenError, InvalidError

Scope = Literal["own", "all"]
MAX_KEY_LENGTH = 512


@dataclass(frozen=True)
class Permission:
    """A permission taken apart. `dotted` holds the segments before the action; `path` is None for "every path"."""

    dotted: tuple[str, ...]
    path: tuple[str, ...] | None
    action: str
    scope: str

    @classmethod
    def parse(cls, key: str) -> "Permission":
        """Take a key apart. Raises ValueError with the reason for a malformed one."""
        if len(key) > MAX_KEY_LENGTH or not key.isprintable():
            raise ValueError(f"must have at most {MAX_KEY_LENGTH} characters and no control characters")
        body, _, scope = key.rpartition(":")
        if scope not in ("own", "all"):
            raise ValueError("must end in a scope, `:own` or `:all`")
        head, slash, tail = body.partition("/")
        target, dot, action = (tail if slash else head).rpartition(".")
        if not dot or not action:
            raise ValueError("must name an action, like `sinas.agents.read:own`")
        dotted = tuple((head if slash else target).split("."))
        path = tuple(target.split("/")) if slash else None
        if not all(dotted) or (path is not None and not all(path)):
            raise ValueError("must not have empty segments")
        if path is not None and all(segment == "*" for segment in path):
            path = None
        return cls(dotted, path, action, scope)

    def covers(self, wanted: "Permission") -> bool:
        """Whether holding `self` means holding `wanted`."""
        if self.scope not in ("all", wanted.scope):
            return False
        if self.path is None:
            return self._covers_dotted(wanted)
        return (
            len(self.dotted) == len(wanted.dotted)
            and _segments_match(self.dotted, wanted.dotted)
            and self.action in ("*", wanted.action)
            and wanted.path is not None
            and _path_matches(self.path, wanted.path)
        )

    def _covers_dotted(self, wanted: "Permission") -> bool:
        mine, theirs = (*self.dotted, self.action), (*wanted.dotted, wanted.action)
        if self.action == "*":
            return len(theirs) >= len(mine) and _segments_match(self.dotted, theirs[: len(self.dotted)])
        return len(mine) == len(theirs) and _segments_match(mine, theirs)


def _segments_match(mine: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    return all(a in ("*", b) for a, b in zip(mine, theirs, strict=True))


def _path_matches(mine: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    if mine[-1] == "*":
        head = mine[:-1]
        return len(theirs) >= len(mine) and _segments_match(head, theirs[: len(head)])
    return len(mine) == len(theirs) and _segments_match(mine, theirs)


@lru_cache(maxsize=16384)
def parse(key: str) -> Permission:
    """`Permission.parse`, remembered. Raises ValueError with the reason for a malformed key."""
    return Permission.parse(key)


def check_key(key: str, location: tuple[str | int, ...]) -> str:
    """The key itself when it is well formed. Raises `InvalidError` (422) naming `location`."""
    try:
        parse(key)
    except ValueError as error:
        raise InvalidError([(location, f"'{key}' is not a permission: {error}")]) from error
    return key


@dataclass
class _Paths:
    """The paths that grants of one resource and action reach, as a tree of segments; each set holds scopes."""

    here: set[str] = field(default_factory=set)
    """For the path that ends here."""
    below: set[str] = field(default_factory=set)
    """For every longer one: a trailing `*`."""
    next: dict[str, "_Paths"] = field(default_factory=dict)

    def add(self, path: tuple[str, ...], scope: str) -> None:
        """Take in a grant for this path."""
        rest = path[1:]
        if path == ("*",):
            self.below.add(scope)
        elif not path:
            self.here.add(scope)
        else:
            self.next.setdefault(path[0], _Paths()).add(rest, scope)

    def reach(self, path: tuple[str, ...], scopes: frozenset[str]) -> bool:
        """Whether one of the grants is for this path."""
        if not path:
            return not scopes.isdisjoint(self.here)
        if not scopes.isdisjoint(self.below):
            return True
        named, every = self.next.get(path[0]), self.next.get("*")
        return (named is not None and named.reach(path[1:], scopes)) or (
            every is not None and every.reach(path[1:], scopes)
        )


_GRANTING = {"own": frozenset(("own", "all")), "all": frozenset(("all",))}
"""Scope asked for → those that grant it."""


class GrantSet:
    """What someone holds, arranged so that a question costs a few look-ups however many grants there are.

    It answers as `Permission.covers` of each grant would, which is the definition.
    """

    def __init__(self, keys: frozenset[str]) -> None:
        """`keys`: permission keys; one that is malformed grants nothing."""
        self.keys = keys
        self.grants = tuple(_well_formed(keys))
        self._everywhere: dict[tuple[str, ...], set[str]] = {}
        """Resource and action → scopes of grants without a path."""
        self._prefixes: dict[tuple[str, ...], set[str]] = {}
        """Resource → scopes of grants without a path whose action is `*`: they reach everything below."""
        self._paths: dict[tuple[str, ...], _Paths] = {}
        """Resource and action → the grants with a path."""
        self._rest: list[Permission] = []
        """Grants with a `*` for a part of the resource; few hold any."""
        for grant in self.grants:
            self._take_in(grant)

    def _take_in(self, grant: Permission) -> None:
        if "*" in grant.dotted:
            self._rest.append(grant)
        elif grant.path is not None:
            self._paths.setdefault((*grant.dotted, grant.action), _Paths()).add(grant.path, grant.scope)
        elif grant.action == "*":
            self._prefixes.setdefault(grant.dotted, set()).add(grant.scope)
        else:
            self._everywhere.setdefault((*grant.dotted, grant.action), set()).add(grant.scope)

    def allows(self, key: str) -> bool:
        """Whether one of the grants covers the permission `key`. Raises ValueError for a malformed one."""
        return self.covers(parse(key))

    def covers(self, wanted: Permission) -> bool:
        """The same for a permission already taken apart."""
        scopes = _GRANTING[wanted.scope]
        asked = (*wanted.dotted, wanted.action)
        if not scopes.isdisjoint(self._everywhere.get(asked, ())):
            return True
        if self._prefixes and any(
            not scopes.isdisjoint(self._prefixes.get(asked[:length], ())) for length in range(1, len(asked))
        ):
            return True
        if wanted.path is not None and self._paths:
            for action in (wanted.action, "*"):
                paths = self._paths.get((*wanted.dotted, action))
                if paths is not None and paths.reach(wanted.path, scopes):
                    return True
        return any(grant.covers(wanted) for grant in self._rest)


def _well_formed(keys: Iterable[str]) -> Iterable[Permission]:
    for key in sorted(keys):
        try:
            yield parse(key)
        except ValueError:
            continue


@lru_cache(maxsize=4096)
def _grant_set(keys: frozenset[str]) -> GrantSet:
    return GrantSet(keys)


def grant_set(keys: Iterable[str]) -> GrantSet:
    """The grants behind these keys; equal sets share one object, so that it is arranged once."""
    return _grant_set(frozenset(keys))


@dataclass(frozen=True)
class OwnedColumns:
    """The columns that say where a row stands: its path segments, and its owner."""

    path: tuple[InstrumentedAttribute[str], ...]
    owner: InstrumentedAttribute[UUID] | InstrumentedAttribute[UUID | None]


Via = Literal["session", "api_key", "function", "system"]


@dataclass(frozen=True)
class Caller:
    """Who is calling. Every set of grants must allow: a key never exceeds its creator, nor a function its owner."""

    id: UUID
    email: str
    grants: tuple[GrantSet, ...]
    """The caller's own, and those of the API key he uses."""
    via: Via = "session"
    roles: tuple[str, ...] = ()
    barred: frozenset[str] = frozenset()
    """Resources (`api_keys`) and actions (`functions.shared_pool`) out of reach whatever the grants say."""
    credential: UUID | None = None
    """The API key, the session, or the execution whose token this is."""
    api_key: UUID | None = None
    """The API key at the beginning of the chain, so that work started now keeps to its rights later."""
    owners: tuple[UUID, ...] = ()
    """The owners of the functions in between."""
    lent: tuple[tuple[UUID, GrantSet], ...] = ()
    """What those of them hold who are not the caller. What is the caller's is not theirs: it takes `:all` of them."""
    depth: int = 0
    """How many executions wait for this call; 0 outside of functions."""
    attributes: dict[str, str] = field(default_factory=dict, compare=False)

    def has(self, key: str) -> bool:
        """Whether the caller holds a permission given as its full key. Raises ValueError for a malformed one."""
        return self.holds(parse(key))

    def holds(self, wanted: Permission) -> bool:
        """The same for a permission already taken apart."""
        if self.barred and self._is_barred(wanted):
            return False
        return (
            bool(self.grants)
            and all(grants.covers(wanted) for grants in self.grants)
            and (not self.lent or self._is_trusted_with(wanted))
        )

    def _is_trusted_with(self, wanted: Permission) -> bool:
        everybodys = replace(wanted, scope="all")
        return all(grants.covers(everybodys) for _, grants in self.lent)

    def _is_barred(self, wanted: Permission) -> bool:
        # `sinas.*` reaches what is barred too, so it is not held as a whole.
        service, resource = wanted.dotted[0], (*wanted.dotted, wanted.action)[1]
        if service not in ("sinas", "*"):
            return False
        if resource == "*" or resource in self.barred or f"{resource}.{wanted.action}" in self.barred:
            return True
        return wanted.action == "*" and any(entry.startswith(f"{resource}.") for entry in self.barred)

    def allows(self, resource: str, action: str, owner: UUID | None, *path: str) -> bool:
        """Whether the caller may do `action` to what stands at `path` and belongs to `owner`."""
        parts = tuple("/".join(path).split("/")) if path else None
        everybodys = Permission(("sinas", resource), parts, action, "all")
        if self.barred and self._is_barred(everybodys):
            return False
        own = replace(everybodys, scope="own")
        return (
            bool(self.grants)
            and all(grants.covers(own if owner == self.id else everybodys) for grants in self.grants)
            and all(grants.covers(own if owner == lender else everybodys) for lender, grants in self.lent)
        )

    def is_trusted(self, resource: str, action: str, *path: str) -> bool:
        """Whether the owners of the functions in between may do this to what belongs to the caller.

        For what only whoever has it can do at all, so that no permission of the caller is asked for.
        """
        parts = tuple("/".join(path).split("/")) if path else None
        return self._is_trusted_with(Permission(("sinas", resource), parts, action, "all"))

    def require(self, resource: str, action: str, owner: UUID | None, *path: str) -> None:
        """Raise `ForbiddenError` unless `allows`."""
        if not self.allows(resource, action, owner, *path):
            target = "/".join((resource, *path))
            scope = "own" if owner == self.id else "all"
            raise ForbiddenError(f"Not authorized: this needs sinas.{target}.{action}:{scope}{self._hint()}")

    def _hint(self) -> str:
        return "; inside of a function of somebody else its owner needs it too, as `:all` for what is yours" * bool(
            self.lent
        )

    def visible(self, resource: str, action: str, columns: OwnedColumns) -> ColumnElement[bool]:
        """The rule of `allows` as a WHERE clause, so that lists are filtered and paged in the database."""
        if not {resource, f"{resource}.{action}"}.isdisjoint(self.barred) or not self.grants:
            return false()
        holders = (*((self.id, grants) for grants in self.grants), *self.lent)
        return and_(true(), *(_visible(grants, holder, resource, action, columns) for holder, grants in holders))


def _visible(grants: GrantSet, me: UUID, resource: str, action: str, columns: OwnedColumns) -> ColumnElement[bool]:
    terms: list[ColumnElement[bool]] = [false()]
    wanted = Permission(("sinas", resource), None, action, "own")
    for grant in grants.grants:
        # The path is compared in SQL; everything else here.
        if not Permission(grant.dotted, None, grant.action, grant.scope).covers(wanted):
            continue
        if grant.path is not None and len(grant.dotted) != len(wanted.dotted):
            continue
        term = true() if grant.path is None else _path_term(grant.path, columns.path)
        if grant.scope != "all":
            term = and_(term, columns.owner == me)
        terms.append(term)
    return or_(*terms)


def _path_term(pattern: tuple[str, ...], columns: tuple[InstrumentedAttribute[str], ...]) -> ColumnElement[bool]:
    # Names may hold slashes (webhook paths), so the whole path is compared, as in `allows`.
    if not columns:
        return false()
    path = columns[0] if len(columns) == 1 else func.concat_ws("/", *columns)
    if "*" not in pattern:
        return path == "/".join(pattern)
    parts = ["[^/]*" if part == "*" else re.escape(part) for part in pattern]
    if pattern[-1] == "*":
        parts[-1] = ".*"
    return path.op("~", is_comparison=True)(f"^{'/'.join(parts)}$")


@dataclass(frozen=True)
class AccessResource:
    """Something permissions are about that is no kind: users, chats, executions."""

    name: str
    """The second segment of its permissions: `api_keys`."""
    description: str
    actions: tuple[str, ...]
    users_may: tuple[str, ...] = ()
    """What the role Users may do by default, as `action:scope`."""
    namespaced: bool = False
    admin_only: bool = False


SYSTEM = Caller(UUID(int=0), "system", (grant_set({"sinas.*:all"}),), via="system")
"""The platform itself, where it changes something on nobody's behalf."""
