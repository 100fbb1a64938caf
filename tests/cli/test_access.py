"""`sinas access explain`: who may do what, from the command line."""

from uuid import uuid4

import pytest

from tests.live import Live, sinas


@pytest.fixture(scope="module")
def someone(live: Live) -> dict[str, str]:
    email = f"cli-{uuid4().hex[:8]}@example.com"
    with live.client() as client:
        made: dict[str, str] = client.post("/api/v1/users", json={"email": email}).json()
    return made


def explain(live: Live, user: str, permission: str) -> "tuple[int, str]":
    done = sinas("access", "explain", user, permission, environment=live.environment)
    return done.returncode, done.stdout + done.stderr


def test_it_names_the_role_and_the_grant(live: Live, someone: dict[str, str]) -> None:
    code, said = explain(live, someone["email"], "sinas.users.read:own")
    assert (code, said) == (
        0,
        f"{someone['email']} may: sinas.users.read:own\n  role GuestUsers holds sinas.users.read:own\n",
    )


def test_it_names_what_is_missing(live: Live, someone: dict[str, str]) -> None:
    code, said = explain(live, someone["id"], "sinas.agents.chat:all")
    assert code == 0
    assert "may not" in said and "grant sinas.agents.chat:all to one of the user's roles" in said
    with live.client() as client:
        client.patch(f"/api/v1/users/{someone['id']}", json={"is_active": False})
    assert "deactivated" in explain(live, someone["email"], "sinas.users.read:own")[1]


def test_it_fails_for_what_does_not_exist(live: Live) -> None:
    code, said = explain(live, "nobody@example.com", "sinas.users.read:own")
    assert (code, said) == (1, "no user 'nobody@example.com' that your key may see\n")
    code, said = explain(live, "nobody", "sinas.users.read:own")
    assert code == 1 and "422" in said
