"""Who may do what: the same gate for every kind and every door."""

import random
from collections.abc import Sequence

import httpx2
import pytest
from fastapi import FastAPI

from sinas_server.kernel.kind import AnyKind
from sinas_server.kernel.runtime import Runtime
from tests.kernel.every_kind.examples import Example
from tests.people import Person, http_client, make_key, make_person

ROUNDS = 12


async def holder(runtime: Runtime, app: FastAPI, owner: Person, keys: Sequence[str]) -> httpx2.AsyncClient:
    """A client that holds exactly these permissions of an administrator."""
    return http_client(app, {"X-API-Key": await make_key(runtime, owner.id, *keys)})


async def doors(example: Example, http: httpx2.AsyncClient, name: str) -> dict[str, int]:
    """The status of each door, the least harmful first."""
    at = example.item(name)
    return {
        "read": (await http.get(at)).status_code,
        "versions": (await http.get(f"{at}/versions")).status_code,
        "update": (await http.put(at, json=example.change)).status_code,
        "rename": (await http.put(at, json={"name": name})).status_code,
        "restore": (await http.post(f"{at}/versions/1/restore")).status_code,
        "delete": (await http.delete(at)).status_code,
        "undelete": (await http.post(f"{at}/undelete")).status_code,
    }


async def test_nobody_without_credentials(example: Example, client: httpx2.AsyncClient) -> None:
    assert (await client.get(example.collection)).status_code == 401
    assert (await client.post(example.collection, json=example.body("x"))).status_code == 401
    assert set((await doors(example, client, "x")).values()) == {401}


async def test_no_rights_are_403(example: Example, runtime: Runtime, app: FastAPI, admin: Person) -> None:
    await example.make(admin.http)
    async with await holder(runtime, app, admin, ["sinas.nothing.read:all"]) as nobody:
        assert (await nobody.post(example.collection, json=example.body("x"))).status_code == 403
        listed = await nobody.get(example.collection)
        assert (listed.status_code, listed.json()) == (200, [])
        statuses = await doors(example, nobody, "first")
        assert statuses.pop("undelete") in (403, 404)
        assert set(statuses.values()) == {403}
        missing = await nobody.get(example.item("missing"))
        assert missing.status_code == 404
        if example.runtime_collection:
            assert (await nobody.get(example.runtime_collection)).json() == []
    assert (await admin.http.get(example.item("first"))).json()["version"] == 1


@pytest.mark.parametrize("action", ["create", "read", "update", "delete"])
async def test_each_verb_opens_its_own_doors(
    action: str, example: Example, runtime: Runtime, app: FastAPI, admin: Person
) -> None:
    await example.make(admin.http)
    opens = {
        "create": set(),
        "read": {"read", "versions"},
        "update": {"update", "rename"},
        "delete": {"delete", "undelete"},
    }[action]
    async with await holder(runtime, app, admin, [f"sinas.{example.kind.plural}.{action}:all"]) as http:
        created = await http.post(example.collection, json=example.body("second"))
        assert created.status_code == (201 if action == "create" else 403)
        statuses = await doors(example, http, "first")
        assert {door for door, status in statuses.items() if status == 200 or status == 204} == opens, statuses
        assert set(statuses.values()) <= {200, 204, 403, 404}


async def test_own_and_all(example: Example, runtime: Runtime, app: FastAPI, admin: Person) -> None:
    kind = example.kind.plural
    own = [f"sinas.{kind}.{action}:own" for action in ("create", "read", "update", "delete")]
    everyone = [f"sinas.{kind}.{action}:all" for action in ("read", "update", "delete")]
    other = await make_person(runtime, app, ["Admins"])
    async with (
        other.http,
        await holder(runtime, app, admin, own) as mine,
        await holder(runtime, app, other, own) as theirs,
        await holder(runtime, app, other, everyone) as all_of_them,
    ):
        await example.make(mine)
        assert [found["name"] for found in (await mine.get(example.collection)).json()] == ["first"]
        assert (await theirs.get(example.collection)).json() == []
        statuses = await doors(example, theirs, "first")
        assert set(statuses.values()) <= {403, 404}, statuses
        assert [found["name"] for found in (await all_of_them.get(example.collection)).json()] == ["first"]
        assert set((await doors(example, all_of_them, "first")).values()) == {200, 204}
        assert (await mine.get(example.item("first"))).json()["user_id"] == str(admin.id), (
            "writing does not change owner"
        )
        assert set((await doors(example, mine, "first")).values()) == {200, 204}


async def test_the_default_roles(example: Example, user: Person, guest: Person) -> None:
    expected = 403 if example.kind.admin_only else 201
    assert (await user.http.post(example.collection, json=example.body("mine"))).status_code == expected
    assert (await guest.http.post(example.collection, json=example.body("no"))).status_code == 403
    assert (await guest.http.get(example.collection)).json() == []
    if expected == 201:
        assert set((await doors(example, user.http, "mine")).values()) == {200, 204}
        assert (await guest.http.get(example.item("mine"))).status_code == 403


async def test_renaming_takes_the_right_to_the_new_name(
    example: Example, runtime: Runtime, app: FastAPI, admin: Person
) -> None:
    await example.make(admin.http)
    path = "default/first" if example.kind.namespaced else "first"
    key = f"sinas.{example.kind.plural}/{path}.update:all"
    async with await holder(runtime, app, admin, [key]) as http:
        assert (await http.put(example.item("first"), json=example.change)).status_code == 200
        assert (await http.put(example.item("first"), json={"name": "elsewhere"})).status_code == 403


async def test_lists_show_what_may_be_read(example: Example, runtime: Runtime, app: FastAPI, admin: Person) -> None:
    """For random grants: list == filter(read), and pages of the list are pages of that."""
    other = await make_person(runtime, app, ["Admins"])
    places = [("alpha", "one"), ("alpha", "two"), ("beta", "one"), ("be-ta", "tw_o")]
    if not example.kind.namespaced:
        places = [("", name) for name in ("one", "two", "tw_o", "alpha")]
    rng = random.Random(example.kind.name)  # noqa: S311 - the same grants in every run
    async with other.http:
        for number, (namespace, name) in enumerate(places):
            who = admin if number % 2 else other
            await example.make(who.http, name, **({"namespace": namespace} if example.kind.namespaced else {}))
        for _ in range(ROUNDS):
            keys = [_grant(rng, example.kind) for _ in range(rng.randint(1, 3))]
            async with await holder(runtime, app, admin, keys) as http:
                readable = [at for at in sorted(places) if (await http.get(example.item(*at[::-1]))).status_code == 200]
                listed = await _places(http, example.collection)
                assert listed == readable, keys
                pages = [
                    await _places(http, f"{example.collection}?skip={skip}&limit=1") for skip in range(len(places))
                ]
                assert [place for page in pages for place in page] == listed, keys


async def _places(http: httpx2.AsyncClient, url: str) -> list[tuple[str, str]]:
    return [(found.get("namespace", ""), found["name"]) for found in (await http.get(url)).json()]


def _grant(rng: random.Random, kind: AnyKind) -> str:
    resource = rng.choice([kind.plural, kind.plural, kind.plural, "*", "other"])
    segment = ["alpha", "beta", "be-ta", "one", "two", "tw_o", "*"]
    path = rng.choice(["", "/" + "/".join(rng.choice(segment) for _ in range(rng.randint(1, 2)))])
    action = rng.choice(["read", "read", "read", "*", "update"])
    return f"sinas.{resource}{path}.{action}:{rng.choice(['own', 'all'])}"
