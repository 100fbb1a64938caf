"""Login with a code from a mail, as clients and attackers meet it."""

import asyncio
import re
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx2
import jwt
import pytest
from fastapi import FastAPI
from jwt.warnings import InsecureKeyLengthWarning
from redis.asyncio import Redis
from sqlalchemy import insert, select, update

from sinas_server.identity.sweep import sweep
from sinas_server.identity.tables import ExecutionGrantRow, OtpSessionRow, RefreshTokenRow, UserRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import TaskRow
from sinas_server.kit.clock import now
from sinas_server.kit.crypto import hash_token
from tests.identity.codes import Codes, ask, verify
from tests.people import Person

WRONG = "Invalid or expired OTP"


async def test_the_whole_life_of_a_session(client: httpx2.AsyncClient, code_for: Codes) -> None:
    session_id = await ask(client, "New.Person@Example.com")
    answer = await verify(client, session_id, f" {await code_for('new.person@example.com')} ")
    assert answer.status_code == 200
    tokens = answer.json()
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 900)
    assert tokens["user"]["email"] == "new.person@example.com"
    assert tokens["user"]["roles"] == ["GuestUsers"]
    assert tokens["user"]["last_login_at"]
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert (await client.get("/auth/me", headers=headers)).json() == tokens["user"]

    for _ in range(2):  # not rotated: clients keep the first one for ever
        fresh = await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        assert fresh.status_code == 200
        assert set(fresh.json()) == {"access_token", "token_type", "expires_in"}
    renewed = {"Authorization": f"Bearer {fresh.json()['access_token']}"}
    assert (await client.get("/auth/me", headers=renewed)).json()["id"] == tokens["user"]["id"]

    gone = await client.post("/auth/logout", json={"refresh_token": tokens["refresh_token"]})
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})).status_code == 401
    assert (await client.get("/auth/me", headers=headers)).status_code == 401, "logout ends the access tokens too"
    assert (await client.post("/auth/logout", json={"refresh_token": tokens["refresh_token"]})).status_code == 204


async def test_a_code_works_once(client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime) -> None:
    session_id = await ask(client, "once@example.com")
    code = await code_for("once@example.com")
    answers = await asyncio.gather(*(verify(client, session_id, code) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 400]
    again = await verify(client, session_id, code)
    assert (again.status_code, again.json()["detail"]) == (400, WRONG)
    assert len(await runtime.database.rows(select(RefreshTokenRow.id))) == 1


async def test_guesses_are_counted_even_when_they_race(
    client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime
) -> None:
    session_id = await ask(client, "guess@example.com")
    code = await code_for("guess@example.com")
    wrong = "000000" if code != "000000" else "000001"
    answers = await asyncio.gather(*(verify(client, session_id, wrong) for _ in range(6)))
    assert {(answer.status_code, answer.json()["detail"]) for answer in answers} == {(400, WRONG)}
    attempts = await runtime.database.rows(select(OtpSessionRow.attempts))
    assert attempts[0].attempts == 2, "as OTP_MAX_ATTEMPTS says"
    assert (await verify(client, session_id, code)).status_code == 400, "the right code comes too late"


async def test_one_wrong_guess_is_forgiven(client: httpx2.AsyncClient, code_for: Codes) -> None:
    session_id = await ask(client, "slip@example.com")
    code = await code_for("slip@example.com")
    assert (await verify(client, session_id, "")).status_code == 400
    assert (await verify(client, session_id, code)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"session_id": None, "otp_code": None}, 422),
        ({"session_id": "7", "otp_code": "123456"}, 422),
        ({"session_id": str(uuid4()), "otp_code": None}, 422),
        ({"session_id": str(uuid4()), "otp_code": 123456}, 422),
        ({"session_id": str(uuid4()), "otp_code": ""}, 400),
        ({"session_id": str(uuid4()), "otp_code": "123456"}, 400),
        ({"session_id": str(uuid4()), "otp_code": "\uff11\uff12\uff13\uff14\uff15\uff16"}, 400),
        ({"session_id": str(uuid4()), "otp_code": "1" * 65}, 422),
    ],
)
async def test_bad_codes_are_never_401(body: dict[str, object], status: int, client: httpx2.AsyncClient) -> None:
    assert (await client.post("/auth/verify-otp", json=body)).status_code == status


async def test_an_expired_code_is_refused(client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime) -> None:
    session_id = await ask(client, "late@example.com")
    code = await code_for("late@example.com")
    await runtime.database.rows(update(OtpSessionRow).values(expires_at=now() - timedelta(seconds=1)))
    assert (await verify(client, session_id, code)).status_code == 400


async def test_a_code_belongs_to_its_session(client: httpx2.AsyncClient, code_for: Codes) -> None:
    mine, theirs = await ask(client, "mine@example.com"), await ask(client, "theirs@example.com")
    code = await code_for("mine@example.com")
    if code != await code_for("theirs@example.com"):
        assert (await verify(client, theirs, code)).status_code == 400
    assert (await verify(client, mine, code)).json()["user"]["email"] == "mine@example.com"


