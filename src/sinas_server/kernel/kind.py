"""What a kind of resource is: the one declaration that every other layer reads."""

import types
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo

from sinas_server.kernel.secret import SECRET_MARK
from sinas_server.kit.json import to_camel

if TYPE_CHECKING:
    from sinas_server.kernel.store import Resource
    from sinas_server.kernel.unit import Db


def nullable(info: FieldInfo) -> bool:
    """Whether `null` is a value of the field."""
    annotation = info.annotation
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _holds_mark(annotation: object) -> bool:
    return annotation is SECRET_MARK or any(
        _holds_mark(part) for part in (*get_args(annotation), *getattr(annotation, "__metadata__", ()))
    )


class Spec(BaseModel):
    """What a user declares about a resource: API body, YAML entry and package entry.

    Unknown fields are ignored; `null` for a field that cannot be null means its default.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_serialization_defaults_required=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            key: value
            for key, value in data.items()
            if value is not None or key not in fields or nullable(fields[key]) or fields[key].is_required()
        }

    @classmethod
    def secret_fields(cls) -> frozenset[str]:
        """The names of the fields that hold secrets."""
        return frozenset(
            name
            for name, info in cls.model_fields.items()
            if SECRET_MARK in info.metadata or _holds_mark(info.annotation)
        )

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """A stored spec of an earlier release in today's form (renamed fields); by default unchanged."""
        return raw


S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class IdOf:
    """Marks a field that holds the id of another resource; YAML writes its name under `yaml_name` instead."""

    kind: str
    yaml_name: str


@dataclass(frozen=True)
class Ref:
    """A pointer from one resource to another: by id, or by namespace and name.

    `hard` references must exist (checked on write, delete and rename); soft ones are checked by apply and warned
    about elsewhere, so that two agents may name each other.
    """

    kind: str
    namespace: str = ""
    name: str = ""
    id: str | None = None
    hard: bool = True
    field: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.id or '/'.join(part for part in (self.namespace, self.name) if part)}"


def reference(kind: str, text: str, *, hard: bool, field: str) -> Ref:
    """`namespace/name`, or `name` alone for `default/name`, as a `Ref`."""
    namespace, _, name = text.rpartition("/")
    return Ref(kind, namespace or "default", name, hard=hard, field=field)


References = Callable[[Any], Iterable[Ref]]
OnChange = Callable[["Db", "Resource[Any] | None", "Resource[Any] | None"], Awaitable[None]]


def _no_references(spec: Spec, /) -> Iterable[Ref]:
    return ()


async def _nothing(db: "Db", old: "Resource[Any] | None", new: "Resource[Any] | None", /) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[S]):
    """The declaration of one resource type. Behavior lives in the functions that read it."""

    NAME_PATTERN: ClassVar[str] = r"^[a-zA-Z][a-zA-Z0-9_-]*$"

    name: str
    """Singular, snake_case: `llm_provider`."""
    plural: str
    """Plural, snake_case; the resource of its permissions: `sinas.llm_providers.read:all`."""
    spec: type[S]
    title: str = ""
    """As people write it; by default the name with spaces."""
    path: str = ""
    """Its path below `/api/v1/`; by default the plural with dashes."""
    yaml: str = ""
    """Its section in YAML; by default the plural in camelCase."""
    namespaced: bool = True
    per_user: bool = False
    """Names are unique per owner rather than in the whole installation."""
    name_pattern: str = NAME_PATTERN
    namespace_pattern: str = NAME_PATTERN
    yaml_renames: Mapping[str, str] = field(default_factory=dict)
    """Field → its name in YAML (snake_case), where the two differ."""
    name_from: Callable[[Mapping[str, Any]], str] | None = None
    """The name of one that is declared without: made from its fields. Raises `InvalidError`."""
    references: References = _no_references
    on_change: OnChange = _nothing
    actions: tuple[str, ...] = ("create", "read", "update", "delete")
    """The permission verbs, the slice's own among them."""
    withheld: tuple[str, ...] = ()
    """Those that the role Users does not get by default, not even for one's own."""
    discover: str | None = None
    """The permission that makes it appear in the runtime lists (`GET /agents`: those one may chat with)."""
    description: str = ""
    admin_only: bool = False
    packaged: bool = True

    @property
    def label(self) -> str:
        """The singular as people write it."""
        return self.title or self.name.replace("_", " ")

    @property
    def route(self) -> str:
        """Its path segment below `/api/v1/`."""
        return self.path or self.plural.replace("_", "-")

    @property
    def section(self) -> str:
        """Its section in YAML."""
        return self.yaml or to_camel(self.plural)

    def where(self, namespace: str, name: str) -> tuple[str, ...]:
        """Its path in permissions."""
        return (namespace, name) if self.namespaced else (name,)

    def called(self, namespace: str, name: str) -> str:
        """How messages name one of them."""
        return f"{self.label} '{'/'.join(self.where(namespace, name))}'"


AnyKind = Kind[Any]
"""A kind, whatever its spec."""
