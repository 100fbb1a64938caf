"""Logging in at a real OpenID Connect provider, by the browser and with a token, as users and attackers do it."""

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from pydantic import SecretStr
from sqlalchemy import select, update

from sinas_server.app import create_app
from sinas_server.identity.tables import UserRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow
from sinas_server.roles import open_runtime
from sinas_server.settings import Settings
from tests.fakes.npm import UnavailableError
from tests.fakes.oidc_provider import APP, CLIENT_ID, CLIENT_SECRET, Provider, oidc_provider
from tests.people import Person, http_client

ALICE = {"email": "alice@example.com", "email_verified": True}
CALLBACK = "http://localhost:8000/auth/oidc/callback"
CONSOLE = "https://console.example.com/login"
WRONG = "Invalid or expired token"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    try:
        with oidc_provider(tmp_path_factory.mktemp("oidc"), CALLBACK) as made:
            yield made
    except UnavailableError as error:
        pytest.skip(f"oidc-provider cannot be had: {error}")


@pytest.fixture
def provider(running: Provider) -> Provider:
    running.know(alice=ALICE)
    return running


def at(provider: Provider, settings: Settings, **more: object) -> Settings:
    return settings.model_copy(
        update={
            "oidc_issuer": provider.issuer,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret": SecretStr(CLIENT_SECRET),
            "oidc_scopes": "openid email groups",
            "oidc_redirect_uris": (CONSOLE,),
            **more,
        }
    )


@pytest.fixture
def settings(settings: Settings, provider: Provider, overrides: dict[str, object]) -> Settings:
    return at(provider, settings, **overrides)


def fragment(address: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).fragment).items()}


async def start(client: httpx2.AsyncClient, **query: str) -> httpx2.Response:
    return await client.get("/auth/oidc/start", params=query)


async def come_back(client: httpx2.AsyncClient, address: str) -> httpx2.Response:
    assert address.startswith(CALLBACK)
    return await client.get(address.removeprefix("http://localhost:8000"))


async def log_in(client: httpx2.AsyncClient, provider: Provider, account: str = "alice") -> dict[str, str]:
    """The fragment that the console gets."""
    begun = await start(client, redirect_uri=CONSOLE, state="from the console")
    assert begun.status_code == 303, begun.text
    done = await come_back(client, await provider.log_in(begun.headers["location"], account))
    assert done.status_code == 303, done.text
    assert done.headers["location"].startswith(f"{CONSOLE}#")
    assert done.headers["cache-control"] == "no-store"
    found = fragment(done.headers["location"])
    assert found["state"] == "from the console"
    return found


async def by_token(client: httpx2.AsyncClient, token: str, **more: str) -> httpx2.Response:
    return await client.post("/auth/external-auth", json={"token": token, **more})


async def test_the_browser_logs_in(client: httpx2.AsyncClient, provider: Provider, runtime: Runtime) -> None:
    found = await log_in(client, provider)
    answer = await client.post("/auth/oidc/session", json={"code": found["code"]})
    assert answer.status_code == 200, answer.text
    tokens = answer.json()
    assert set(tokens) == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    user = tokens["user"]
    assert (user["email"], user["roles"]) == ("alice@example.com", ["GuestUsers"])
    assert (user["external_auth_provider"], user["external_auth_id"]) == (provider.issuer, "alice")
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert (await client.get("/auth/me", headers=headers)).json() == user
    again = await client.post("/auth/oidc/session", json={"code": found["code"]})
    assert (again.status_code, again.json()["detail"]) == (400, "Invalid or expired code")
    actions = await runtime.database.rows(select(AuditRow.action).where(AuditRow.target == "alice@example.com"))
    assert {row.action for row in actions} == {"sign_up", "link"}

    found = await log_in(client, provider)
    second = await client.post("/auth/oidc/session", json={"code": found["code"]})
    assert second.json()["user"]["id"] == user["id"]
    assert (await client.get("/info")).json()["features"]["oidc"] is True


@pytest.mark.parametrize(
    ("method", "claims_in"), [("client_secret_post", "userinfo"), ("none", "id_token")], ids=["post", "public"]
)
async def test_other_ways_to_be_a_client(
    settings: Settings, tmp_path: Path, method: str, claims_in: str, runtime: Runtime
) -> None:
    with oidc_provider(tmp_path, CALLBACK, method, claims_in) as other:
        other.know(alice=ALICE)
        more: dict[str, object] = {"oidc_client_secret": None} if method == "none" else {}
        async with application(at(other, settings, **more)) as client:
            found = await log_in(client, other)
            answer = await client.post("/auth/oidc/session", json={"code": found["code"]})
            assert answer.json()["user"]["email"] == "alice@example.com"


