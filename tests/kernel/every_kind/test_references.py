"""References between resources: hard ones hold, soft ones warn."""

import asyncio
from uuid import uuid4

import pytest

from tests.kernel.every_kind.examples import BY_KIND, EXAMPLES, Example
from tests.people import Person

HARD = [(example, field) for example in EXAMPLES for field in example.hard]
hard = pytest.mark.parametrize(("source", "field"), HARD, ids=[f"{e.kind.name}.{field}" for e, field in HARD])


def test_every_reference_by_id_is_in_the_examples() -> None:
    for example in EXAMPLES:
        marked = {
            name
            for name, info in example.kind.spec.model_fields.items()
            if any(type(mark).__name__ == "IdOf" for mark in info.metadata)
        }
        assert marked == set(example.hard)


@hard
async def test_a_hard_reference_must_exist(source: Example, field: str, admin: Person) -> None:
    nowhere = {field: str(uuid4())}
    made = await admin.http.post(source.collection, json=source.body("source", **nowhere))
    assert made.status_code == 422
    assert made.json()["detail"][0]["loc"] == ["body", field]
    await source.make(admin.http, "source")
    changed = await admin.http.put(source.item("source"), json=nowhere)
    assert (changed.status_code, changed.json()["detail"][0]["loc"]) == (422, ["body", field])


@hard
async def test_what_is_referred_to_cannot_be_deleted(source: Example, field: str, admin: Person) -> None:
    target = BY_KIND[source.hard[field].name]
    made = await target.make(admin.http, "target")
    await source.make(admin.http, "source", **{field: made["id"]})
    refused = await admin.http.delete(target.item("target"))
    assert refused.status_code == 409
    assert "source" in refused.json()["detail"], "says what uses it"
    assert (await admin.http.get(target.item("target"))).status_code == 200
    renamed = await admin.http.put(target.item("target"), json={"name": "renamed"})
    assert renamed.status_code == 200, "a reference by id survives a rename"
    assert (await admin.http.put(source.item("source"), json={field: None})).status_code == 200
    assert (await admin.http.delete(target.item("renamed"))).status_code == 204


@hard
async def test_what_used_it_may_go_first(source: Example, field: str, admin: Person) -> None:
    target = BY_KIND[source.hard[field].name]
    made = await target.make(admin.http, "target")
    await source.make(admin.http, "source", **{field: made["id"]})
    assert (await admin.http.delete(source.item("source"))).status_code == 204
    assert (await admin.http.delete(target.item("target"))).status_code == 204
    lost = await admin.http.post(f"{source.item('source')}/undelete")
    assert (lost.status_code, lost.json()["detail"][0]["loc"]) == (422, ["body", field])
    assert (await admin.http.post(f"{target.item('target')}/undelete")).status_code == 200
    assert (await admin.http.post(f"{source.item('source')}/undelete")).status_code == 200


@hard
async def test_deleting_races_with_referring(source: Example, field: str, admin: Person) -> None:
    target = BY_KIND[source.hard[field].name]
    for number in range(5):
        made = await target.make(admin.http, f"target-{number}")
        referring, deleting = await asyncio.gather(
            admin.http.post(source.collection, json=source.body(f"source-{number}", **{field: made["id"]})),
            admin.http.delete(target.item(f"target-{number}")),
        )
        assert (referring.status_code, deleting.status_code) in ((201, 409), (422, 204))


async def test_soft_references_warn(example: Example, admin: Person) -> None:
    for field, kind in example.soft.items():
        made = await example.make(admin.http, "source", **{field: ["target"]})
        assert made["warnings"] == [f"{field}: {kind} default/target does not exist"]
        assert made[field] == ["default/target"]
        await BY_KIND[kind].make(admin.http, "target")
        again = await admin.http.put(example.item("source"), json={**example.change, field: ["default/target"]})
        assert again.json()["warnings"] == []
        assert (await admin.http.delete(BY_KIND[kind].item("target"))).status_code == 204
        assert (await admin.http.delete(example.item("source"))).status_code == 204
