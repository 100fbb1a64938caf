"""Logging in with a password, alone or before a code, as clients and attackers meet it."""

import asyncio

import argon2
import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import select, update

from sinas_server.identity import passwords
from sinas_server.identity.tables import OtpSessionRow, PasswordRow, UserRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow
from sinas_server.kit import password as hashing
from tests.identity.codes import Codes, ask, verify
from tests.identity.conftest import KeyClient
from tests.people import Person, make_person

SECRET = "correct horse battery"
OTHER = "another long secret"
WRONG = "Invalid e-mail address or password"
password_mode = pytest.mark.parametrize("overrides", [{"auth_mode": "password"}])
both_mode = pytest.mark.parametrize("overrides", [{"auth_mode": "password+otp"}])


def password_of(person: Person) -> str:
    return f"/api/v1/users/{person.id}/password"


async def log_in(client: httpx2.AsyncClient, email: str, password: str) -> httpx2.Response:
    return await client.post("/auth/login", json={"email": email, "password": password})


@pytest.fixture
async def known(admin: Person, user: Person) -> Person:
    """Someone whose password is SECRET; the sessions so far are over."""
    answer = await admin.http.put(password_of(user), json={"new_password": SECRET})
    assert answer.status_code == 204, answer.text
    return user


@password_mode
async def test_a_password_begins_a_session_in_one_step(known: Person, client: httpx2.AsyncClient) -> None:
    answer = await log_in(client, known.email.upper(), SECRET)
    assert answer.status_code == 200
    tokens = answer.json()
    assert set(tokens) == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 900)
    assert tokens["user"]["last_login_at"]
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert (await client.get("/auth/me", headers=headers)).json() == tokens["user"]
    assert (await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})).status_code == 200


@password_mode
async def test_wrong_passwords_and_unknown_addresses_get_the_same_answer_which_is_no_401(
    known: Person, admin: Person, client: httpx2.AsyncClient, runtime: Runtime
) -> None:
    answers = [
        await log_in(client, known.email, OTHER),
        await log_in(client, known.email, ""),
        await log_in(client, known.email, f"{SECRET} "),
        await log_in(client, "nobody@example.com", SECRET),
        await log_in(client, admin.email, SECRET),  # has no password
    ]
    await runtime.database.rows(update(UserRow).where(UserRow.id == known.id).values(is_active=False))
    answers.append(await log_in(client, known.email, SECRET))
    assert {(answer.status_code, answer.text) for answer in answers} == {
        (400, f'{{"detail":"{WRONG}","code":"bad_request"}}')
    }


