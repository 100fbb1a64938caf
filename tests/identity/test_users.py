"""Users: everyone sees himself, administrators see all, and the last of them stays."""

from uuid import uuid4

import pytest

from tests.identity.conftest import KeyClient
from tests.people import Person

USERS = "/api/v1/users"


async def test_who_sees_whom(admin: Person, user: Person, guest: Person) -> None:
    everyone = (await admin.http.get(USERS)).json()
    assert {person["email"] for person in everyone} == {admin.email, user.email, guest.email}
    assert next(person for person in everyone if person["email"] == guest.email)["roles"] == ["GuestUsers"]
    assert [person["email"] for person in (await user.http.get(USERS)).json()] == [user.email]
    assert [person["email"] for person in (await guest.http.get(USERS)).json()] == [guest.email]
    assert (await user.http.get(f"{USERS}/{user.id}")).json()["email"] == user.email
    assert (await user.http.get(f"{USERS}/{guest.id}")).status_code == 404
    assert (await admin.http.get(f"{USERS}/{guest.id}")).status_code == 200
    assert (await admin.http.get(f"{USERS}/{uuid4()}")).status_code == 404
    assert (await admin.http.get(f"{USERS}/me")).status_code in (404, 422)


async def test_searching_and_paging(admin: Person) -> None:
    for name in ("anna", "bert", "100%"):
        assert (await admin.http.post(USERS, json={"email": f"{name}@search.example.com"})).status_code == 201
    found = (await admin.http.get(USERS, params={"search": "SEARCH.example"})).json()
    assert [person["email"][:4] for person in found] == ["100%", "anna", "bert"]
    page = (await admin.http.get(USERS, params={"search": "search.", "skip": 1, "limit": 1})).json()
    assert [person["email"] for person in page] == ["anna@search.example.com"]
    assert len((await admin.http.get(USERS, params={"search": "%"})).json()) == 1, "wildcards are characters"
    for bad in ({"limit": 0}, {"limit": 1001}, {"skip": -1}, {"skip": 2**40}, {"limit": "x"}):
        assert (await admin.http.get(USERS, params=bad)).status_code == 422


async def test_creating_a_user(admin: Person, user: Person) -> None:
    made = await admin.http.post(USERS, json={"email": "New@Example.com", "first_name": "ignored"})
    assert made.status_code == 201
    assert (made.json()["email"], made.json()["roles"]) == ("new@example.com", ["GuestUsers"])
    again = await admin.http.post(USERS, json={"email": "new@example.COM"})
    assert again.status_code == 400 and "already exists" in again.json()["detail"]
    assert (await user.http.post(USERS, json={"email": "x@example.com"})).status_code == 403
    for bad in ({}, {"email": None}, {"email": "no address"}, {"email": f"{'a' * 400}@example.com"}):
        assert (await admin.http.post(USERS, json=bad)).status_code == 422


async def test_a_guest_updates_his_own_profile_only(guest: Person, user: Person) -> None:
    changed = await guest.http.patch(f"{USERS}/{guest.id}", json={"custom_fields": {"team": "blue"}})
    assert changed.status_code == 200 and changed.json()["custom_fields"] == {"team": "blue"}
    assert (await guest.http.get("/auth/me")).json()["custom_fields"] == {"team": "blue"}
    untouched = await guest.http.patch(f"{USERS}/{guest.id}", json={})
    assert untouched.json()["custom_fields"] == {"team": "blue"}
    assert (await guest.http.patch(f"{USERS}/{user.id}", json={"custom_fields": {}})).status_code == 404
    assert (await guest.http.patch(f"{USERS}/{guest.id}", json={"is_active": False})).status_code == 403
    assert (await guest.http.delete(f"{USERS}/{guest.id}")).status_code == 403
    too_big = await guest.http.patch(f"{USERS}/{guest.id}", json={"custom_fields": {"x": "y" * 17_000}})
    assert too_big.status_code == 422
    nul = await guest.http.patch(f"{USERS}/{guest.id}", content=b'{"custom_fields": {"x": "\\u0000"}}')
    assert nul.status_code == 422


async def test_deactivating_ends_everything_at_once(admin: Person, user: Person, with_key: KeyClient) -> None:
    key = await with_key(user)
    changed = await admin.http.patch(f"{USERS}/{user.id}", json={"is_active": False})
    assert changed.json()["is_active"] is False
    assert (await user.http.get("/auth/me")).status_code == 401
    assert (await key.get("/auth/me")).status_code == 401
    await admin.http.patch(f"{USERS}/{user.id}", json={"is_active": True})
    assert (await user.http.get("/auth/me")).status_code == 401, "the old session stays revoked"
    assert (await key.get("/auth/me")).status_code == 200


async def test_deleting_a_user(admin: Person, user: Person) -> None:
    assert (await admin.http.delete(f"{USERS}/{user.id}")).status_code == 204
    assert (await user.http.get("/auth/me")).status_code == 401
    assert (await admin.http.get(f"{USERS}/{user.id}")).status_code == 404
    assert (await admin.http.delete(f"{USERS}/{user.id}")).status_code == 404


async def test_the_last_administrator_stays(admin: Person, user: Person) -> None:
    for attempt in (
        admin.http.delete(f"{USERS}/{admin.id}"),
        admin.http.patch(f"{USERS}/{admin.id}", json={"is_active": False}),
        admin.http.delete(f"/api/v1/roles/Admins/members/{admin.id}"),
        admin.http.delete("/api/v1/roles/Admins/permissions", params={"permission_key": "sinas.*:all"}),
        admin.http.post(
            "/api/v1/roles/Admins/permissions", json={"permission_key": "sinas.*:all", "permission_value": False}
        ),
    ):
        answer = await attempt
        assert answer.status_code == 409
        assert "last administrator" in answer.json()["detail"]
    assert (await admin.http.get("/auth/me")).json()["roles"] == ["Admins"]
    added = await admin.http.post("/api/v1/roles/Admins/members", json={"user_id": str(user.id)})
    assert added.status_code == 200
    assert (await admin.http.delete(f"{USERS}/{admin.id}")).status_code == 204
    assert (await user.http.get("/auth/me")).json()["roles"] == ["Admins", "Users"]


@pytest.mark.parametrize("change", ["delete", "deactivate"])
async def test_only_an_administrator_removes_an_administrator(
    change: str, admin: Person, user: Person, with_key: KeyClient
) -> None:
    clerk = await with_key(admin, "sinas.users.*:all")

    async def attempt(person: Person) -> int:
        if change == "delete":
            return (await clerk.delete(f"{USERS}/{person.id}")).status_code
        return (await clerk.patch(f"{USERS}/{person.id}", json={"is_active": False})).status_code

    assert await attempt(admin) == 403
    assert await attempt(user) in (200, 204)
