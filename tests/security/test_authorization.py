"""Every route of every document, every sort of caller, every way to carry a credential, against a reviewed table.

The table is `authorization.csv`: a line per route with the permissions it takes and the status that each sort of
caller gets. A new route needs a line there, and, if it takes parameters of a new sort, an entry in `objects.py`.
"""

import asyncio
import csv
import dataclasses
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import update
from starlette.routing import Mount

from sinas_server.app import create_app
from sinas_server.chats.jobs import CHAT_JOB
from sinas_server.functions.execute import topic
from sinas_server.functions.tables import QUEUE, ExecutionRow, Status
from sinas_server.identity.reference import EVERYTHING
from sinas_server.identity.tables import ApiKeyRow
from sinas_server.identity.tokens import SessionToken, mint_session_token
from sinas_server.kernel.job import Claim, Job, Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.clock import now
from sinas_server.roles import open_runtime
from sinas_server.settings import Settings
from tests.people import Person, http_client, make_key, make_person
from tests.security.objects import QUERIES, Objects, Places, body_of, make_places

TABLE = Path(__file__).with_name("authorization.csv")
COLUMNS = ("none", "bad", "expired", "empty_key", "guest", "user", "owner", "own_key", "all_key", "admin")
"""Sorts of callers. `user` meets an administrator's objects, `owner` is a user who meets his own; the keys are those of
administrators with exactly what the table says: `own_key` meets his objects, `all_key` (with `:all`) another's."""
Headers = dict[str, str]


def operations(app: FastAPI) -> dict[str, str]:
    """`METHOD /path` → operation id, of every document."""
    mounted = {route.path: route.app for route in app.routes if isinstance(route, Mount)}
    return {
        f"{method.upper()} {prefix}{path}": operation["operationId"]
        for prefix, part in {"": app, **mounted}.items()
        if isinstance(part, FastAPI)
        for path, item in part.openapi()["paths"].items()
        for method, operation in item.items()
    }


OPERATIONS = operations(create_app(Settings(_env_file=None), lambda: open_runtime(Settings(_env_file=None), "test")))


def rows() -> dict[str, dict[str, str]]:
    with TABLE.open(newline="") as file:
        return {f"{row['method']} {row['path']}": row for row in csv.DictReader(file)}


ROWS = rows()


def test_every_route_has_a_line_and_every_line_a_route() -> None:
    assert sorted(ROWS) == sorted(OPERATIONS), "tests/security/authorization.csv: one line for each route"


def test_the_table_is_sorted() -> None:
    lines = TABLE.read_text().splitlines()
    assert lines[0] == ",".join(("method", "path", "needs", *COLUMNS))
    assert lines[1:] == sorted(lines[1:], key=lambda line: line.split(",")[1::-1])


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


