"""Roles: changes take effect on the next request, and nobody gives what he does not hold."""

from uuid import uuid4

import pytest
from sqlalchemy import select

from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow
from tests.identity.conftest import KeyClient
from tests.people import Person

ROLES = "/api/v1/roles"


async def test_the_life_of_a_role(admin: Person, user: Person, runtime: Runtime) -> None:
    made = await admin.http.post(
        ROLES, json={"name": "Support", "description": "Helps", "email_domain": "@Help.Example"}
    )
    assert made.status_code == 201
    assert made.json()["email_domain"] == "help.example"
    duplicate = await admin.http.post(ROLES, json={"name": "Support"})
    assert duplicate.status_code == 400 and "already exists" in duplicate.json()["detail"]

    permission = {"permission_key": "titan.tickets.read:own", "permission_value": True}
    given = await admin.http.post(f"{ROLES}/Support/permissions", json=permission)
    assert given.status_code == 200
    assert set(given.json()) == {
        "id", "role_id", "permission_key", "permission_value", "created_at", "updated_at"
    }  # fmt: skip

    async def holds() -> bool:
        check = await user.http.post("/auth/check-permissions", json={"permissions": ["titan.tickets.read:own"]})
        return bool(check.json()["result"])

    assert not await holds()
    member = await admin.http.post(f"{ROLES}/Support/members", json={"user_id": str(user.id)})
    assert member.status_code == 200
    assert (member.json()["user_email"], member.json()["active"]) == (user.email, True)
    again = await admin.http.post(f"{ROLES}/Support/members", json={"user_id": str(user.id)})
    assert again.json() == member.json()
    assert await holds()
    await admin.http.post(f"{ROLES}/Support/permissions", json=permission | {"permission_value": False})
    assert not await holds()
    await admin.http.post(f"{ROLES}/Support/permissions", json=permission)
    assert await holds()
    listed = (await admin.http.get(f"{ROLES}/Support/permissions")).json()
    assert [(item["permission_key"], item["permission_value"]) for item in listed] == [("titan.tickets.read:own", True)]
    gone = await admin.http.delete(f"{ROLES}/Support/permissions", params={"permission_key": "titan.tickets.read:own"})
    assert gone.status_code == 204
    assert not await holds()

    renamed = await admin.http.patch(f"{ROLES}/Support", json={"name": "Helpers", "description": None})
    assert renamed.status_code == 200
    assert (renamed.json()["name"], renamed.json()["description"]) == ("Helpers", None)
    assert renamed.json()["email_domain"] == "help.example", "absent is unchanged"
    assert (await admin.http.get(f"{ROLES}/Support")).status_code == 404
    assert (await admin.http.delete(f"{ROLES}/Helpers/members/{user.id}")).status_code == 204
    assert (await admin.http.delete(f"{ROLES}/Helpers/members/{user.id}")).status_code == 404
    assert (await admin.http.delete(f"{ROLES}/Helpers")).status_code == 204
    assert (await admin.http.get(f"{ROLES}/Helpers")).status_code == 404
    actions = await runtime.database.rows(
        select(AuditRow.action).where(AuditRow.target.in_(["Support", "Helpers"])).order_by(AuditRow.id)
    )
    assert [row.action for row in actions] == [
        "create", "set_permission", "add_member", "set_permission", "set_permission", "remove_permission", "update",
        "remove_member", "delete",
    ]  # fmt: skip


async def test_an_ordinary_user_sees_only_his_roles(user: Person, admin: Person, guest: Person) -> None:
    await admin.http.post(f"{ROLES}/Users/members", json={"user_id": str(guest.id)})
    assert [role["name"] for role in (await user.http.get(ROLES)).json()] == ["Users"]
    assert (await user.http.get(f"{ROLES}/Users")).status_code == 200
    assert (await user.http.get(f"{ROLES}/Admins")).status_code == 404
    assert (await user.http.get(f"{ROLES}/Admins/permissions")).status_code == 404
    assert (await user.http.get(f"{ROLES}/Admins/members")).status_code == 404
    assert (await user.http.get(f"{ROLES}/Nothing")).status_code == 404
    seen = (await user.http.get(f"{ROLES}/Users/members")).json()
    assert [member["user_email"] for member in seen] == [user.email], "other members are none of his business"
    assert {role["name"] for role in (await admin.http.get(ROLES)).json()} == {"Admins", "GuestUsers", "Users"}
    assert len((await admin.http.get(ROLES, params={"skip": 1, "limit": 1})).json()) == 1
    assert len((await admin.http.get(f"{ROLES}/Users/members")).json()) == 2


async def test_an_ordinary_user_changes_nothing(user: Person, guest: Person) -> None:
    key = {"permission_key": "sinas.*:all", "permission_value": True}
    assert (await user.http.post(ROLES, json={"name": "Mine"})).status_code == 403
    assert (await user.http.patch(f"{ROLES}/Users", json={"description": "x"})).status_code == 403
    assert (await user.http.delete(f"{ROLES}/Users")).status_code == 403
    assert (await user.http.post(f"{ROLES}/Users/permissions", json=key)).status_code == 403
    assert (await user.http.post(f"{ROLES}/Admins/permissions", json=key)).status_code == 403
    assert (await user.http.post(f"{ROLES}/Admins/members", json={"user_id": str(user.id)})).status_code == 403
    assert (await guest.http.get(ROLES)).status_code == 403