async def test_codes_are_nowhere_in_plain(client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime) -> None:
    await ask(client, "plain@example.com")
    code = await code_for("plain@example.com")
    stored = [
        *await runtime.database.rows(select(TaskRow.payload)),
        *await runtime.database.rows(select(OtpSessionRow.code_hash)),
    ]
    assert len(stored) == 2
    assert code not in str(stored) and "plain@example.com" not in str(stored)


async def test_refresh_tokens_are_nowhere_in_plain(
    client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime
) -> None:
    session_id = await ask(client, "kept@example.com")
    token = (await verify(client, session_id, await code_for("kept@example.com"))).json()["refresh_token"]
    [row] = await runtime.database.rows(select(RefreshTokenRow))
    assert token not in str(row)
    assert row.token_hash == hash_token(runtime.settings.signing_key, token)


async def test_login_routes_ignore_the_authorization_header(client: httpx2.AsyncClient, code_for: Codes) -> None:
    client.headers["Authorization"] = "Bearer sk-sinas-nonsense"
    client.headers["X-API-Key"] = "nonsense"
    session_id = await ask(client, "header@example.com")
    tokens = (await verify(client, session_id, await code_for("header@example.com"))).json()
    assert (await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})).status_code == 200
    assert (await client.get("/info")).status_code == 200


@pytest.mark.parametrize("bad", [{}, {"email": None}, {"email": "x"}, {"email": "a@b@c.de"}, {"email": ["a@b.de"]}])
async def test_a_bad_address_is_422(bad: dict[str, object], client: httpx2.AsyncClient) -> None:
    assert (await client.post("/auth/login", json=bad)).status_code == 422


@pytest.mark.parametrize("token", ["", "x", "é", "x" * 1000])
async def test_a_bad_refresh_token_is_401(token: str, client: httpx2.AsyncClient) -> None:
    assert (await client.post("/auth/refresh", json={"refresh_token": token})).status_code == 401


async def test_expired_and_foreign_sessions_are_401(user: Person, client: httpx2.AsyncClient, runtime: Runtime) -> None:
    claims = jwt.decode(user.token, options={"verify_signature": False})
    key = runtime.settings.signing_key
    for changed in (
        {"exp": now() - timedelta(seconds=1)},
        {"sub": str(uuid4())},
        {"sid": str(uuid4())},
        {"sid": 7},
        {"type": "refresh"},
        {"type": None},
    ):
        token = jwt.encode(claims | changed, key, algorithm="HS256")
        assert (await client.get("/auth/me", headers={"Authorization": f"Bearer {token}"})).status_code == 401, changed
    warnings.simplefilter("ignore", InsecureKeyLengthWarning)
    for forged in (
        jwt.encode(claims, "another-key-" * 4, algorithm="HS256"),
        jwt.encode(claims, key, algorithm="HS384"),
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode({name: claims[name] for name in claims if name != "exp"}, key, algorithm="HS256"),
    ):
        assert (await client.get("/auth/me", headers={"Authorization": f"Bearer {forged}"})).status_code == 401
    good = jwt.encode(claims, key, algorithm="HS256")
    assert (await client.get("/auth/me", headers={"Authorization": f"Bearer {good}"})).status_code == 200


async def test_a_deactivated_user_gets_no_mail_and_no_session(
    user: Person, client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime, outbox: Path
) -> None:
    waiting = await ask(client, user.email)
    code = await code_for(user.email)
    await runtime.database.rows(update(UserRow).where(UserRow.id == user.id).values(is_active=False))
    assert (await verify(client, waiting, code)).status_code == 400
    await ask(client, user.email)
    await ask(client, "marker@example.com")
    await code_for("marker@example.com")
    assert list(outbox.glob("*.eml")) == []
    assert len(await runtime.database.rows(select(TaskRow.id))) == 3, "the same work for everyone"


@pytest.mark.parametrize("overrides", [{"signup": "closed"}])
async def test_where_signup_is_closed_unknown_addresses_get_the_same_answer_and_no_mail(
    user: Person, client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime, outbox: Path
) -> None:
    unknown = await ask(client, "someone-000000000000@example.com")
    known = await ask(client, user.email)
    assert (await verify(client, known, await code_for(user.email))).status_code == 200
    assert list(outbox.glob("*.eml")) == []
    tasks = await runtime.database.rows(select(TaskRow.payload))
    assert len(tasks) == 2
    assert len({len(task.payload["sealed"]) for task in tasks}) == 1, "the queued work looks the same"
    assert (await verify(client, unknown, "123456")).status_code == 400


