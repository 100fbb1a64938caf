"""What an installation starts with, at its first start and at every later one."""

import asyncio
import stat
from collections.abc import Mapping
from dataclasses import replace

import httpx2
import pytest
from sqlalchemy import delete, func, select, update

from sinas_server.identity.bootstrap import bootstrap
from sinas_server.identity.guard import some_administrator
from sinas_server.identity.tables import ApiKeyRow, RolePermissionRow, RoleRow, UserRoleRow, UserRow
from sinas_server.kernel.kind import AnyKind, Kind, Spec
from sinas_server.kernel.runtime import Runtime
from tests.people import Person

WIDGET = Kind(name="widget", plural="widgets", spec=Spec, actions=("create", "read", "chat"))
VAULT = Kind(name="vault", plural="vaults", spec=Spec, admin_only=True)


async def permissions(runtime: Runtime, role: str) -> set[str]:
    rows = await runtime.database.rows(
        select(RolePermissionRow.permission_key)
        .join(RoleRow, RoleRow.id == RolePermissionRow.role_id)
        .where(RoleRow.name == role, RolePermissionRow.permission_value)
    )
    return {row.permission_key for row in rows}


async def test_the_administrators_key_works(runtime: Runtime, client: httpx2.AsyncClient) -> None:
    path = runtime.settings.sinas_data_dir / "admin-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    headers = {"Authorization": f"Bearer {path.read_text().strip()}"}
    me = (await client.get("/auth/me", headers=headers)).json()
    assert (me["email"], me["roles"]) == ("admin@example.com", ["Admins"])
    check = {"permissions": ["sinas.agents.delete:all", "sinas.users.create:all"]}
    assert (await client.post("/auth/check-permissions", headers=headers, json=check)).json()["result"] is True


async def test_later_starts_change_nothing(runtime: Runtime) -> None:
    path = runtime.settings.sinas_data_dir / "admin-key"
    before = path.read_text()
    await asyncio.gather(*(bootstrap(runtime) for _ in range(3)))
    assert path.read_text() == before
    for table, count in ((UserRow, 1), (RoleRow, 3), (ApiKeyRow, 1), (UserRoleRow, 1)):
        assert (await runtime.database.rows(select(func.count(table.id))))[0][0] == count


@pytest.mark.parametrize("broken", ["missing", "garbage", "binary", "revoked", "weak"])
async def test_a_key_that_does_not_work_is_replaced(broken: str, runtime: Runtime, client: httpx2.AsyncClient) -> None:
    path = runtime.settings.sinas_data_dir / "admin-key"
    before = path.read_text()
    match broken:
        case "missing":
            path.unlink()
        case "garbage":
            path.write_text("sk-sinas-nonsense")
        case "binary":
            path.write_bytes(b"\xff\xfe")
        case "revoked":
            await runtime.database.rows(update(ApiKeyRow).values(is_active=False))
        case "weak":
            await runtime.database.rows(update(ApiKeyRow).values(permissions={"sinas.users.read:own": True}))
    await asyncio.gather(*(bootstrap(runtime) for _ in range(2)))
    after = path.read_text().strip()
    assert after != before.strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (await client.get("/auth/me", headers={"X-API-Key": after})).status_code == 200
    assert (await client.get("/auth/me", headers={"X-API-Key": before.strip()})).status_code == 401
    active = await runtime.database.rows(select(ApiKeyRow.id).where(ApiKeyRow.is_active))
    assert len(active) == 1


async def test_clustered_there_is_no_key_file(runtime: Runtime) -> None:
    path = runtime.settings.sinas_data_dir / "admin-key"
    path.unlink()
    await bootstrap(replace(runtime, settings=runtime.settings.model_copy(update={"sinas_mode": "clustered"})))
    assert not path.exists()


async def test_what_an_administrator_took_away_stays_away(admin: Person, runtime: Runtime) -> None:
    key = "sinas.api_keys.create:own"
    assert key in await permissions(runtime, "Users")
    await admin.http.delete("/api/v1/roles/Users/permissions", params={"permission_key": key})
    await bootstrap(runtime)
    assert key not in await permissions(runtime, "Users")


async def test_a_new_kind_is_given_to_users_once(runtime: Runtime) -> None:
    kinds: Mapping[str, AnyKind] = {**runtime.kinds, "widget": WIDGET, "vault": VAULT}
    before = await permissions(runtime, "Users")
    await bootstrap(replace(runtime, kinds=kinds))
    assert await permissions(runtime, "Users") - before == {
        "sinas.widgets.create:own", "sinas.widgets.read:own", "sinas.widgets.chat:all"
    }  # fmt: skip


async def test_someone_is_always_in_charge(runtime: Runtime, client: httpx2.AsyncClient) -> None:
    """Even after the memberships were lost, the configured administrator gets in again."""
    await runtime.database.rows(delete(UserRoleRow))
    await bootstrap(runtime)
    key = (runtime.settings.sinas_data_dir / "admin-key").read_text().strip()
    assert (await client.get("/auth/me", headers={"X-API-Key": key})).json()["roles"] == ["Admins"]


async def test_a_demoted_administrator_is_not_promoted_again(admin: Person, user: Person, runtime: Runtime) -> None:
    await admin.http.post("/api/v1/roles/Admins/members", json={"user_id": str(user.id)})
    await user.http.delete(f"/api/v1/roles/Admins/members/{admin.id}")
    await bootstrap(runtime)
    assert (await admin.http.get("/auth/me")).json()["roles"] == []
    async with runtime.database.unit() as db:
        in_charge = await some_administrator(db, admin.email)
    assert in_charge == user.id, "what an installation is given belongs to someone who may have it"
