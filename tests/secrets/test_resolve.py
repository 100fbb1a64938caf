"""What a name stands for in what runs for a user: his own secret first, and only what the code's owner may use."""

from collections.abc import Awaitable, Callable

import pytest
from cryptography.fernet import Fernet
from fastapi import FastAPI

from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import KeyMissingError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.crypto import Sealer
from sinas_server.secrets.resolve import resolve_secret, usable_names
from tests.people import Person, make_person
from tests.secrets.test_secrets import URL, put

Resolve = Callable[[Person, Person, str], Awaitable[str | None]]


async def caller(runtime: Runtime, person: Person) -> Caller:
    return await act_for(runtime, Principal(person.id), "system")


@pytest.fixture
def resolve(runtime: Runtime) -> Resolve:
    """`await resolve(user, owner, name)`: what the code of `owner` gets for `user`."""

    async def made(user: Person, owner: Person, name: str) -> str | None:
        async with runtime.database.unit() as db:
            return await resolve_secret(
                db, await caller(runtime, user), await caller(runtime, owner), name, {"execution_id": "e-1"}
            )

    return made


async def test_the_users_own_comes_first(admin: Person, user: Person, resolve: Resolve) -> None:
    await put(admin.http, value="shared")
    assert await resolve(user, admin, "TOKEN") == "shared"
    mine = await put(user.http, value="mine", visibility="private")
    assert await resolve(user, admin, "TOKEN") == "mine"
    assert await resolve(admin, admin, "TOKEN") == "shared", "it is private to its user"
    assert (await user.http.delete(f"{URL}/{mine['id']}?visibility=private")).status_code == 204
    assert await resolve(user, admin, "TOKEN") == "shared"
    assert await resolve(user, admin, "MISSING") is None


async def test_only_what_the_owner_of_the_code_may_use(
    admin: Person, user: Person, resolve: Resolve, runtime: Runtime, app: FastAPI
) -> None:
    await put(admin.http, value="shared")
    await put(admin.http, value="his", visibility="private")
    await put(user.http, "MINE", value="mine", visibility="private")
    assert await resolve(admin, user, "TOKEN") is None, "an ordinary user's code would take it wherever he likes"
    assert await resolve(user, user, "TOKEN") is None
    assert await resolve(user, user, "MINE") == "mine"
    body = {"permission_key": "sinas.secrets/TOKEN.use:all", "permission_value": True}
    await admin.http.post("/api/v1/roles", json={"name": "crm"})
    assert (await admin.http.post("/api/v1/roles/crm/permissions", json=body)).status_code == 200
    trusted = await make_person(runtime, app, ["crm"])
    async with trusted.http:
        assert await resolve(user, trusted, "TOKEN") == "shared"
        assert await resolve(admin, trusted, "TOKEN") == "his"
        assert await resolve(user, trusted, "MINE") is None


async def test_names_are_those_that_resolve(admin: Person, user: Person, resolve: Resolve, runtime: Runtime) -> None:
    for name in ("B", "A"):
        await put(admin.http, name, value="shared")
    await put(user.http, "A", visibility="private")
    await put(user.http, "C", visibility="private")
    async with runtime.database.unit() as db:
        me, trusted = await caller(runtime, user), await caller(runtime, admin)
        assert await usable_names(db, me, trusted) == ["A", "B", "C"]
        assert await usable_names(db, me, me) == ["A", "C"]


async def test_each_resolution_is_audited(admin: Person, user: Person, resolve: Resolve) -> None:
    await put(admin.http, value="shared")
    await resolve(user, admin, "TOKEN")
    await resolve(user, admin, "MISSING")
    entries = (await admin.http.get("/api/v1/audit", params={"action": "use"})).json()
    assert [(entry["actor"], entry["target_kind"], entry["target"], entry["detail"]) for entry in entries] == [
        (user.email, "secret", "TOKEN", {"visibility": "shared", "execution_id": "e-1"})
    ]


async def test_one_whose_key_is_gone_says_so(
    admin: Person, runtime: Runtime, resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(admin.http)
    monkeypatch.setattr(runtime.database, "sealer", Sealer([Fernet.generate_key().decode()]))
    with pytest.raises(KeyMissingError, match=r"value of secret 'TOKEN' cannot be decrypted"):
        await resolve(admin, admin, "TOKEN")
