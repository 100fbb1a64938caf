"""What one API process is told takes effect on the next request of every other: nothing about rights is remembered."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest

from sinas_server.app import create_app
from sinas_server.kernel.runtime import Runtime
from sinas_server.roles import open_runtime
from sinas_server.settings import Settings
from tests.people import Person, http_client, make_key

Change = Callable[[Person, Person], Awaitable[httpx2.Response]]
PROBE = "/api/v1/agents"


@pytest.fixture
async def elsewhere(settings: Settings, runtime: Runtime) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of another API process on the same servers, without credentials."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Runtime]:
        async with open_runtime(settings, "replica") as made:
            yield made

    app = create_app(settings, opened)
    async with app.router.lifespan_context(app), http_client(app) as made:
        yield made


async def _made(client: httpx2.AsyncClient, credential: str) -> int:
    """What the other process answers somebody who makes an agent."""
    headers = {"Authorization": f"Bearer {credential}"}
    answer = await client.post(PROBE, json={"name": "probe"}, headers=headers)
    if answer.status_code == 201:
        assert (await client.delete(f"{PROBE}/default/probe", headers=headers)).status_code == 204
    return answer.status_code


async def _deactivate(admin: Person, user: Person) -> httpx2.Response:
    return await admin.http.patch(f"/api/v1/users/{user.id}", json={"is_active": False})


async def _end_sessions(admin: Person, user: Person) -> httpx2.Response:
    return await admin.http.delete(f"/api/v1/users/{user.id}/sessions")


async def _leave_role(admin: Person, user: Person) -> httpx2.Response:
    return await admin.http.delete(f"/api/v1/roles/Users/members/{user.id}")


async def _take_permission(admin: Person, user: Person) -> httpx2.Response:
    off = {"permission_key": "sinas.agents.create:own", "permission_value": False}
    return await admin.http.post("/api/v1/roles/Users/permissions", json=off)


async def _revoke_key(admin: Person, user: Person) -> httpx2.Response:
    (key,) = (await user.http.get("/api/v1/api-keys")).json()
    return await admin.http.delete(f"/api/v1/api-keys/{key['id']}")


async def _delete_user(admin: Person, user: Person) -> httpx2.Response:
    return await admin.http.delete(f"/api/v1/users/{user.id}")


CHANGES: dict[str, tuple[Change, int, int]] = {
    "the user is deactivated": (_deactivate, 401, 401),
    "the user is deleted": (_delete_user, 401, 401),
    "the sessions are ended": (_end_sessions, 401, 201),
    "the key is revoked": (_revoke_key, 201, 401),
    "the user leaves the role": (_leave_role, 403, 403),
    "the role loses the permission": (_take_permission, 403, 403),
}
"""What an administrator does → what a session and an API key of the user get then."""


@pytest.mark.parametrize(("change", "session", "key"), CHANGES.values(), ids=CHANGES)
async def test_it_holds_on_every_replica_at_once(
    change: Change,
    session: int,
    key: int,
    admin: Person,
    user: Person,
    runtime: Runtime,
    elsewhere: httpx2.AsyncClient,
) -> None:
    secret = await make_key(runtime, user.id, "sinas.agents.*:own")
    for _ in range(2):  # what could be remembered is
        assert (await _made(elsewhere, user.token), await _made(elsewhere, secret)) == (201, 201)
    assert (await change(admin, user)).is_success
    assert (await _made(elsewhere, user.token), await _made(elsewhere, secret)) == (session, key)


async def test_a_new_right_holds_on_every_replica_at_once(
    admin: Person, guest: Person, elsewhere: httpx2.AsyncClient
) -> None:
    assert await _made(elsewhere, guest.token) == 403
    joined = await admin.http.post("/api/v1/roles/Users/members", json={"user_id": str(guest.id)})
    assert joined.status_code == 200
    assert await _made(elsewhere, guest.token) == 201
