"""Secrets go in and never come out; and what keeps resources: packages, configurations."""

import dataclasses

import pytest
import structlog
from cryptography.fernet import Fernet
from sqlalchemy import Text, cast, literal_column, select, text

from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.errors import KeyMissingError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Change, Managed
from sinas_server.kernel.unit import Database
from sinas_server.kit.crypto import Sealer
from tests.conftest import ENCRYPTION_KEY
from tests.kernel.every_kind.examples import EXAMPLES, SECRET, Example
from tests.people import Person

SECRETIVE = [(example, field) for example in EXAMPLES for field in sorted(example.kind.spec.secret_fields())]
secretive = pytest.mark.parametrize(
    ("holder", "field"), SECRETIVE, ids=[f"{example.kind.name}.{field}" for example, field in SECRETIVE]
)


@secretive
async def test_a_secret_never_comes_out(holder: Example, field: str, admin: Person, runtime: Runtime) -> None:
    http, at = admin.http, holder.item("first")
    with structlog.testing.capture_logs() as logs:
        answers = [
            await http.post(holder.collection, json=holder.body("first")),
            await http.post(holder.collection, json=holder.body("first")),
            await http.post(holder.collection, json=holder.body("bad", is_active=SECRET)),
            await http.post(holder.collection, json=holder.body("bad", **{field: [SECRET]})),
            await http.post(holder.collection, json=holder.body("bad", **{field: {"x": SECRET}})),
            await http.put(at, json={field: SECRET + "2", **holder.change}),
            await http.get(at),
            await http.get(holder.collection),
            await http.get(f"{at}/versions"),
            await http.post(f"{at}/versions/1/restore"),
            await http.get("/api/v1/config/export", params={"include_secrets": "true"}),
            await http.get("/api/v1/config/export"),
        ]
    assert [answer.status_code for answer in answers[:6]] == [201, 400, 422, 422, 422, 200]
    for answer in answers:
        assert SECRET not in answer.text, answer.request.url
        assert SECRET not in str(answer.headers)
    assert SECRET not in str(logs)
    for answer in (answers[0], answers[6]):
        assert field not in answer.json()
    for table in ("resources", "resource_versions", "audit_log", "resource_references"):
        rows = await runtime.database.rows(select(cast(literal_column(table), Text)).select_from(text(table)))
        assert all(SECRET not in row[0] for row in rows), table


@secretive
async def test_every_change_is_audited(holder: Example, field: str, admin: Person) -> None:
    await holder.make(admin.http)
    at = holder.item("first")
    assert (await admin.http.patch(at, json={field: "another"})).status_code == 200
    assert (await admin.http.delete(at)).status_code == 204
    answer = await admin.http.get("/api/v1/audit", params={"target_kind": holder.kind.name})
    assert [entry["action"] for entry in answer.json()] == ["delete", "update", "create"]
    assert {entry["actor"] for entry in answer.json()} == {admin.email}


@secretive
async def test_it_is_encrypted_and_readable_inside(
    holder: Example, field: str, admin: Person, runtime: Runtime
) -> None:
    await holder.make(admin.http)
    rows = await runtime.database.rows(text("SELECT spec, checksum FROM resources WHERE name = 'first'"))
    assert runtime.database.sealer.open(rows[0].spec[field]) == SECRET
    async with runtime.database.unit() as db:
        resource = await store.read(db, SYSTEM, holder.kind, "default" if holder.kind.namespaced else "", "first")
    assert getattr(resource.spec, field) == SECRET
    assert SECRET not in repr(store.shown(resource.spec))


@secretive
async def test_updates_keep_change_and_clear_it(holder: Example, field: str, admin: Person, runtime: Runtime) -> None:
    async def stored() -> tuple[str | None, str]:
        row = (await runtime.database.rows(text("SELECT spec, checksum FROM resources WHERE name = 'first'")))[0]
        sealed = row.spec[field]
        return (None if sealed is None else runtime.database.sealer.open(sealed)), row.checksum

    await holder.make(admin.http)
    first = await stored()
    assert (await admin.http.put(holder.item("first"), json=holder.change)).status_code == 200
    assert (await stored())[0] == SECRET, "kept when absent"
    await admin.http.post(f"{holder.item('first')}/versions/1/restore")
    assert await stored() == first, "the same content has the same checksum, though encryption is randomised"
    same = await admin.http.put(holder.item("first"), json={field: SECRET})
    changed = await admin.http.put(holder.item("first"), json={field: "another"})
    assert changed.json()["version"] == same.json()["version"] + 1
    second = await stored()
    assert second[0] == "another"
    assert second[1] != first[1], "a changed secret is a changed checksum"
    assert (await admin.http.put(holder.item("first"), json={field: None})).status_code == 200
    assert (await stored())[0] is None