@pytest.mark.parametrize("overrides", [{"signup": "open"}])
async def test_closing_signup_voids_codes_that_were_sent(
    client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = await ask(client, "early@example.com")
    code = await code_for("early@example.com")
    monkeypatch.setitem(runtime.settings.__dict__, "signup", "closed")
    assert (await verify(client, session_id, code)).status_code == 400


async def test_the_domain_of_the_address_decides_the_first_roles(
    admin: Person, client: httpx2.AsyncClient, code_for: Codes
) -> None:
    await admin.http.post("/api/v1/roles", json={"name": "Staff", "email_domain": "staff.example.com"})
    session_id = await ask(client, "first@staff.example.com")
    tokens = (await verify(client, session_id, await code_for("first@staff.example.com"))).json()
    assert tokens["user"]["roles"] == ["Staff"]


LIMITS = {"rate_limit_login_ip_max": 4, "rate_limit_login_email_max": 2, "rate_limit_otp_ip_max": 3}


@pytest.mark.parametrize("overrides", [LIMITS])
async def test_rate_limits_answer_429_and_when_to_try_again(client: httpx2.AsyncClient, runtime: Runtime) -> None:
    async def login(address: str) -> httpx2.Response:
        return await client.post("/auth/login", json={"email": address})

    assert [(await login("a@example.com")).status_code for _ in range(3)] == [200, 200, 429]
    assert (await login("A@example.com")).status_code == 429, "the same address"
    refused = await login("b@example.com")
    assert refused.status_code == 429, "the same origin"
    assert 0 < int(refused.headers["retry-after"]) <= 900
    codes = [(await verify(client, str(uuid4()), "1")).status_code for _ in range(4)]
    assert codes == [400, 400, 400, 429]
    await runtime.redis.flushdb()
    assert (await login("b@example.com")).status_code == 200


@pytest.mark.parametrize("overrides", [LIMITS])
async def test_without_redis_login_goes_on(
    app: FastAPI, client: httpx2.AsyncClient, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Redis.from_url("redis://127.0.0.1:1") as nobody:
        app.state.runtime = replace(runtime, redis=nobody)
        answers = [(await client.post("/auth/login", json={"email": "x@example.com"})).status_code for _ in range(3)]
    assert answers == [200, 200, 200]
    assert "rate limits are not in effect" in capsys.readouterr().out


async def test_check_permissions_answers_one_by_one(user: Person, client: httpx2.AsyncClient) -> None:
    asked = ["sinas.users.read:own", "titan.courses.enroll:own"]
    both = (await user.http.post("/auth/check-permissions", json={"permissions": asked})).json()
    assert both == {
        "result": False,
        "logic": "AND",
        "checks": [
            {"permission": asked[0], "has_permission": True},
            {"permission": asked[1], "has_permission": False},
        ],
    }
    either = await user.http.post("/auth/check-permissions", json={"permissions": asked, "logic": "OR"})
    assert (either.json()["result"], either.json()["logic"]) == (True, "OR")
    for bad in (
        {}, {"permissions": "x"}, {"permissions": ["nonsense"]}, {"permissions": asked, "logic": "XOR"},
        {"permissions": ["sinas.a.read:own"] * 1001},
    ):  # fmt: skip
        assert (await user.http.post("/auth/check-permissions", json=bad)).status_code == 422
    assert (await client.post("/auth/check-permissions", json={"permissions": asked})).status_code == 401


async def test_a_thousand_permissions_are_checked_at_once(user: Person) -> None:
    asked = [f"sinas.agents/team/a{number}.{'chat' if number % 2 else 'fly'}:all" for number in range(1000)]
    answer = await user.http.post("/auth/check-permissions", json={"permissions": asked, "logic": "OR"})
    assert answer.status_code == 200
    assert [check["permission"] for check in answer.json()["checks"]] == asked
    assert [check["has_permission"] for check in answer.json()["checks"]] == [False, True] * 500


async def test_info_needs_no_credential(client: httpx2.AsyncClient) -> None:
    answer = (await client.get("/info")).json()
    assert answer["auth_mode"] == "otp"
    assert re.match(r"\d+\.\d+", answer["version"])
    assert answer["features"] == {"code_execution": False, "oidc": False}


async def test_what_is_over_is_forgotten_after_a_day(
    user: Person, client: httpx2.AsyncClient, runtime: Runtime
) -> None:
    await ask(client, "old@example.com")
    async with runtime.database.unit() as db:
        for age in (timedelta(hours=1), timedelta(days=2)):
            await db.execute(
                insert(ExecutionGrantRow).values(
                    execution_id=uuid4(),
                    token_id=uuid4(),
                    user_id=user.id,
                    owner_ids=[],
                    depth=0,
                    expires_at=now() - age,
                )
            )
    await sweep(runtime)
    assert len(await runtime.database.rows(select(OtpSessionRow.id))) == 1
    assert len(await runtime.database.rows(select(ExecutionGrantRow.execution_id))) == 1
    await runtime.database.rows(update(OtpSessionRow).values(expires_at=now() - timedelta(days=2)))
    await runtime.database.rows(update(RefreshTokenRow).values(revoked_at=now() - timedelta(days=2)))
    await sweep(runtime)
    assert await runtime.database.rows(select(OtpSessionRow.id)) == []
    assert await runtime.database.rows(select(RefreshTokenRow.id)) == []