@asynccontextmanager
async def application(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a second application on the same servers, with other settings."""
    async with open_runtime(settings, "other") as runtime:

        @asynccontextmanager
        async def opened() -> AsyncIterator[Runtime]:
            yield runtime

        app = create_app(settings, opened)
        async with app.router.lifespan_context(app), http_client(app) as client:
            yield client


async def test_only_listed_places_are_returned_to(client: httpx2.AsyncClient) -> None:
    for place in ("https://evil.example.com/", f"{CONSOLE}/", f"{CONSOLE}?x", "javascript:alert(1)", "//x"):
        assert (await start(client, redirect_uri=place)).status_code == 400, place
    assert (await start(client)).status_code == 303


@pytest.mark.parametrize("overrides", [{"oidc_redirect_uris": ()}])
async def test_without_a_list_only_our_own_root_is(client: httpx2.AsyncClient, provider: Provider) -> None:
    assert (await start(client, redirect_uri=CONSOLE)).status_code == 400
    begun = await start(client)
    done = await come_back(client, await provider.log_in(begun.headers["location"], "alice"))
    assert done.headers["location"].startswith("http://localhost:8000/#code=")


async def test_a_login_is_finished_once_and_only_in_its_browser(
    app: FastAPI, client: httpx2.AsyncClient, provider: Provider
) -> None:
    begun = await start(client)
    cookie = begun.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Path=/auth/oidc")) and "Secure" not in cookie
    back = await provider.log_in(begun.headers["location"], "alice")
    async with http_client(app) as victim:
        assert (await come_back(victim, back)).status_code == 400, "logging someone else in"
    assert (await come_back(client, back)).status_code == 400, "the attempt used it up"
    begun = await start(client)
    assert cookie.split(";")[0] == begun.headers["set-cookie"].split(";")[0], "tabs share the cookie"
    back = await provider.log_in(begun.headers["location"], "alice")
    assert (await come_back(client, back)).status_code == 303
    assert (await come_back(client, back)).status_code == 400
    assert (await client.get("/auth/oidc/callback", params={"code": "x"})).status_code == 400
    assert (await client.get("/auth/oidc/callback", params={"code": "x", "state": "x"})).status_code == 400


async def test_what_the_provider_refuses_reaches_the_console(client: httpx2.AsyncClient, runtime: Runtime) -> None:
    async def callback(**query: str) -> httpx2.Response:
        begun = await start(client, redirect_uri=CONSOLE)
        state = parse_qs(urlsplit(begun.headers["location"]).query)["state"][0]
        return await client.get("/auth/oidc/callback", params={"state": state, **query})

    refused = await callback(error="access_denied")
    assert fragment(refused.headers["location"]) == {"error": "access_denied"}
    forged = await callback(code="made-up")
    assert fragment(forged.headers["location"]) == {"error": "bad_request", "error_description": WRONG}
    assert (await callback(code="made-up", iss="https://other.example.com")).status_code == 400
    assert fragment((await callback()).headers["location"]) == {"error": "invalid_request"}


async def test_a_token_logs_in(client: httpx2.AsyncClient, provider: Provider) -> None:
    token = await provider.id_token("alice", "n-1")
    answer = await by_token(client, token)
    assert answer.status_code == 200, answer.text
    assert answer.json()["user"]["external_auth_id"] == "alice"
    assert (await by_token(client, token, nonce="n-1")).status_code == 200
    other = await by_token(client, token, nonce="n-2")
    assert (other.status_code, other.json()["detail"]) == (400, WRONG)
    assert (await by_token(client, await provider.id_token("alice"), nonce="n-1")).status_code == 400


async def test_forged_tokens_are_refused(client: httpx2.AsyncClient, provider: Provider) -> None:
    good = await provider.id_token("alice")
    head, payload, signature = good.split(".")
    key, at_now = RSAKey.generate_key(2048, {"kid": "key-1"}), int(time.time())
    claims = {"iss": provider.issuer, "aud": CLIENT_ID, "sub": "alice", "iat": at_now, "exp": at_now + 60, **ALICE}
    forged = [
        "",
        "nonsense",
        "é.é.é",
        f"{head}.{payload}.",
        f"{head}.{payload}.{signature[:-4]}AAAA",
        jwt.encode({"alg": "RS256", "kid": "key-1"}, claims, key),
        jwt.encode({"alg": "RS256", "kid": "unknown"}, claims, key),
        jwt.encode({"alg": "RS256"}, claims, key),
        jwt.encode({"alg": "HS256", "kid": "key-1"}, claims, OctKey.import_key(CLIENT_SECRET)),
    ]
    for token in forged:
        answer = await by_token(client, token)
        assert (answer.status_code, answer.json()["detail"]) == (400, WRONG), token
    assert (await client.post("/auth/external-auth", json={})).status_code == 422
    assert (await by_token(client, "x" * 40_000)).status_code == 422


async def test_a_good_signature_is_not_enough(client: httpx2.AsyncClient, provider: Provider) -> None:
    key, moment = await provider.private_key(), int(time.time())
    claims = {"iss": provider.issuer, "aud": CLIENT_ID, "sub": "alice", "iat": moment, "exp": moment + 60, **ALICE}

    async def status(changes: Mapping[str, object], leave_out: str = "", **header: str) -> int:
        said = {name: value for name, value in {**claims, **changes}.items() if name != leave_out}
        token = jwt.encode({"alg": "RS256", "kid": key.kid, **header}, said, key)
        return (await by_token(client, token)).status_code

    assert await status({}) == 200
    assert await status({"aud": [CLIENT_ID], "azp": CLIENT_ID}, typ="JWT") == 200
    assert await status({"exp": moment - 30}) == 200, "clocks differ"
    for kind in ("at+jwt", "logout+jwt"):
        assert await status({}, typ=kind) == 400, kind
    for name in ("iss", "aud", "sub", "exp", "iat"):
        assert await status({}, leave_out=name) == 400, name
    wrong: list[dict[str, object]] = [
        {"aud": "another"}, {"aud": ["another"]}, {"aud": [CLIENT_ID, "another"]}, {"azp": "another"},
        {"aud": [CLIENT_ID, "another"], "azp": "another"}, {"iss": "https://other.example.com"}, {"iss": [APP]},
        {"exp": moment - 120}, {"exp": "soon"}, {"iat": moment + 600}, {"nbf": moment + 600}, {"sub": 7}, {"sub": ""},
        {"sub": "x" * 256}, {"sub": "a\nb"}, {"events": {}},
    ]  # fmt: skip
    for changes in wrong:
        assert await status(changes) == 400, changes


async def test_without_redis_logins_wait(settings: Settings, runtime: Runtime, provider: Provider) -> None:
    async with application(settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1")})) as client:
        answer = await start(client)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert (await client.post("/auth/oidc/session", json={"code": "x"})).status_code == 503
        assert (await by_token(client, await provider.id_token("alice"))).status_code == 200, "this needs none"


async def test_a_new_key_is_found_and_the_old_one_is_worth_nothing(
    client: httpx2.AsyncClient, provider: Provider, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinas_server.backends.oidc.LEAST_PAUSE", 3600.0)
    old = await provider.id_token("alice")
    assert (await by_token(client, old)).status_code == 200
    await provider.change_key()
    new = await provider.id_token("alice")
    assert (await by_token(client, new)).status_code == 400, "the keys were asked for a moment ago"
    monkeypatch.setattr("sinas_server.backends.oidc.LEAST_PAUSE", 0.0)
    assert (await by_token(client, new)).status_code == 200
    assert (await by_token(client, old)).status_code == 400


@pytest.mark.parametrize(
    "claims", [{"email": "x@example.com"}, {"email": "x@example.com", "email_verified": "true"},
               {"email_verified": True}, {"email": "no address", "email_verified": True}, {}]
)  # fmt: skip
async def test_an_address_that_is_not_verified_counts_for_nothing(
    client: httpx2.AsyncClient, provider: Provider, claims: dict[str, object], runtime: Runtime
) -> None:
    provider.know(mallory=claims)
    assert (await by_token(client, await provider.id_token("mallory"))).status_code == 403
    found = await log_in(client, provider, "mallory")
    assert found["error"] == "forbidden" and found["error_description"]
    assert len(await runtime.database.rows(select(UserRow.id))) == 1


async def test_users_are_linked_by_a_verified_address_and_stay_linked(
    client: httpx2.AsyncClient, provider: Provider, user: Person
) -> None:
    provider.know(alice={"email": user.email.upper(), "email_verified": True})
    first = await by_token(client, await provider.id_token("alice"))
    assert first.json()["user"]["id"] == str(user.id)
    provider.know(
        alice={"email": "renamed@example.com", "email_verified": False},
        thief={"email": user.email, "email_verified": True},
    )
    same = await by_token(client, await provider.id_token("alice"))
    assert (same.json()["user"]["id"], same.json()["user"]["email"]) == (str(user.id), user.email)
    assert (await by_token(client, await provider.id_token("thief"))).status_code == 403, "someone else is linked"


@pytest.mark.parametrize("overrides", [{"signup": "closed"}])
async def test_where_signup_is_closed_only_known_users_get_in(
    client: httpx2.AsyncClient, provider: Provider, user: Person
) -> None:
    assert (await by_token(client, await provider.id_token("alice"))).status_code == 403
    provider.know(alice={"email": user.email, "email_verified": True})
    assert (await by_token(client, await provider.id_token("alice"))).status_code == 200


async def test_deactivated_users_stay_out(client: httpx2.AsyncClient, provider: Provider, runtime: Runtime) -> None:
    token = await provider.id_token("alice")
    user_id = (await by_token(client, token)).json()["user"]["id"]
    code = (await log_in(client, provider))["code"]
    await runtime.database.rows(update(UserRow).where(UserRow.id == user_id).values(is_active=False))
    assert (await by_token(client, token)).status_code == 403
    assert (await client.post("/auth/oidc/session", json={"code": code})).status_code == 403
    await runtime.database.rows(update(UserRow).values(external_auth_provider=None, external_auth_id=None))
    assert (await by_token(client, token)).status_code == 403, "nor are they linked"


ROLES = {"oidc_role_claim": "groups", "oidc_role_map": {"staff": "Users", "ops": "Admins", "x": "Nowhere"}}


@pytest.mark.parametrize("overrides", [ROLES])
async def test_roles_follow_the_claim(client: httpx2.AsyncClient, provider: Provider, runtime: Runtime) -> None:
    async def roles(*groups: object) -> list[str]:
        provider.know(alice={**ALICE, "groups": list(groups)})
        answer = await by_token(client, await provider.id_token("alice"))
        found: list[str] = answer.json()["user"]["roles"]
        return found

    assert await roles("staff", "x", 7) == ["Users"], "no GuestUsers for who has a role"
    assert await roles("staff", "ops") == ["Admins", "Users"]
    assert await roles("ops") == ["Admins"]
    assert await roles() == []
    changes = await runtime.database.rows(select(AuditRow).where(AuditRow.target_kind == "role").order_by(AuditRow.id))
    assert [(row.action, row.target) for row in changes] == [
        ("add_member", "Users"), ("add_member", "Admins"), ("remove_member", "Users"), ("remove_member", "Admins")
    ]  # fmt: skip
    assert changes[0].detail == {"user": "alice@example.com", "via": "oidc"}


@pytest.mark.parametrize("overrides", [ROLES])
async def test_someone_new_without_a_role_is_a_guest(client: httpx2.AsyncClient, provider: Provider) -> None:
    answer = await by_token(client, await provider.id_token("alice"))
    assert answer.json()["user"]["roles"] == ["GuestUsers"]


@pytest.mark.parametrize("overrides", [ROLES])
async def test_the_last_administrator_stays_one(client: httpx2.AsyncClient, provider: Provider, admin: Person) -> None:
    provider.know(root={"email": admin.email, "email_verified": True})
    answer = await by_token(client, await provider.id_token("root"))
    assert answer.json()["user"]["roles"] == ["Admins"]


@pytest.mark.parametrize("overrides", [{"rate_limit_login_ip_max": 2}])
async def test_logins_are_limited_for_each_origin(client: httpx2.AsyncClient) -> None:
    assert [(await start(client)).status_code for _ in range(3)] == [303, 303, 429]
    refused = await by_token(client, "x")
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0


@pytest.mark.parametrize("issuer", ["http://127.0.0.1:1", "http://169.254.169.254", "http://metadata.google.internal"])
async def test_a_provider_that_cannot_be_reached_is_503(settings: Settings, issuer: str, runtime: Runtime) -> None:
    async with application(settings.model_copy(update={"oidc_issuer": issuer})) as client:
        good = jwt.encode({"alg": "RS256", "kid": "a"}, {}, RSAKey.generate_key(2048))
        answers = [await start(client), await by_token(client, good)]
        assert {answer.status_code for answer in answers} == {503}
        assert all("login provider" in answer.json()["detail"] for answer in answers)


async def test_a_provider_that_calls_itself_otherwise_is_not_trusted(
    settings: Settings, provider: Provider, runtime: Runtime
) -> None:
    renamed = provider.issuer.replace("127.0.0.1", "localhost")
    async with application(settings.model_copy(update={"oidc_issuer": renamed})) as client:
        assert (await by_token(client, await provider.id_token("alice"))).status_code == 503


async def test_what_waits_in_redis_is_sealed_and_cannot_be_moved(
    client: httpx2.AsyncClient, provider: Provider, runtime: Runtime
) -> None:
    code = (await log_in(client, provider))["code"]
    [place] = [name async for name in runtime.redis.scan_iter("sinas:once:oidc-code:*")]
    kept = await runtime.redis.get(place)
    assert kept and code.encode() not in place and b"alice" not in kept
    await runtime.redis.set(place, json.dumps({"user_id": "x", "place": place.decode()}))
    assert (await client.post("/auth/oidc/session", json={"code": code})).status_code == 400
    code = (await log_in(client, provider))["code"]
    [place] = [name async for name in runtime.redis.scan_iter("sinas:once:oidc-code:*")]
    await runtime.redis.set(place, kept)
    assert (await client.post("/auth/oidc/session", json={"code": code})).status_code == 400
