"""What the tests of authorization share."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from sqlalchemy import update

from sinas_server.chats.jobs import CHAT_JOB
from sinas_server.functions.execute import topic
from sinas_server.functions.tables import QUEUE, ExecutionRow, Status
from sinas_server.identity.reference import EVERYTHING
from sinas_server.kernel.job import Claim, Job, Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.clock import now
from sinas_server.settings import Settings
from tests.people import Person, make_key, make_person
from tests.security.cast import Cast


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Without limits on how often one address may log in."""
    many = 10**6
    limits = {"rate_limit_login_ip_max": many, "rate_limit_login_email_max": many, "rate_limit_otp_ip_max": many}
    return settings.model_copy(update=limits)


async def _end_at_once(runtime: Runtime, claim: Claim[ExecutionRow]) -> None:
    ended = {"status": Status.COMPLETED, "completed_at": now(), "output_data": 1}
    await runtime.database.rows(update(ExecutionRow).where(ExecutionRow.id == claim.row.id).values(**ended))
    await runtime.signals.signal(topic(claim.row.id))


async def _never(runtime: Runtime, claim: Claim[ExecutionRow], error: str) -> None:
    raise AssertionError(error)


ENDS_AT_ONCE = Job(QUEUE, ExecutionRow, _end_at_once, _never)
"""Who may call is the question here, not what the code does: executions end without running."""


@pytest.fixture
async def workers(runtime: Runtime) -> AsyncIterator[None]:
    """Agents answer, and executions end."""
    named = dataclasses.replace(runtime, worker_name="fuzzed")
    tasks = [
        asyncio.create_task(Worker(named, CHAT_JOB, 4).run()),
        asyncio.create_task(Worker(named, ENDS_AT_ONCE, 4).run()),
    ]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def everyone(
    runtime: Runtime, app: FastAPI, admin: Person, user: Person, guest: Person, workers: None
) -> AsyncIterator[Cast]:
    others = [await make_person(runtime, app, [role]) for role in ("Admins", "GuestUsers")]
    yield Cast(runtime, app, admin, others[0], user, guest, others[1], await make_key(runtime, admin.id, EVERYTHING))
    for person in others:
        await person.http.aclose()