@dataclasses.dataclass(frozen=True)
class Cast:
    """Everyone who calls."""

    runtime: Runtime
    app: FastAPI
    admin: Person
    other_admin: Person
    user: Person
    guest: Person
    stranger: Person
    everything: str
    """An administrator's key for everything."""

    def objects(self, column: str) -> Objects:
        return Objects(self.runtime, self.admin, self.user if column == "owner" else self.admin, self.stranger)

    async def tokens(self, column: str, needs: list[str]) -> list[str]:
        """The credentials of a sort of callers."""
        signing_key, person = self.runtime.settings.signing_key, self.admin
        if column == "bad":
            return [
                "sk-sinas-nonsense",
                "no.jwt.here",
                mint_session_token("x" * 40, SessionToken(person.id, uuid4()), 60),
            ]
        if column == "expired":
            old = mint_session_token(signing_key, SessionToken(person.id, uuid4()), -5)
            return [old, await self._expired_key()]
        if column in ("empty_key", "own_key"):
            return [await make_key(self.runtime, person.id, *(needs if column == "own_key" else []))]
        if column == "all_key":
            widened = [key.replace(":own", ":all") for key in needs]
            return [await make_key(self.runtime, self.other_admin.id, *widened)]
        if column == "admin":
            return [person.token, self.everything]
        return [await self._session(self.guest if column == "guest" else self.user)]

    async def _session(self, person: Person) -> str:
        """Of its own for each route: some of them end every session there is."""
        again = await make_person(self.runtime, self.app, [], person.email)
        await again.http.aclose()
        return again.token

    async def _expired_key(self) -> str:
        key = await make_key(self.runtime, self.admin.id, EVERYTHING)
        old = update(ApiKeyRow).where(ApiKeyRow.name == "test", ApiKeyRow.key_prefix == key[:15])
        await self.runtime.database.rows(old.values(expires_at=now() - timedelta(seconds=1)))
        return key

    async def headers(self, column: str, needs: list[str]) -> AsyncIterator[Headers]:
        """The ways to carry the credentials. Beside a bearer token another's `X-API-Key` must change nothing."""
        if column == "none":
            for headers in ({}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer ", "X-API-Key": ""}):
                yield headers
            return
        beside = self.everything if column != "admin" else "sk-sinas-nonsense"
        for token in await self.tokens(column, needs):
            yield {"Authorization": f"Bearer {token}"}
            yield {"X-API-Key": token}
            yield {"Authorization": f"Bearer {token}", "X-API-Key": beside}


@pytest.fixture
async def everyone(
    runtime: Runtime, app: FastAPI, admin: Person, user: Person, guest: Person, workers: None
) -> AsyncIterator[Cast]:
    others = [await make_person(runtime, app, [role]) for role in ("Admins", "GuestUsers")]
    yield Cast(runtime, app, admin, others[0], user, guest, others[1], await make_key(runtime, admin.id, EVERYTHING))
    for person in others:
        await person.http.aclose()


@dataclasses.dataclass
class Attempt:
    """One route, called again and again; objects are made anew once a call has changed something."""

    route: str
    http: httpx2.AsyncClient
    places: Places | None = None

    async def call(self, make: Objects, headers: Headers) -> httpx2.Response:
        method, path = self.route.split(" ")
        if self.places is None:
            self.places = await make_places(make, self.route)
        url = path.format(**self.places)
        operation = OPERATIONS[self.route]
        answer = await self.http.request(
            method, url, json=body_of(operation, make, self.places), params=QUERIES.get(operation), headers=headers,
            timeout=60,
        )  # fmt: skip
        if answer.is_success and method != "GET":
            self.places = None
        return answer


def _harmless(route: str, answer: httpx2.Response) -> bool:
    """Whether an answer to a key without rights says nothing that not everyone may know."""
    if ROWS[route]["none"] != "401" or route == "GET /auth/me":
        return True
    return not answer.is_success or answer.json() == [] or answer.json().get("result") is False


async def _row(route: str, everyone: Cast) -> str:
    """The line of the table that tells what happens now."""
    row = ROWS[route]
    cells = [row["method"], row["path"], row["needs"]]
    async with http_client(everyone.app) as http:
        for column in COLUMNS:
            attempt, make, statuses = Attempt(route, http), everyone.objects(column), set[int]()
            async for headers in everyone.headers(column, row["needs"].split()):
                answer = await attempt.call(make, headers)
                statuses.add(answer.status_code)
                assert answer.status_code < 500, f"{route}: {answer.text}"
                assert column != "empty_key" or _harmless(route, answer), f"{route}: {answer.text}"
            cells.append("/".join(map(str, sorted(statuses))))
    return ",".join(cells)


def _group(route: str) -> str:
    return "/".join(route.split(" ")[1].removeprefix("/api/v1").split("/")[:2])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", sorted({_group(route) for route in ROWS}))
async def test_who_may_call(group: str, everyone: Cast) -> None:
    routes = [route for route in OPERATIONS if _group(route) == group and route in ROWS]
    found = [await _row(route, everyone) for route in routes]
    expected = [",".join(ROWS[route].values()) for route in routes]
    changed = sorted(set(found) - set(expected))
    assert not changed, "now (several numbers: it depends on how the credential is carried):\n" + "\n".join(changed)