@password_mode
async def test_unknown_addresses_cost_a_hash_too(
    client: httpx2.AsyncClient, known: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    verify_hash = argon2.PasswordHasher.verify

    def counting(self: argon2.PasswordHasher, stored: str, password: bytes) -> bool:
        compared.append(stored)
        return verify_hash(self, stored, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counting)
    await log_in(client, "nobody@example.com", SECRET)
    await log_in(client, known.email, OTHER)
    assert len(compared) == 2
    assert len({stored.rsplit("$", 2)[0] for stored in compared}) == 1, "at the same cost"


def test_the_stand_in_for_no_password_costs_what_new_hashes_cost() -> None:
    assert not hashing.is_outdated(hashing._NOBODY)
    assert not hashing.matches(None, "")
    stored = hashing.hash_password("cafe\u0301" * 4)
    assert hashing.matches(stored, "caf\u00e9" * 4), "composed or not, it is the same password"


@password_mode
async def test_a_hash_of_another_cost_is_made_anew(known: Person, client: httpx2.AsyncClient, runtime: Runtime) -> None:
    old = argon2.PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(SECRET)
    await runtime.database.rows(update(PasswordRow).values(hash=old))
    assert (await log_in(client, known.email, SECRET)).status_code == 200
    [row] = await runtime.database.rows(select(PasswordRow.hash))
    assert "m=19456,t=2,p=1" in row.hash
    assert (await log_in(client, known.email, SECRET)).status_code == 200


@password_mode
async def test_the_body_of_a_login(client: httpx2.AsyncClient, known: Person) -> None:
    missing = await client.post("/auth/login", json={"email": known.email})
    assert missing.status_code == 422
    assert missing.json()["detail"][0]["loc"] == ["body", "password"]
    assert (await log_in(client, known.email, "x" * 1025)).status_code == 422
    assert (await client.post("/auth/login", json={"email": known.email, "password": 7})).status_code == 422


@pytest.mark.parametrize(
    "overrides", [{"auth_mode": "password", "rate_limit_login_ip_max": 4, "rate_limit_login_email_max": 2}]
)
async def test_guesses_are_limited_for_each_address_and_each_origin(known: Person, client: httpx2.AsyncClient) -> None:
    assert [(await log_in(client, known.email, OTHER)).status_code for _ in range(2)] == [400, 400]
    refused = await log_in(client, known.email, SECRET)
    assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (429, True)
    assert (await log_in(client, "b@example.com", OTHER)).status_code == 400
    assert (await log_in(client, "c@example.com", OTHER)).status_code == 429, "the same origin"


@pytest.mark.parametrize("overrides", [{"auth_mode": "password", "rate_limit_login_email_max": 2}])
async def test_a_stolen_session_cannot_guess_the_password(user: Person) -> None:
    body = {"old_password": OTHER, "new_password": SECRET}
    assert [(await user.http.post("/auth/password", json=body)).status_code for _ in range(3)] == [400, 400, 429]


@password_mode
async def test_info_says_what_people_log_in_with(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/info")).json()["auth_mode"] == "password"


@password_mode
async def test_a_user_changes_his_password(
    known: Person, client: httpx2.AsyncClient, runtime: Runtime, with_key: KeyClient
) -> None:
    first, second = [(await log_in(client, known.email, SECRET)).json()["access_token"] for _ in range(2)]
    client.headers["Authorization"] = f"Bearer {first}"

    async def change(old: str, new: str) -> httpx2.Response:
        return await client.post("/auth/password", json={"old_password": old, "new_password": new})

    wrong = await change(OTHER, OTHER)
    assert (wrong.status_code, wrong.json()["detail"]) == (400, WRONG)
    short = await change(SECRET, "x" * 11)
    assert (short.status_code, short.json()["detail"][0]["loc"]) == (422, ["body", "new_password"])
    assert (await change(SECRET, "x" * 1025)).status_code == 422
    assert (await change(SECRET, OTHER)).status_code == 204
    assert (await client.get("/auth/me")).status_code == 200, "this session goes on"
    client.headers["Authorization"] = f"Bearer {second}"
    assert (await client.get("/auth/me")).status_code == 401, "the others end"
    assert (await log_in(client, known.email, SECRET)).status_code == 400
    assert (await log_in(client, known.email, OTHER)).status_code == 200
    actions = await runtime.database.rows(select(AuditRow.action, AuditRow.actor).where(AuditRow.target == known.email))
    assert ("change_password", known.email) in [tuple(row) for row in actions]
    without = await with_key(known)
    body = {"old_password": OTHER, "new_password": SECRET}
    assert (await without.post("/auth/password", json=body)).status_code == 403


@password_mode
async def test_a_forgotten_password_is_set_with_a_mailed_code(
    known: Person, client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime
) -> None:
    session = (await log_in(client, known.email, SECRET)).json()
    asked = await client.post("/auth/password/forgot", json={"email": known.email.upper()})
    assert asked.status_code == 200
    assert set(asked.json()) == {"message", "session_id"}
    body = {"session_id": asked.json()["session_id"], "otp_code": await code_for(known.email), "new_password": "short"}
    assert (await client.post("/auth/password/reset", json=body)).status_code == 422
    assert (await verify(client, body["session_id"], body["otp_code"])).status_code == 400, "it is no login code"
    body["new_password"] = OTHER
    wrong = body | {"otp_code": "000000" if body["otp_code"] != "000000" else "000001"}
    assert (await client.post("/auth/password/reset", json=wrong)).status_code == 400
    assert (await client.post("/auth/password/reset", json=body)).status_code == 204
    assert (await client.post("/auth/password/reset", json=body)).status_code == 400, "it works once"
    assert (await client.post("/auth/refresh", json={"refresh_token": session["refresh_token"]})).status_code == 401
    assert (await log_in(client, known.email, OTHER)).status_code == 200
    actions = {row.action for row in await runtime.database.rows(select(AuditRow.action))}
    assert {"set_password", "reset_password"} <= actions


@password_mode
async def test_someone_new_gets_in_with_a_mailed_code(client: httpx2.AsyncClient, code_for: Codes) -> None:
    asked = await client.post("/auth/password/forgot", json={"email": "new@example.com"})
    body = {"session_id": asked.json()["session_id"], "otp_code": await code_for("new@example.com")}
    assert (await client.post("/auth/password/reset", json=body | {"new_password": SECRET})).status_code == 204
    assert (await log_in(client, "new@example.com", SECRET)).json()["user"]["roles"] == ["GuestUsers"]


@pytest.mark.parametrize("overrides", [{"auth_mode": "password", "signup": "closed"}])
async def test_a_forgotten_password_does_not_tell_who_is_known(
    client: httpx2.AsyncClient, known: Person, code_for: Codes
) -> None:
    answers = [
        await client.post("/auth/password/forgot", json={"email": address})
        for address in ("nobody@example.com", known.email)
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["message"] for answer in answers}) == 1
    body = {"session_id": answers[0].json()["session_id"], "otp_code": await code_for(known.email)}
    assert (await client.post("/auth/password/reset", json=body | {"new_password": SECRET})).status_code == 400


@both_mode
async def test_with_both_the_password_comes_first_and_the_code_second(
    known: Person, client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime
) -> None:
    for refused in (await log_in(client, known.email, OTHER), await log_in(client, "nobody@example.com", SECRET)):
        assert (refused.status_code, refused.json()["detail"]) == (400, WRONG)
    assert (await client.post("/auth/login", json={"email": known.email})).status_code == 422
    assert await runtime.database.rows(select(OtpSessionRow.id)) == [], "no code without the password"
    begun = await log_in(client, known.email, SECRET)
    assert set(begun.json()) == {"message", "session_id"}
    code = await code_for(known.email)
    stolen = {"session_id": begun.json()["session_id"], "otp_code": code, "new_password": OTHER}
    assert (await client.post("/auth/password/reset", json=stolen)).status_code == 400, "a login code sets no password"
    done = await verify(client, begun.json()["session_id"], code)
    assert done.json()["user"]["email"] == known.email


@pytest.mark.parametrize("overrides", [{"auth_mode": "otp"}])
@pytest.mark.parametrize("later", ["password", "password+otp"])
async def test_a_login_code_is_worth_nothing_once_passwords_are_needed(
    user: Person,
    client: httpx2.AsyncClient,
    code_for: Codes,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    later: str,
) -> None:
    session_id = await ask(client, user.email)
    code = await code_for(user.email)
    monkeypatch.setitem(runtime.settings.__dict__, "auth_mode", later)
    assert (await verify(client, session_id, code)).status_code == 400


async def test_without_passwords_their_routes_refuse(user: Person, admin: Person) -> None:
    new = {"new_password": SECRET}
    for answer in (
        await user.http.post("/auth/password", json=new | {"old_password": SECRET}),
        await user.http.post("/auth/password/forgot", json={"email": user.email}),
        await user.http.post("/auth/password/reset", json=new | {"session_id": str(user.id), "otp_code": "123456"}),
        await admin.http.put(password_of(user), json=new),
    ):
        assert answer.status_code == 400
        assert "AUTH_MODE" in answer.json()["detail"]
    with_password = await user.http.post("/auth/login", json={"email": user.email, "password": SECRET})
    assert set(with_password.json()) == {"message", "session_id"}, "it is ignored"


@password_mode
async def test_who_may_set_the_password_of_another(
    admin: Person, known: Person, guest: Person, with_key: KeyClient, runtime: Runtime
) -> None:
    new = {"new_password": OTHER}
    assert (await guest.http.put(password_of(known), json=new)).status_code == 404
    assert (await admin.http.put(password_of(admin), json=new)).status_code == 400, "the own one takes the old one"
    assert (await admin.http.put(password_of(known), json={"new_password": "short"})).status_code == 422
    clerk = await with_key(admin, "sinas.users.*:all")
    weak = await clerk.put(password_of(known), json=new)
    assert weak.status_code == 403 and "you do not hold" in weak.json()["detail"]
    assert (await clerk.put(password_of(guest), json=new)).status_code == 204, "who may no more than the clerk"
    assert (await guest.http.get("/auth/me")).status_code == 401
    [entry] = await runtime.database.rows(
        select(AuditRow).where(AuditRow.action == "set_password", AuditRow.target == guest.email)
    )
    assert (entry.actor, entry.via, entry.detail) == (admin.email, "api_key", {"ended_sessions": 1})


@password_mode
async def test_hashes_are_nowhere_to_be_seen(
    admin: Person, known: Person, runtime: Runtime, client: httpx2.AsyncClient
) -> None:
    [row] = await runtime.database.rows(select(PasswordRow.hash))
    assert row.hash.startswith("$argon2id$") and SECRET not in row.hash
    shown = [
        (await admin.http.get("/api/v1/users")).text,
        (await admin.http.get(f"/api/v1/users/{known.id}")).text,
        (await log_in(client, known.email, SECRET)).text,
        str(await runtime.database.rows(select(AuditRow.detail))),
    ]
    assert not any("argon2" in text or SECRET in text for text in shown)


@password_mode
async def test_logging_in_races_with_being_deactivated(
    known: Person, admin: Person, client: httpx2.AsyncClient
) -> None:
    answers = await asyncio.gather(
        log_in(client, known.email, SECRET),
        admin.http.patch(f"/api/v1/users/{known.id}", json={"is_active": False}),
    )
    assert answers[0].status_code in (200, 400, 401)
    for active in (False, True):
        await admin.http.patch(f"/api/v1/users/{known.id}", json={"is_active": active})
    if answers[0].status_code == 200:
        headers = {"Authorization": f"Bearer {answers[0].json()['access_token']}"}
        assert (await client.get("/auth/me", headers=headers)).status_code == 401


@password_mode
async def test_a_password_that_is_changed_while_it_is_being_checked_begins_no_session(
    known: Person, admin: Person, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = passwords.check

    async def slowly(runtime: Runtime, email: str, password: str) -> passwords.Checked:
        found = await check(runtime, email, password)
        assert (await admin.http.put(password_of(known), json={"new_password": OTHER})).status_code == 204
        return found

    monkeypatch.setattr(passwords, "check", slowly)
    answer = await log_in(client, known.email, SECRET)
    assert (answer.status_code, answer.json()["detail"]) == (400, WRONG)
    assert (await admin.http.get(f"/api/v1/users/{known.id}/sessions")).json() == []


@password_mode
async def test_two_people_with_one_password_have_two_hashes(
    admin: Person, known: Person, runtime: Runtime, app: FastAPI
) -> None:
    second = await make_person(runtime, app, ["GuestUsers"])
    async with second.http:
        await admin.http.put(password_of(second), json={"new_password": SECRET})
    rows = await runtime.database.rows(select(PasswordRow.hash))
    assert len({row.hash for row in rows}) == 2


async def test_without_a_provider_its_routes_are_not_there(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/auth/oidc/start")).status_code == 404
    assert (await client.post("/auth/external-auth", json={"token": "x"})).status_code == 404
    assert (await client.post("/auth/oidc/session", json={"code": "x"})).status_code == 400


@both_mode
async def test_a_code_mailed_because_of_the_old_password_is_of_no_more_use(
    known: Person, client: httpx2.AsyncClient, code_for: Codes
) -> None:
    begun = await log_in(client, known.email, SECRET)
    of_thief = {"session_id": begun.json()["session_id"], "code": await code_for(known.email)}
    asked = await client.post("/auth/password/forgot", json={"email": known.email})
    of_owner = {"session_id": asked.json()["session_id"], "otp_code": await code_for(known.email)}
    assert (await client.post("/auth/password/reset", json=of_owner | {"new_password": OTHER})).status_code == 204
    assert (await verify(client, of_thief["session_id"], of_thief["code"])).status_code == 400
