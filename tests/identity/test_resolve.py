"""Credentials in either header become the same caller, with the rights of this moment."""

import httpx2
import pytest

from sinas_server.kernel.runtime import Runtime
from tests.people import Person, make_key


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_session_is_its_user(user: Person) -> None:
    answer = await user.http.get("/auth/me")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["id"], body["email"], body["roles"]) == (str(user.id), user.email, ["Users"])
    assert body["created_at"].endswith("Z")
    assert body["last_login_at"] is None and body["custom_fields"] == {} and body["is_active"] is True


async def test_no_credentials_are_401(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/auth/me")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
async def test_both_headers_carry_keys_and_tokens(
    header: str, client: httpx2.AsyncClient, runtime: Runtime, user: Person
) -> None:
    for credential in (await make_key(runtime, user.id), user.token):
        value = f"Bearer {credential}" if header == "Authorization" else credential
        answer = await client.get("/auth/me", headers={header: value})
        assert (answer.status_code, answer.json()["id"]) == (200, str(user.id))


async def test_a_bearer_decides_over_a_key(
    client: httpx2.AsyncClient, runtime: Runtime, user: Person, guest: Person
) -> None:
    key = await make_key(runtime, user.id)
    both = await client.get("/auth/me", headers={**bearer(guest.token), "X-API-Key": key})
    assert both.json()["id"] == str(guest.id)
    beside_garbage = await client.get("/auth/me", headers={**bearer(guest.token), "X-API-Key": "sk-sinas-nonsense"})
    assert beside_garbage.json()["id"] == str(guest.id)
    expired = await client.get("/auth/me", headers={**bearer("expired"), "X-API-Key": key})
    assert expired.status_code == 401, "a client must not silently become the user of the key"
    other_scheme = await client.get("/auth/me", headers={"Authorization": "Basic eDp5", "X-API-Key": key})
    assert other_scheme.json()["id"] == str(user.id)


@pytest.mark.parametrize(
    "token", ["x", "sk-sinas-", "sk-sinas-\u00e9", "a.b.c", "null", "undefined", "6ba40bfd-b2aa-4478-bdbb-e4c8b47180ab"]
)
@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
async def test_garbage_is_401(header: str, token: str, client: httpx2.AsyncClient) -> None:
    value = f"Bearer {token}" if header == "Authorization" else token
    assert (await client.get("/auth/me", headers={header.encode(): value.encode()})).status_code == 401
