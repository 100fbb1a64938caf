"""What no kind of the platform uses yet: names per user, hard references by name, renamed fields, a refusing slice."""

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest
from pydantic import Field, ValidationError
from sqlalchemy import select, text

from sinas_server.kernel import store
from sinas_server.kernel.access import Caller, grant_set
from sinas_server.kernel.errors import ConflictError, InvalidError, NotFoundError
from sinas_server.kernel.kind import Kind, Ref, Spec, reference
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.secret import Secret
from sinas_server.kernel.store import Change, Filter, Resource
from sinas_server.kernel.tables import ReferenceRow
from sinas_server.kernel.unit import Db


class GadgetSpec(Spec):
    """Uses another gadget by its name; `size` was once called `length`."""

    uses: str | None = Field(default=None, description="Another gadget.")
    size: int = Field(default=1, ge=1, description="Its size.")
    keys: dict[str, Secret] = Field(default={}, description="Secrets inside of something.")

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> dict[str, Any]:
        return {("size" if key == "length" else key): value for key, value in raw.items()}


def _references(spec: GadgetSpec) -> Iterable[Ref]:
    if spec.uses:
        yield reference("gadget", spec.uses, hard=True, field="uses")


async def _on_change(db: Db, old: Resource[GadgetSpec] | None, new: Resource[GadgetSpec] | None) -> None:
    if new is not None and new.spec.size == 13:
        raise ConflictError("not that size")
    if old is not None and new is None and old.spec.size == 7:
        raise ConflictError("not while it is lucky")


GADGET = Kind(name="gadget", plural="gadgets", spec=GadgetSpec, references=_references, on_change=_on_change)
NOTE = Kind(name="note", plural="notes", spec=GadgetSpec, namespaced=False, per_user=True)


def someone() -> Caller:
    return Caller(uuid4(), "someone@example.com", (grant_set({"sinas.*:all"}),))


async def make(db: Db, caller: Caller, name: str, **fields: object) -> Resource[GadgetSpec]:
    return await store.create(db, caller, GADGET, ("default", name), store.validated(GADGET, fields))


async def test_a_hard_reference_by_name_holds_the_name(runtime: Runtime) -> None:
    me = someone()
    with pytest.raises(InvalidError, match="uses: gadget default/target does not exist"):
        async with runtime.database.unit() as db:
            await make(db, me, "source", uses="target")
    async with runtime.database.unit() as db:
        await make(db, me, "target")
        await make(db, me, "source", uses="target")
    async with runtime.database.unit() as db:
        for refused in (
            store.change(db, me, GADGET, "default", "target", Change(name="renamed")),
            store.delete(db, me, GADGET, "default", "target"),
        ):
            with pytest.raises(ConflictError, match="it is used by gadget default/source"):
                await refused
        await store.change(db, me, GADGET, "default", "source", Change(name="moved"))
        await store.change(db, me, GADGET, "default", "moved", Change({"uses": None}))
        assert not (await db.execute(select(ReferenceRow))).all()
        await store.change(db, me, GADGET, "default", "target", Change(name="renamed"))
        await store.delete(db, me, GADGET, "default", "renamed")


async def test_it_may_use_itself(runtime: Runtime) -> None:
    me = someone()
    async with runtime.database.unit() as db:
        await make(db, me, "loop")
        await store.change(db, me, GADGET, "default", "loop", Change({"uses": "default/loop"}))
        await store.delete(db, me, GADGET, "default", "loop")


async def test_names_per_user(runtime: Runtime) -> None:
    me, you = someone(), someone()
    async with runtime.database.unit() as db:
        for caller, size in ((me, 1), (you, 2)):
            spec = store.validated(NOTE, {"size": size})
            await store.create(db, caller, NOTE, ("", "same"), spec)
        assert (await store.read(db, me, NOTE, "", "same")).spec.size == 1
        assert (await store.read(db, you, NOTE, "", "same")).spec.size == 2
        await store.delete(db, me, NOTE, "", "same")
        with pytest.raises(NotFoundError):
            await store.read(db, me, NOTE, "", "same")
        assert (await store.read(db, you, NOTE, "", "same")).ref == "same"
        assert (await store.undelete(db, me, NOTE, "", "same")).spec.size == 1


async def test_an_earlier_release_wrote_it(runtime: Runtime) -> None:
    me = someone()
    async with runtime.database.unit() as db:
        made = await make(db, me, "old", size=5)
        for table in ("resources", "resource_versions"):
            await db.execute(text(f"UPDATE {table} SET spec = '{{\"length\": 9}}'"))  # noqa: S608 - our own tables
    async with runtime.database.unit() as db:
        assert (await store.read(db, me, GADGET, "default", "old")).spec.size == 9
        assert [spec.size for _, spec in await store.versions(db, me, GADGET, "default", "old")] == [9]
        found = await store.fetch(db, GADGET, made.id)
        assert found is not None
        assert found.ref == "default/old"
        assert await store.fetch(db, NOTE, made.id) is None


async def test_a_slice_may_refuse_and_nothing_is_kept(runtime: Runtime) -> None:
    me = someone()
    async with runtime.database.unit() as db:
        await make(db, me, "lucky", size=7)
    for refused in (
        lambda db: make(db, me, "bad", size=13),
        lambda db: store.change(db, me, GADGET, "default", "lucky", Change({"size": 13})),
        lambda db: store.delete(db, me, GADGET, "default", "lucky"),
    ):
        with pytest.raises(ConflictError):
            async with runtime.database.unit() as db:
                await refused(db)
    async with runtime.database.unit() as db:
        found = await store.find(db, me, GADGET, Filter(active_only=True))
        assert [(gadget.name, gadget.version) for gadget in found] == [("lucky", 1)]


async def test_what_waits_for_the_commit(runtime: Runtime) -> None:
    happened: list[str] = []

    async def note(what: str) -> None:
        happened.append(what)

    async with runtime.database.unit() as db:
        db.after_commit(lambda: note("kept"))
        assert happened == []
    with pytest.raises(ZeroDivisionError):
        async with runtime.database.unit() as db:
            db.after_commit(lambda: note("lost"))
            raise ZeroDivisionError
    assert happened == ["kept"]


async def test_an_inactive_one_is_not_found_at_runtime(runtime: Runtime) -> None:
    me = someone()
    async with runtime.database.unit() as db:
        await make(db, me, "on")
        assert (await store.use(db, me, GADGET, "default", "on", "read")).name == "on"
        await store.change(db, me, GADGET, "default", "on", Change(is_active=False))
        with pytest.raises(NotFoundError, match="is not active"):
            await store.use(db, me, GADGET, "default", "on", "read")


async def test_secrets_inside_of_something_are_secret_too(runtime: Runtime) -> None:
    me = someone()
    async with runtime.database.unit() as db:
        made = await make(db, me, "keys", keys={"a": "very-secret"})
        assert "very-secret" not in str(store.shown(made.spec))
        rows = await db.scalars(text("SELECT spec::text FROM resources"))
        assert all("very-secret" not in row for row in rows)
        assert (await store.read(db, me, GADGET, "default", "keys")).spec.keys == {"a": "very-secret"}
        assert GadgetSpec.secret_fields() == {"keys"}


def test_a_spec_ignores_what_it_does_not_know() -> None:
    assert GadgetSpec.model_validate({"nonsense": 1, "size": None}).size == 1
    with pytest.raises(ValidationError):
        GadgetSpec.model_validate([])
