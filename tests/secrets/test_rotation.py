"""A new key in front of ENCRYPTION_KEY: everything is encrypted under it, and then the old one can go."""

from collections.abc import Callable

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import text

from sinas_server.kernel.outbox import enqueue
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.crypto import Sealer
from tests.conftest import ENCRYPTION_KEY
from tests.people import Person
from tests.secrets.test_secrets import VALUE, put

UseKeys = Callable[..., None]
ROTATE = "/api/v1/system/rotate-keys"
VERSIONS = (
    "SELECT v.spec->>'api_key' AS held FROM resource_versions v JOIN resources r ON r.id = v.resource_id "
    "WHERE r.kind = 'llm_provider' ORDER BY v.version"
)
SEALED = "SELECT spec->>'value' AS held FROM resources WHERE kind = 'secret'"


@pytest.fixture
def use_keys(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> UseKeys:
    """Has the application work with these keys, as after a restart."""
    return lambda *keys: monkeypatch.setattr(runtime.database, "sealer", Sealer(keys))


async def test_everything_sealed_moves_to_the_first_key(admin: Person, runtime: Runtime, use_keys: UseKeys) -> None:
    await put(admin.http)
    provider = {"name": "main", "provider_type": "openai", "api_key": "sk-1", "default_model": "m"}
    assert (await admin.http.post("/api/v1/llm-providers", json=provider)).status_code == 201
    assert (await admin.http.put("/api/v1/llm-providers/main", json={"api_key": "sk-2"})).status_code == 200
    async with runtime.database.unit() as db:
        await enqueue(db, runtime, "mail.send", {"sealed": db.sealer.seal("a mail")})
    new = Fernet.generate_key().decode()
    use_keys(new, ENCRYPTION_KEY)
    done = await admin.http.post(ROTATE)
    # The secret with its version, the provider with its two versions, and the mail.
    assert (done.status_code, done.json()) == (200, {"resealed": 6, "unreadable": 0})
    assert (await admin.http.post(ROTATE)).json() == {"resealed": 0, "unreadable": 0}, "there is nothing left to do"
    only_new = Sealer([new])
    for query, expected in (
        (SEALED, [VALUE]),
        ("SELECT spec->>'api_key' AS held FROM resources WHERE kind = 'llm_provider'", ["sk-2"]),
        (VERSIONS, ["sk-1", "sk-2"]),
        ("SELECT payload->>'sealed' AS held FROM tasks", ["a mail"]),
    ):
        assert [only_new.open(row.held) for row in await runtime.database.rows(text(query))] == expected
    entries = (await admin.http.get("/api/v1/audit", params={"action": "rotate"})).json()
    assert entries[-1]["detail"] == {"resealed": 6, "unreadable": 0}


async def test_what_cannot_be_read_is_left_alone_and_counted(
    admin: Person, runtime: Runtime, use_keys: UseKeys
) -> None:
    await put(admin.http)
    held = await runtime.database.rows(text(SEALED))
    use_keys(Fernet.generate_key().decode())
    assert (await admin.http.post(ROTATE)).json() == {"resealed": 0, "unreadable": 2}
    assert await runtime.database.rows(text(SEALED)) == held


async def test_texts_that_only_look_sealed_stay(admin: Person, runtime: Runtime, use_keys: UseKeys) -> None:
    description = runtime.database.sealer.seal("copied from somewhere")
    await put(admin.http, description=description)
    use_keys(Fernet.generate_key().decode(), ENCRYPTION_KEY)
    assert (await admin.http.post(ROTATE)).json()["resealed"] == 2
    assert (await admin.http.get("/api/v1/secrets/TOKEN")).json()["description"] == description
