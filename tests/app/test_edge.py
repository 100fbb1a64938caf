"""The edge of the HTTP applications: what is true of every route."""

import asyncio
import gzip
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text

from sinas_server.app import ASSETS, MAX_BODY_BYTES, create_app
from sinas_server.backends.embedded import embedded_servers
from sinas_server.kernel.runtime import Runtime
from sinas_server.roles import open_runtime
from sinas_server.settings import Settings
from tests.people import Person, http_client

JSON = {"Content-Type": "application/json"}


async def test_health(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})
    assert (await client.get("/health/")).json() == {"status": "healthy"}


@pytest.mark.parametrize("prefix", ["", "/api/v1", "/adapters/openai"])
async def test_docs_need_nothing_from_elsewhere(prefix: str, client: httpx2.AsyncClient) -> None:
    page = await client.get(f"{prefix}/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert len(links) == len(ASSETS)
    for link in links:
        assert link.startswith("/"), "from our own server"
        asset = await client.get(link)
        assert (asset.status_code, len(asset.content) > 100) == (200, True)
    assert f"{prefix}/openapi.json" in page.text
    document = await client.get(f"{prefix}/openapi.json")
    assert document.json()["servers"] == [{"url": prefix or "/"}]
    assert (await client.get("/docs/assets/../../app.py")).status_code == 404
    assert (await client.get("/docs/assets/app.py")).status_code == 404


async def test_errors_are_objects_with_detail(client: httpx2.AsyncClient, admin: Person) -> None:
    for path in ("/nowhere", "/api/v1/nowhere", "/api/v1", "/api/v1/", "/api/v2/agents", "//", "/api/v1//agents"):
        for method in ("GET", "POST", "DELETE"):
            answer = await client.request(method, path)
            assert answer.status_code == 404, path
            assert answer.json() == {"detail": "Not Found"}
    for path in ("/health", "/api/v1/agents", "/api/v1/agents/default/x", "/auth/login", "/api/v1/config/apply"):
        answer = await client.request("TRACE", path)
        assert (answer.status_code, answer.json()) == (405, {"detail": "Method Not Allowed"})
        assert answer.headers["allow"]
    assert (await admin.http.head("/health")).status_code == 405
    assert (await client.get("/api/v1/agents")).json() == {"detail": "Not authenticated", "code": "unauthorized"}


async def test_security_headers_are_on_every_answer(client: httpx2.AsyncClient, admin: Person) -> None:
    answers = [
        await client.get("/health"),
        await client.get("/nowhere"),
        await client.get("/api/v1/agents"),
        await client.get("/%00"),
        await client.get("/docs"),
        await client.options(
            "/health", headers={"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
        ),
        await admin.http.post("/api/v1/agents", content=b"{"),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff", answer.request.url
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "strict-origin-when-cross-origin"
        assert "strict-transport-security" not in answer.headers


async def test_https_is_asked_for_on_a_domain(runtime: Runtime, settings: Settings) -> None:
    public = settings.model_copy(update={"domain": "sinas.example", "cors_origins": ("https://app.example",)})
    async with _started(public, runtime) as http:
        answer = await http.get("/health", headers={"Origin": "https://app.example"})
        assert "max-age" in answer.headers["strict-transport-security"]
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["access-control-allow-credentials"] == "true"
        other = await http.get("/health", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


@asynccontextmanager
async def _started(settings: Settings, runtime: Runtime) -> AsyncIterator[httpx2.AsyncClient]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Runtime]:
        yield runtime

    made = create_app(settings, opened)
    async with made.router.lifespan_context(made), http_client(made) as http:
        yield http


async def test_cors_lets_any_origin_in_without_credentials(client: httpx2.AsyncClient) -> None:
    for origin in ("https://a.example", "null"):
        for path in ("/health", "/api/v1/agents", "/nowhere"):
            answer = await client.get(path, headers={"Origin": origin})
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers
            exposed = answer.headers["access-control-expose-headers"]
            assert {"X-Next-Cursor", "X-Truncated", "X-Chat-ID", "ETag"} <= set(exposed.split(", "))
    asked = ("Authorization", "Content-Type", "X-API-Key", "X-Application", "X-Chat-ID", "If-Match")
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        preflight = await client.options(
            "/api/v1/agents/default/x",
            headers={
                "Origin": "null",
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": ", ".join(asked),
            },
        )
        assert preflight.status_code == 200, preflight.text
        assert method in preflight.headers["access-control-allow-methods"]


async def test_large_bodies_are_413(admin: Person, client: httpx2.AsyncClient) -> None:
    too_much = b'{"name": "' + b"x" * MAX_BODY_BYTES + b'"}'

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(too_much), 1 << 20):
            yield too_much[start : start + (1 << 20)]

    for http in (admin.http, client):
        for path in ("/api/v1/agents", "/auth/login"):
            for content in (too_much, chunks()):
                answer = await http.post(path, content=content, headers=JSON)
                assert answer.status_code in (401, 413), answer.text
                assert answer.json()["detail"]
                if http is admin.http:
                    assert answer.status_code == 413
    almost = b'{"email": "' + b"x" * (MAX_BODY_BYTES - 20) + b'"}'
    assert (await client.post("/auth/login", content=almost, headers=JSON)).status_code == 422


async def test_an_empty_body_with_a_content_type_is_no_body(admin: Person) -> None:
    http = admin.http
    await http.post("/api/v1/agents", json={"name": "a"})
    assert (await http.get("/api/v1/agents", headers=JSON)).status_code == 200
    assert (await http.get("/auth/me", headers=JSON)).status_code == 200
    assert (await http.post("/api/v1/agents/default/a/versions/1/restore", headers=JSON)).status_code == 200
    assert (await http.delete("/api/v1/agents/default/a", headers=JSON)).status_code == 204
    assert (await http.post("/api/v1/agents/default/a/undelete", headers=JSON)).status_code == 200


async def test_no_route_redirects(app: FastAPI, client: httpx2.AsyncClient) -> None:
    documents = [(await client.get(f"{prefix}/openapi.json")).json() for prefix in ("", "/api/v1")]
    for prefix, document in zip(("", "/api/v1"), documents, strict=True):
        for path in document["paths"]:
            plain = prefix + re.sub(r"\{[^}]*\}", "x", path)
            for form in (plain, plain + "/"):
                answer = await client.get(form)
                assert not answer.is_redirect, form
                assert answer.status_code == (await client.get(plain)).status_code, form


async def test_nul_in_a_path_or_query_is_422(client: httpx2.AsyncClient) -> None:
    places = {
        "/api/v1/agents/a%00b/c": [["path"]],
        "/%00": [["path"]],
        "/api/v1/agents?namespace=%00&limit=1": [["query", "namespace"]],
        "/health?x=a%00&%00=1&y": [["query", "x"], ["query", ""]],
    }
    for path, locations in places.items():
        answer = await client.get(path)
        assert (answer.status_code, [each["loc"] for each in answer.json()["detail"]]) == (422, locations)


async def test_nul_in_a_body_is_422_with_its_place(admin: Person) -> None:
    for body, place in (
        (b'{"name": "a\\u0000"}', "name: "),
        (b'{"a": [{}, {"b": "\\u0000"}]}', "a.1.b: "),
        (b'{"\\u0000": 1}', ""),
    ):
        answer = await admin.http.post("/api/v1/agents", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert f"JSON decode error: {place}NUL characters" in answer.json()["detail"][0]["msg"]


async def test_terminated_connections_are_503_or_unnoticed(runtime: Runtime, admin: Person) -> None:
    alive = text("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(:pids)")
    for _ in range(3):
        ended = await runtime.database.rows(
            text(
                "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        answers = await asyncio.gather(*(admin.http.get("/api/v1/agents") for _ in range(4)))
        assert {answer.status_code for answer in answers} <= {200, 503}
        async with asyncio.timeout(30):  # they end when each of them gets to it
            while await runtime.database.read(alive, {"pids": [row.pid for row in ended]}):
                await asyncio.sleep(0.01)
        async with asyncio.timeout(30):  # the pool may hold a connection whose end nobody has met yet
            while (answer := await admin.http.get("/api/v1/agents")).status_code != 200:
                assert answer.status_code == 503


async def test_without_a_database_it_is_503(tmp_path: Path, settings: Settings, admin: Person) -> None:
    """The server is stopped while the application runs."""
    with embedded_servers(tmp_path / "apart") as (url, _):
        apart = settings.model_copy(update={"database_url": SecretStr(url)})
        async with open_runtime(apart, "test") as runtime, _started(apart, runtime) as http:
            assert (await http.get("/health")).status_code == 200
            await runtime.database.rows(text("SELECT 1"))
            await _stop(tmp_path / "apart")
            for method, path in (
                ("GET", "/health"),
                ("GET", "/auth/me"),
                ("GET", "/api/v1/agents"),
                ("POST", "/auth/refresh"),
            ):
                headers = {"Authorization": f"Bearer {admin.token}"}
                json = {"refresh_token": "x" * 40} if method == "POST" else None
                answer = await http.request(method, path, headers=headers, json=json)
                assert answer.status_code == 503, (path, answer.text)
                assert answer.json()["code"] == "unavailable"
                assert answer.headers["retry-after"] == "1"


async def _stop(data: Path) -> None:
    """SIGINT: a fast shutdown of the postgres whose directory this is."""
    pid = int((data / "postgres" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGINT)
    async with asyncio.timeout(30):
        while (data / "postgres" / "postmaster.pid").exists():
            await asyncio.sleep(0.05)


async def test_an_unexpected_error_is_500_without_its_text(
    runtime: Runtime, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(type(runtime.database), "read", broken)
    answer = await client.get("/health", headers={"Origin": "https://a.example"})
    assert (answer.status_code, answer.json()) == (500, {"detail": "Internal server error", "code": "internal_error"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_body_of_another_type_is_told_which_to_send(admin: Person) -> None:
    """What curl sends with `-d` and no header."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await admin.http.post("/api/v1/agents", content=b'{"name": "a"}', headers=form)
    told = (
        "The body must be JSON, sent with Content-Type: application/json instead of application/x-www-form-urlencoded"
    )
    problem = {"loc": ["body"], "msg": told, "type": "model_attributes_type"}
    assert (answer.status_code, answer.json()) == (422, {"detail": [problem], "code": "invalid"})


async def test_compressed_bodies_are_415(admin: Person) -> None:
    for path, told in (("/api/v1/agents", "detail"), ("/adapters/openai/v1/chat/completions", "error")):
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        answer = await admin.http.post(path, content=gzip.compress(b'{"name": "a"}'), headers=headers)
        assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
        assert "Content-Encoding: gzip" in str(answer.json()[told])
    plain = {"Content-Type": "application/json", "Content-Encoding": "Identity"}
    answer = await admin.http.post("/api/v1/agents", content=b'{"name": "a"}', headers=plain)
    assert answer.status_code == 201
