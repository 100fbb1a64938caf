"""Kinds of which one resource at most is the default."""

import asyncio

import pytest

from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Change
from tests.identity.waiting import waits_or_ends
from tests.people import Person


@pytest.mark.parametrize(
    ("kind", "path", "where"), [("llm_provider", "/llm-providers", ""), ("agent", "/agents", "default")]
)
async def test_two_that_become_it_at_once(kind: str, path: str, where: str, runtime: Runtime, admin: Person) -> None:
    body = {"provider_type": "scripted"} if kind == "llm_provider" else {}
    for name in ("one", "two"):
        made = await admin.http.post(f"/api/v1{path}", json={"name": name, **body})
        assert made.status_code == 201, made.text
    place = f"/api/v1{path}/{where}/two" if where else f"/api/v1{path}/two"
    async with runtime.database.unit() as db:
        await store.change(db, SYSTEM, runtime.kinds[kind], where, "one", Change({"is_default": True}))
        changing = asyncio.create_task(admin.http.patch(place, json={"is_default": True}))
        await waits_or_ends(runtime, changing)
    assert (await changing).status_code == 200
    found = {each["name"] for each in (await admin.http.get(f"/api/v1{path}")).json() if each["is_default"]}
    assert found == {"two"}