@secretive
async def test_keys_rotate(holder: Example, field: str, admin: Person, runtime: Runtime) -> None:
    await holder.make(admin.http)
    where = ("default" if holder.kind.namespaced else "", "first")
    new = Fernet.generate_key().decode()
    rotated = Database(runtime.database.engine, Sealer([new, ENCRYPTION_KEY]), runtime.settings)
    async with rotated.unit() as db:
        before = await store.read(db, SYSTEM, holder.kind, *where)
        assert getattr(before.spec, field) == SECRET
        assert store.fingerprint(db, before.spec) == before.checksum, "rotation changes no checksum"
        after = await store.change(db, SYSTEM, holder.kind, *where, Change(holder.change))
    rows = await runtime.database.rows(text("SELECT spec FROM resources WHERE name = 'first'"))
    assert Sealer([new]).open(rows[0].spec[field]) == SECRET, "written with the first key"
    assert after.version == 2
    only_new = Database(runtime.database.engine, Sealer([new]), runtime.settings)
    async with only_new.unit() as db:
        assert getattr((await store.read(db, SYSTEM, holder.kind, *where)).spec, field) == SECRET
    with pytest.raises(KeyMissingError, match="ENCRYPTION_KEY"):
        async with runtime.database.unit() as db:
            await store.read(db, SYSTEM, holder.kind, *where)


@secretive
async def test_a_resource_whose_key_is_gone_says_so_and_can_be_mended(
    holder: Example, field: str, admin: Person, runtime: Runtime
) -> None:
    http = admin.http
    for name in ("first", "second", "third"):
        assert (await http.post(holder.collection, json=holder.body(name))).status_code == 201
    lost = Sealer([Fernet.generate_key().decode()]).seal(SECRET)
    for table in ("resources", "resource_versions"):
        change = f"UPDATE {table} SET spec = jsonb_set(spec::jsonb, :path, to_jsonb(CAST(:lost AS text)))::json"  # noqa: S608 - our own names
        await runtime.database.rows(text(f"{change} WHERE name <> 'second'"), {"path": [field], "lost": lost})

    listed = await http.get(holder.collection)
    assert listed.status_code == 200, listed.text
    found = {row["name"]: row["warnings"] for row in listed.json()}
    assert found["second"] == []
    (warning,) = found["first"]
    assert all(word in warning for word in (field, "'", "first", "ENCRYPTION_KEY"))
    for answer in (
        await http.get(holder.item("first")),
        await http.get(f"{holder.item('first')}/versions"),
        await http.put(holder.item("first"), json=holder.change),
    ):
        assert (answer.status_code, answer.json()["code"], answer.json()["detail"]) == (409, "key_missing", warning)

    assert (await http.put(holder.item("first"), json={field: "another"})).status_code == 200
    mended = await http.get(holder.item("first"))
    assert (mended.status_code, mended.json()["warnings"]) == (200, [])
    assert (await http.get(f"{holder.item('first')}/versions")).status_code == 200
    assert (await http.post(f"{holder.item('first')}/versions/1/restore")).json()["code"] == "key_missing"
    assert (await http.delete(holder.item("third"))).is_success


async def test_editing_detaches_from_a_package_and_drifts_from_a_configuration(
    example: Example, admin: Person, runtime: Runtime
) -> None:
    caller = dataclasses.replace(SYSTEM, id=admin.id)
    namespace = "default" if example.kind.namespaced else ""
    for name, by in (("packaged", "pkg:crm"), ("configured", "config")):
        async with runtime.database.unit() as db:
            spec = store.validated(example.kind, example.spec)
            await store.create(db, caller, example.kind, (namespace, name), spec, Change(managed=Managed(by, "crm")))
        made = (await admin.http.get(example.item(name))).json()
        assert (made["managed_by"], made["config_name"]) == (by, "crm")
        assert made["config_checksum"]
    packaged = await admin.http.put(example.item("packaged"), json=example.change)
    assert packaged.json()["managed_by"] is None
    configured = (await admin.http.put(example.item("configured"), json=example.change)).json()
    assert configured["managed_by"] == "config"
    rows = await runtime.database.rows(text("SELECT checksum, config_checksum FROM resources WHERE name='configured'"))
    assert rows[0].config_checksum == configured["config_checksum"] != rows[0].checksum, "shows as drift"
