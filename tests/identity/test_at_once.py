"""Somebody new who logs in twice at the same time, as in two tabs: both are let in, as one user."""

import asyncio
import dataclasses
from uuid import UUID

import httpx2
from sqlalchemy import insert, select

from sinas_server.backends.oidc import OidcClient, OidcProvider
from sinas_server.identity.oidc import enter
from sinas_server.identity.tables import UserRow
from sinas_server.kernel.runtime import Runtime
from tests.identity.codes import Codes, ask, verify
from tests.identity.waiting import waits_or_ends

ISSUER, ALICE = "https://id.example.com", "alice@example.com"


async def test_with_mailed_codes(client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime) -> None:
    session_id = await ask(client, ALICE)
    code = await code_for(ALICE)
    async with runtime.database.unit() as db:  # the first login, just before its end
        await db.execute(insert(UserRow).values(email=ALICE))
        second = asyncio.create_task(verify(client, session_id, code))
        await waits_or_ends(runtime, second)
    answer = await second
    assert (answer.status_code, answer.json()["user"]["email"]) == (200, ALICE), answer.text


async def test_at_a_provider(runtime: Runtime) -> None:
    with_provider = dataclasses.replace(runtime, oidc=OidcProvider(OidcClient(ISSUER, "sinas", None, "openid email")))

    async def log_in() -> UUID:
        async with runtime.database.unit() as db:
            return await enter(db, with_provider, {"sub": "alice", "email": ALICE, "email_verified": True})

    values = {"email": ALICE, "external_auth_provider": ISSUER, "external_auth_id": "alice"}
    async with runtime.database.unit() as db:
        await db.execute(insert(UserRow).values(values))
        second = asyncio.create_task(log_in())
        await waits_or_ends(runtime, second)
    [row] = await runtime.database.rows(select(UserRow.id).where(UserRow.email == ALICE))
    assert await second == row.id
