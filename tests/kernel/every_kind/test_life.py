"""Creating, reading, updating and deleting: the same for every kind."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from sinas_server.catalog import KINDS
from sinas_server.kernel.kind import nullable
from sinas_server.kernel.purge import purge
from sinas_server.kernel.runtime import Runtime
from tests.kernel.every_kind.examples import BY_KIND, OWN_ROUTES, Example
from tests.people import Person


def test_every_kind_has_an_example() -> None:
    assert set(BY_KIND) | set(OWN_ROUTES) == {kind.name for kind in KINDS}


async def test_create_get_list_update_delete(example: Example, admin: Person) -> None:
    http, at = admin.http, example.item("first")
    made = await http.post(example.collection, json=example.body("first"))
    assert made.status_code == 201
    assert made.headers["etag"] == '"1"'
    body = made.json()
    assert UUID(body["id"])
    assert (body["name"], body["user_id"], body["is_active"], body["version"]) == ("first", str(admin.id), True, 1)
    assert body.items() >= example.shown().items()
    assert body["managed_by"] is body["config_name"] is body["config_checksum"] is None
    assert datetime.fromisoformat(body["created_at"]) <= datetime.fromisoformat(body["updated_at"])

    got = await http.get(at)
    assert (got.status_code, got.json(), got.headers["etag"]) == (200, body, '"1"')
    assert (await http.get(example.collection)).json() == [body]

    for number, method in enumerate(("PUT", "PATCH"), 2):
        value = example.change if number == 2 else {key: example.spec.get(key) for key in example.change}
        changed = await http.request(method, at, json=value)
        assert (changed.status_code, changed.headers["etag"]) == (200, f'"{number}"'), changed.text
        assert changed.json() == {
            **body,
            **value,
            "version": number,
            "updated_at": changed.json()["updated_at"],
        }
        assert (await http.get(at)).json() == changed.json()

    gone = await http.delete(at)
    assert (gone.status_code, gone.content) == (204, b"")
    for answer in (await http.get(at), await http.put(at, json={}), await http.delete(at)):
        assert answer.status_code == 404
        assert "not found" in answer.json()["detail"]
    assert (await http.get(example.collection)).json() == []


async def test_both_path_forms_without_redirect(example: Example, admin: Person) -> None:
    http = admin.http
    made = await http.post(example.collection + "/", json=example.body("first"))
    assert made.status_code == 201
    at = example.item("first") + "/"
    assert (await http.get(example.collection + "/")).status_code == 200
    assert (await http.get(at)).json() == made.json()
    assert (await http.put(at, json=example.change)).status_code == 200
    assert (await http.patch(at, json=example.change)).status_code == 200
    assert (await http.get(at + "versions/")).status_code == 200
    assert (await http.delete(at)).status_code == 204


async def test_a_duplicate_is_400(example: Example, admin: Person) -> None:
    await example.make(admin.http)
    again = await admin.http.post(example.collection, json=example.body("first"))
    assert again.status_code == 400
    assert again.json()["detail"].endswith("already exists")


async def test_of_concurrent_creates_one_wins(example: Example, admin: Person) -> None:
    answers = await asyncio.gather(*(admin.http.post(example.collection, json=example.body("first")) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 400, 400, 400]


async def test_unknown_fields_are_ignored(example: Example, admin: Person) -> None:
    made = await example.make(admin.http, id=str(uuid4()), version=77, nonsense={"deep": [1]})
    assert "nonsense" not in made
    assert made["version"] == 1
    same = await admin.http.put(example.item("first"), json={"nonsense": 1, "id": "x", "user_id": None})
    assert (same.status_code, same.json()) == (200, made)


async def test_a_whole_answer_can_be_put_back(example: Example, admin: Person) -> None:
    made = await example.make(admin.http)
    again = await admin.http.put(example.item("first"), json=made)
    assert (again.status_code, again.json()) == (200, made)


async def test_null_clears_what_can_be_null_and_is_ignored_elsewhere(example: Example, admin: Person) -> None:
    made = await example.make(admin.http)
    for name, info in example.kind.spec.model_fields.items():
        if name in example.kind.spec.secret_fields():
            continue
        answer = await admin.http.put(example.item("first"), json={name: None})
        assert answer.status_code == 200, answer.text
        assert answer.json()[name] == (None if nullable(info) else made[name]), name
    kept = await admin.http.put(example.item("first"), json={"name": None, "is_active": None, "namespace": None})
    assert (kept.json()["name"], kept.json()["is_active"]) == ("first", True)


async def test_null_in_a_create_means_the_default(example: Example, admin: Person) -> None:
    required = {name for name, info in example.kind.spec.model_fields.items() if info.is_required()}
    body = dict.fromkeys(example.kind.spec.model_fields) | {name: example.spec[name] for name in required}
    made = await admin.http.post(example.collection, json={"name": "bare", "is_active": None, **body})
    assert made.status_code == 201, made.text
    for name in required:
        nothing = await admin.http.post(example.collection, json=example.body("other", **{name: None}))
        assert nothing.status_code == 422


async def test_broken_rules_are_422_with_their_place(example: Example, admin: Person) -> None:
    await example.make(admin.http)
    for name, value in example.invalid.items():
        created = await admin.http.post(example.collection, json=example.body("second", **{name: value}))
        updates = [await admin.http.request(m, example.item("first"), json={name: value}) for m in ("PUT", "PATCH")]
        for answer in (created, *updates):
            assert answer.status_code == 422, (name, answer.text)
            places = [problem["loc"] for problem in answer.json()["detail"]]
            assert any(place[:2] == ["body", name] for place in places), (name, places)
            assert all(problem["msg"] and problem["type"] for problem in answer.json()["detail"])
    assert (await admin.http.get(example.item("first"))).json()["version"] == 1


async def test_an_update_that_changes_nothing_is_no_version(example: Example, admin: Person) -> None:
    made = await example.make(admin.http)
    same = await admin.http.put(example.item("first"), json=example.spec)
    assert (same.status_code, same.json()["version"]) == (200, made["version"])


async def test_if_match(example: Example, admin: Person) -> None:
    http, at = admin.http, example.item("first")
    await example.make(http)
    for method in ("PUT", "PATCH", "DELETE"):
        json = None if method == "DELETE" else example.change
        stale = await http.request(method, at, json=json, headers={"If-Match": '"7"'})
        assert stale.status_code == 412, stale.text
        for garbage in (
            "x",
            '"1',
            '"',
            "",
            "-1",
            "1.0",
            '"1", "2"',
            '"' + "9" * 5000 + '"',
            "1 2",
        ):
            answer = await http.request(method, at, json=json, headers={"If-Match": garbage})
            assert answer.status_code == 422, garbage
    fitting = await http.put(at, json=example.change, headers={"If-Match": '"1"'})
    assert (fitting.status_code, fitting.headers["etag"]) == (200, '"2"')
    weak = await http.put(at, json={}, headers={"If-Match": 'W/"2"'})
    anything = await http.put(at, json={}, headers={"If-Match": "*"})
    assert (weak.status_code, anything.status_code) == (200, 200)
    assert (await http.delete(at, headers={"If-Match": '"2"'})).status_code == 204


async def test_of_concurrent_updates_of_one_version_one_wins(example: Example, admin: Person) -> None:
    await example.make(admin.http)
    answers = await asyncio.gather(
        *(admin.http.put(example.item("first"), json=example.change, headers={"If-Match": '"1"'}) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412]


async def test_concurrent_updates_and_restores_count_on(example: Example, admin: Person) -> None:
    http, at = admin.http, example.item("first")
    await example.make(http)
    answers = await asyncio.gather(
        *(http.put(at, json={"is_active": bool(number % 2)}) for number in range(4)),
        *(http.post(f"{at}/versions/1/restore") for _ in range(4)),
    )
    assert {answer.status_code for answer in answers} == {200}
    numbers = [version["version"] for version in (await http.get(f"{at}/versions")).json()]
    assert numbers == sorted(set(numbers), reverse=True)
    assert numbers[0] == (await http.get(at)).json()["version"]


async def test_versions_and_restore(example: Example, admin: Person) -> None:
    http, at = admin.http, example.item("first")
    made = await example.make(http)
    await http.put(at, json=example.change)
    versions = (await http.get(f"{at}/versions")).json()
    assert [version["version"] for version in versions] == [2, 1]
    assert versions[0].items() >= example.change.items()
    assert versions[1].items() >= example.shown().items()
    assert {version[f"{example.kind.name}_id"] for version in versions} == {made["id"]}
    assert {version["created_by"] for version in versions} == {str(admin.id)}

    restored = await http.post(f"{at}/versions/1/restore")
    assert (restored.status_code, restored.headers["etag"]) == (200, '"3"')
    assert restored.json() == {**made, "version": 3, "updated_at": restored.json()["updated_at"]}
    assert [version["version"] for version in (await http.get(f"{at}/versions")).json()] == [3, 2, 1]
    assert (await http.post(f"{at}/versions/9/restore")).status_code == 404
    for bad in ("0", "-1", "x", "1e3", str(10**30)):
        assert (await http.post(f"{at}/versions/{bad}/restore")).status_code in (404, 422)


async def test_undelete(example: Example, admin: Person) -> None:
    http, at = admin.http, example.item("first")
    made = await example.make(http)
    assert (await http.post(f"{at}/undelete")).status_code == 404
    await http.delete(at)
    listed = (await http.get(example.collection, params={"deleted": "true"})).json()
    assert [found["id"] for found in listed] == [made["id"]]
    back = await http.post(f"{at}/undelete")
    assert (back.status_code, back.json()["id"], back.json()["version"]) == (200, made["id"], 2)
    assert back.json().items() >= example.shown().items()
    assert (await http.get(at)).status_code == 200
    assert (await http.get(example.collection, params={"deleted": "true"})).json() == []


async def test_undelete_when_the_name_is_taken_again(example: Example, admin: Person) -> None:
    http, at = admin.http, example.item("first")
    first = await example.make(http)
    await http.delete(at)
    second = await example.make(http)
    assert first["id"] != second["id"]
    taken = await http.post(f"{at}/undelete")
    assert taken.status_code == 409, taken.text
    assert (await http.get(at)).json() == second


async def test_undelete_past_its_time(example: Example, admin: Person, runtime: Runtime) -> None:
    http, at = admin.http, example.item("first")
    await example.make(http)
    await http.delete(at)
    await purge(runtime)
    assert (await http.post(f"{at}/undelete")).status_code == 200, "purged too early"
    await http.delete(at)
    days = runtime.settings.deleted_retention_days
    long_ago = datetime.now(UTC) - timedelta(days=days, minutes=1)
    await runtime.database.rows(text("UPDATE resources SET deleted_at = :at"), {"at": long_ago})
    await purge(runtime)
    assert (await http.post(f"{at}/undelete")).status_code == 404
    assert not await runtime.database.rows(text("SELECT 1 FROM resource_versions"))


async def test_rename(example: Example, admin: Person) -> None:
    http = admin.http
    made = await example.make(http)
    await example.make(http, "taken")
    refused = await http.put(example.item("first"), json={"name": "taken"})
    assert refused.status_code == 400
    assert refused.json()["detail"].endswith("already exists")
    change = {"name": "renamed", **({"namespace": "elsewhere"} if example.kind.namespaced else {})}
    renamed = await http.put(example.item("first"), json=change)
    assert (renamed.status_code, renamed.json()["id"]) == (200, made["id"])
    assert (await http.get(example.item("first"))).status_code == 404
    at = example.item("renamed", "elsewhere")
    assert (await http.get(at)).json() == renamed.json()
    assert [version["name"] for version in (await http.get(f"{at}/versions")).json()] == ["renamed", "first"]
    await example.make(http)  # the old name is free


@pytest.mark.parametrize(
    "bad", ["", "a" * 256, "a/b", " ", "\u0000", "a\nb", "../x", "{{x}}", None, 5, True, ["a"], {}]
)
async def test_bad_names(bad: object, example: Example, admin: Person) -> None:
    await example.make(admin.http)
    kinds_own = bad == "{{x}}" and not example.kind.namespaced  # a provider's name may be anything without a slash
    created = await admin.http.post(example.collection, json={**example.spec, "name": bad})
    assert created.status_code == (201 if kinds_own else 422), created.text
    if bad is not None and not kinds_own:
        assert (await admin.http.put(example.item("first"), json={"name": bad})).status_code == 422
    if example.kind.namespaced and bad is not None:
        created = await admin.http.post(example.collection, json=example.body("x", namespace=bad))
        assert created.status_code == 422, created.text


async def test_inactive(example: Example, admin: Person) -> None:
    http, at = admin.http, example.item("first")
    await example.make(http)
    door = example.runtime_collection
    if door:
        assert [found["name"] for found in (await http.get(door)).json()] == ["first"]
        assert (await http.get(f"/discovery{door}")).json() == (await http.get(door)).json()
    off = await http.put(at, json={"is_active": False})
    assert (off.status_code, off.json()["is_active"]) == (200, False)
    assert [found["is_active"] for found in (await http.get(example.collection)).json()] == [False]
    assert (await http.get(at)).status_code == 200
    if door:
        assert (await http.get(door)).json() == []
    assert (await http.post(example.collection, json=example.body("first"))).status_code == 400, "the name stays taken"
    await http.put(at, json={"is_active": True})
    if door:
        assert [found["name"] for found in (await http.get(door)).json()] == ["first"]
    made = await example.make(http, "born-inactive", is_active=False)
    assert made["is_active"] is False


async def test_paging_and_namespaces(example: Example, admin: Person) -> None:
    http = admin.http
    for name in ("a", "b", "c"):
        await example.make(http, name, **({"namespace": f"ns-{name}"} if example.kind.namespaced else {}))

    async def names(**query: object) -> list[str]:
        answer = await http.get(example.collection, params={key: str(value) for key, value in query.items()})
        assert answer.status_code == 200, answer.text
        return [found["name"] for found in answer.json()]

    assert await names() == ["a", "b", "c"]
    assert await names(skip=1, limit=1) == ["b"]
    assert await names(skip=2**31 - 1) == []
    if example.kind.namespaced:
        assert await names(namespace="ns-b") == ["b"]
    assert await names(namespace="nowhere") == []
    for query in (
        "skip=-1",
        "limit=0",
        "limit=1001",
        f"skip={10**30}",
        f"limit={10**30}",
        "skip=x",
        "limit=1.5",
        "deleted=perhaps",
        "namespace=%00",
        "skip=NaN",
    ):
        assert (await http.get(f"{example.collection}?{query}")).status_code == 422, query