async def test_a_role_editor_cannot_rise(admin: Person, user: Person, with_key: KeyClient) -> None:
    """Someone who may edit every role still gives only what he holds."""
    await admin.http.post(ROLES, json={"name": "Clerks"})
    for key in ("sinas.roles.*:all", "sinas.users.read:all"):
        body = {"permission_key": key, "permission_value": True}
        assert (await admin.http.post(f"{ROLES}/Clerks/permissions", json=body)).status_code == 200
    await admin.http.post(f"{ROLES}/Clerks/members", json={"user_id": str(user.id)})
    within = {"permission_key": "sinas.users.read:own", "permission_value": True}
    for role, key in (("Clerks", "sinas.*:all"), ("Clerks", "sinas.users.delete:all"), ("Clerks", "titan.x.read:own")):
        refused = await user.http.post(
            f"{ROLES}/{role}/permissions", json={"permission_key": key, "permission_value": True}
        )
        assert refused.status_code == 403 and key in refused.json()["detail"]
    for attempt in (
        user.http.post(f"{ROLES}/Admins/members", json={"user_id": str(user.id)}),
        user.http.patch(f"{ROLES}/Admins", json={"email_domain": "example.com"}),
        user.http.delete(f"{ROLES}/Admins/members/{admin.id}"),
        user.http.post(f"{ROLES}/Admins/permissions", json=within | {"permission_value": False}),
    ):
        refused = await attempt
        assert refused.status_code == 403 and "sinas.*:all" in refused.json()["detail"]
    assert (await user.http.post(f"{ROLES}/Clerks/permissions", json=within)).status_code == 200
    weak = await with_key(admin, "sinas.roles.*:all")
    beyond = {"permission_key": "sinas.users.read:all", "permission_value": True}
    assert (await weak.post(f"{ROLES}/GuestUsers/permissions", json=beyond)).status_code == 403


@pytest.mark.parametrize("name", ["Admins", "Users", "GuestUsers"])
async def test_built_in_roles_stay(name: str, admin: Person) -> None:
    assert (await admin.http.delete(f"{ROLES}/{name}")).status_code == 400
    assert (await admin.http.patch(f"{ROLES}/{name}", json={"name": "Other"})).status_code == 400
    described = await admin.http.patch(f"{ROLES}/{name}", json={"name": name, "description": "Ours"})
    assert (described.status_code, described.json()["description"]) == (200, "Ours")


async def test_bad_input_is_4xx(admin: Person) -> None:
    for bad in ({}, {"name": ""}, {"name": None}, {"name": "a/b"}, {"name": "a\nb"}, {"name": "x" * 256},
                {"name": "x", "email_domain": "no domain"}, {"name": "x", "email_domain": ""}):  # fmt: skip
        assert (await admin.http.post(ROLES, json=bad)).status_code == 422, bad
    await admin.http.post(ROLES, json={"name": "X"})
    for wrong in ({}, {"permission_key": "x"}, {"permission_key": "nonsense", "permission_value": True},
                {"permission_key": "sinas.a.read:own", "permission_value": None}):  # fmt: skip
        assert (await admin.http.post(f"{ROLES}/X/permissions", json=wrong)).status_code == 422, wrong
    assert (await admin.http.delete(f"{ROLES}/X/permissions")).status_code == 422
    unset = {"permission_key": "sinas.a.read:own"}
    assert (await admin.http.delete(f"{ROLES}/X/permissions", params=unset)).status_code == 404
    assert (await admin.http.post(f"{ROLES}/X/members", json={"user_id": str(uuid4())})).status_code == 404
    assert (await admin.http.post(f"{ROLES}/X/members", json={"user_id": "7"})).status_code == 422
    assert (await admin.http.patch(f"{ROLES}/X", json={"name": "Users"})).status_code == 400
    assert (await admin.http.patch(f"{ROLES}/X", json={"name": None})).json()["name"] == "X"
    assert (await admin.http.get(f"{ROLES}/%00")).status_code in (404, 422)


async def test_both_references_list_every_resource(admin: Person, user: Person, runtime: Runtime) -> None:
    first = (await user.http.get(f"{ROLES}/permissions/reference")).json()
    assert first == (await admin.http.get("/api/v1/permissions/reference")).json()
    known = {item["resource"]: item for item in first}
    assert known["users"]["actions"] == ["create", "read", "update", "delete"]
    assert set(known) == {kind.plural for kind in runtime.kinds.values()} | {item.name for item in runtime.resources}
    assert all(item["description"] and set(item) >= {"namespaced", "adminOnly", "actions"} for item in first)
    assert "sinas.api_keys.create:own" in known["api_keys"]["permissions"]


async def test_the_defaults_are_what_the_platform_promises(admin: Person, user: Person, runtime: Runtime) -> None:
    defaults = (await admin.http.get(f"{ROLES}/permissions/defaults")).json()
    assert defaults["Admins"] == ["sinas.*:all"]
    assert sorted(defaults["GuestUsers"]) == ["sinas.users.read:own", "sinas.users.update:own"]
    for kind in runtime.kinds.values():
        of_kind = [key for key in defaults["Users"] if key.startswith(f"sinas.{kind.plural}.")]
        if kind.admin_only:
            assert of_kind == []
        else:
            assert f"sinas.{kind.plural}.create:own" in of_kind
            assert {key for key in of_kind if key.endswith(":all")} <= {f"sinas.{kind.plural}.chat:all"}
    asked = {"permissions": defaults["Users"]}
    assert (await user.http.post("/auth/check-permissions", json=asked)).json()["result"] is True


async def test_null_is_a_domain_like_none(admin: Person) -> None:
    made = await admin.http.post("/api/v1/roles", json={"name": "plain", "description": None, "email_domain": None})
    assert (made.status_code, made.json()["email_domain"]) == (201, None)
    changed = await admin.http.patch("/api/v1/roles/plain", json={"email_domain": None})
    assert changed.status_code == 200
