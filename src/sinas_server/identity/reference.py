"""Every permission there is, and which of them the built-in roles hold by default; both are read off the kinds."""

from collections.abc import Iterable

from pydantic import BaseModel, Field

from sinas_server.kernel.access import AccessResource
from sinas_server.kernel.kind import AnyKind
from sinas_server.kernel.runtime import Runtime

ADMINS, USERS, GUESTS = "Admins", "Users", "GuestUsers"
EVERYTHING = "sinas.*:all"
DESCRIPTIONS = {
    ADMINS: "Full access to everything",
    USERS: "Create and manage own resources, chat with any agent, execute own functions",
    GUESTS: "Read and update own profile only",
}
OWN_PROFILE = ("read:own", "update:own")

RESOURCES = (
    AccessResource(
        "users",
        "People with their profiles, sessions and passwords; `own` is the caller himself.",
        ("create", "read", "update", "delete"),
        users_may=OWN_PROFILE,
    ),
    AccessResource(
        "roles",
        "Roles, their members and permissions; `own` are the roles the caller is in.",
        ("create", "read", "update", "delete"),
        users_may=("read:own",),
    ),
    AccessResource(
        "api_keys",
        "Keys for programs, which never hold more than their creator.",
        ("create", "read", "delete"),
        users_may=("create:own", "read:own", "delete:own"),
    ),
    AccessResource("audit", "Who changed what; needs `:all`.", ("read",), admin_only=True),
)
"""The resources of this slice; the catalog joins them with those of the others."""


class PermissionReference(BaseModel):
    """What can be permitted about one resource."""

    resource: str = Field(description="The second segment of its permissions.")
    description: str = Field(description="What it is.")
    actions: list[str] = Field(description="What can be done to it.")
    namespaced: bool = Field(description="Whether its permissions may name one: `sinas.agents/support/bot.chat:own`.")
    admin_only: bool = Field(serialization_alias="adminOnly", description="Whether it is for administrators.")
    permissions: list[str] = Field(description="Every permission about it as a whole.")


def permission_reference(runtime: Runtime) -> list[PermissionReference]:
    """Every resource of this installation with its actions, by name."""
    about = [(r.name, r.description, r.actions, r.namespaced, r.admin_only) for r in runtime.resources]
    about += [(k.plural, k.description, k.actions, k.namespaced, k.admin_only) for k in runtime.kinds.values()]
    return [
        PermissionReference(
            resource=name,
            description=description or name.replace("_", " ").capitalize(),
            actions=list(actions),
            namespaced=namespaced,
            admin_only=admin_only,
            permissions=[f"sinas.{name}.{action}:{scope}" for action in actions for scope in ("own", "all")],
        )
        for name, description, actions, namespaced, admin_only in sorted(about)
    ]


def default_permissions(kinds: Iterable[AnyKind], resources: Iterable[AccessResource]) -> dict[str, list[str]]:
    """The permissions of the built-in roles in a new installation with these kinds and resources, by role."""
    of_kinds = [
        f"sinas.{kind.plural}.{action}:{'all' if action == 'chat' else 'own'}"
        for kind in kinds
        if not kind.admin_only
        for action in kind.actions
        if action not in kind.withheld
    ]
    of_others = [f"sinas.{resource.name}.{may}" for resource in resources for may in resource.users_may]
    return {
        ADMINS: [EVERYTHING],
        USERS: sorted(of_kinds + of_others),
        GUESTS: [f"sinas.users.{may}" for may in OWN_PROFILE],
    }
