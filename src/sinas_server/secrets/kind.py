"""The secret kind: a named value, shared by the installation or private to a user, that is never shown again."""

from dataclasses import replace
from typing import Literal

from pydantic import Field
from sqlalchemy import delete

from sinas_server.kernel.errors import InvalidError
from sinas_server.kernel.kind import Kind, Spec
from sinas_server.kernel.outbox import audit_change
from sinas_server.kernel.secret import Secret
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import ResourceRow, ResourceVersionRow
from sinas_server.kernel.unit import Db

Visibility = Literal["shared", "private"]
MAX_VALUE = 65_536
"""The most characters of a value: a private key or a service account's file fits."""


class SecretSpec(Spec):
    """A named credential."""

    value: Secret = Field(
        min_length=1, max_length=MAX_VALUE, description="The credential itself; encrypted, never returned."
    )
    description: str | None = Field(default=None, description="What it is for.")
    visibility: Visibility = Field(
        default="shared",
        description="`shared`: one for the whole installation. `private`: the caller's own, which takes the place of "
        "the shared one of that name in what runs for the caller.",
    )


SecretResource = Resource[SecretSpec]


async def _on_change(db: Db, old: SecretResource | None, new: SecretResource | None) -> None:
    """Audits, and forgets earlier values: one that was replaced or deleted may have leaked, and serves nobody."""
    await audit_change(db, old, new)
    if new is None and old is not None:
        await db.execute(delete(ResourceRow).where(ResourceRow.id == old.id))
    elif new is not None and old is not None:
        earlier = (ResourceVersionRow.resource_id == new.id, ResourceVersionRow.version < new.version)
        await db.execute(delete(ResourceVersionRow).where(*earlier))


async def _on_shared_change(db: Db, old: SecretResource | None, new: SecretResource | None) -> None:
    """What everyone's functions and connectors get is set by those who may set it for all."""
    changed = new or old
    if changed is not None and db.actor is not None:
        action = "create" if old is None else "delete" if new is None else "update"
        db.actor.require(SECRET.plural, action, None, changed.name)
    if new is not None and new.spec.visibility != "shared":
        problem = (
            "a private secret belongs to one user, who sets it with POST /api/v1/secrets; only `shared` is declared"
        )
        raise InvalidError([(("body", "visibility"), problem)])
    await _on_change(db, old, new)


SECRET = Kind(
    name="secret",
    plural="secrets",
    spec=SecretSpec,
    namespaced=False,
    name_pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
    on_change=_on_shared_change,
    actions=("create", "read", "update", "delete", "use"),
    description="Credentials for functions in the shared pool and for connectors, whose owner must hold `use`. "
    "Changing a shared one needs `:all`.",
    packaged=False,
)
"""Shared secrets, which are also what documents declare."""

PRIVATE_SECRET = replace(SECRET, per_user=True, on_change=_on_change)
"""The same, named per user."""


def of_visibility(visibility: Visibility) -> Kind[SecretSpec]:
    """The kind that holds secrets of this visibility."""
    return PRIVATE_SECRET if visibility == "private" else SECRET
