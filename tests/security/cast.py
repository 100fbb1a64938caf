"""Everyone who calls in the tests of authorization, every route there is, and the reviewed table of who may."""

import csv
import dataclasses
import functools
import re
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx2
from fastapi import FastAPI
from sqlalchemy import update

from sinas_server.app import create_app
from sinas_server.identity.reference import EVERYTHING
from sinas_server.identity.tables import ApiKeyRow
from sinas_server.identity.tokens import SessionToken, mint_session_token
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.clock import now
from sinas_server.roles import open_runtime
from sinas_server.settings import Settings
from tests.documents import documents
from tests.people import Person, make_key, make_person
from tests.security.objects import QUERIES, Objects, Places, body_of, make_places

TABLE = Path(__file__).with_name("authorization.csv")
COLUMNS = ("none", "bad", "expired", "empty_key", "guest", "user", "owner", "own_key", "all_key", "admin")
"""Sorts of callers. `user` meets an administrator's objects, `owner` is a user who meets his own; the keys are those of
administrators with exactly what the table says: `own_key` meets his objects, `all_key` (with `:all`) another's."""
HARMLESS = re.compile(
    r"^(GET|PUT|PATCH) |(/chats|/invoke|/execute|/async|/batch|/render|/send|/email|}/messages|}/messages/stream"
    r"|/completions|/responses|/embeddings)$"
)
"""Routes that can be called again on the same objects with the same answer."""
Headers = dict[str, str]


@functools.cache
def operations() -> dict[str, str]:
    """`METHOD /path` → operation id, of every document. Takes seconds, which whoever collects tests need not wait."""
    settings = Settings(_env_file=None)
    app = create_app(settings, lambda: open_runtime(settings, "test"))
    return {
        f"{method.upper()} {prefix}{path}": operation["operationId"]
        for prefix, part in documents(app).items()
        for path, item in part.openapi()["paths"].items()
        for method, operation in item.items()
    }


def rows() -> dict[str, dict[str, str]]:
    with TABLE.open(newline="") as file:
        return {f"{row['method']} {row['path']}": row for row in csv.DictReader(file)}


ROWS = rows()


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
    busy: list[tuple[Person, str]] = dataclasses.field(default_factory=list)
    """See `Objects.busy`."""
    talking: dict[UUID, Places] = dataclasses.field(default_factory=dict)
    """See `Objects.talking`."""

    def objects(self, owner: Person) -> Objects:
        return Objects(self.runtime, self.admin, owner, self.stranger, busy=self.busy, talking=self.talking)

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

    async def headers(self, column: str, needs: list[str]) -> list[list[Headers]]:
        """For each credential of a sort of callers the ways to carry it.

        Beside a bearer token another's `X-API-Key` must change nothing.
        """
        if column == "none":
            return [[{}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer ", "X-API-Key": ""}]]
        beside = self.everything if column != "admin" else "sk-sinas-nonsense"
        return [
            [
                {"Authorization": f"Bearer {token}"},
                {"X-API-Key": token},
                {"Authorization": f"Bearer {token}", "X-API-Key": beside},
            ]
            for token in await self.tokens(column, needs)
        ]


@dataclasses.dataclass
class Attempt:
    """One route, called again and again on one owner's objects; made anew once a call has changed something."""

    route: str
    http: httpx2.AsyncClient
    make: Objects
    places: Places | None = None

    async def call(self, headers: Headers) -> httpx2.Response:
        method, path = self.route.split(" ")
        if self.places is None:
            self.places = await make_places(self.make, self.route)
        url = path.format(**self.places)
        operation = operations()[self.route]
        body, query = body_of(operation, self.make, self.places), QUERIES.get(operation)
        answer = await self.http.request(method, url, json=body, params=query, headers=headers, timeout=60)
        if answer.is_success and not HARMLESS.search(self.route):
            self.places = None
        return answer
