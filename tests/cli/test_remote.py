"""The commands that talk to a running Sinas, and the example that comes with it."""

from pathlib import Path

import pytest

from tests.live import Live, free_port, sinas

DESK = Path(__file__).parents[2] / "examples" / "support-desk" / "sinas.yaml"


@pytest.fixture(scope="module")
def desk(live: Live) -> Live:
    """A Sinas with the support desk."""
    done = sinas("apply", "-f", str(DESK), environment=live.environment)
    assert done.returncode == 0, done.stderr
    return live


def chat(live: Live, message: str) -> str:
    done = sinas("chat", "support/desk", message, environment=live.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_applying_twice_changes_nothing_more(desk: Live) -> None:
    again = sinas("apply", "-f", str(DESK), environment=desk.environment)
    assert again.returncode == 0, again.stderr
    assert {line.split()[0] for line in again.stdout.splitlines()} == {"unchanged"}


def test_the_agent_answers_through_a_sandboxed_function(desk: Live) -> None:
    said = chat(desk, "Where is order 1042?")
    assert '→ support__lookup_order {"order_number": "1042"}' in said
    assert "Order 1042 (3 × Merino socks (3 pairs)) was delivered on 2026-10-19 by UPS." in said


def test_two_calls_in_one_turn(desk: Live) -> None:
    said = chat(desk, "Which of 1055 and 1057 has been shipped?")
    assert said.count("→ support__lookup_order") == 2
    assert "1055 (3 × Down sleeping bag) is on its way" in said
    assert "1057 (1 × Camping stove) is processing" in said


def test_a_call_that_needs_approval_waits_and_says_how_to_decide(desk: Live) -> None:
    said = chat(desk, "Please cancel order 1057")
    assert "approval required: support/cancel_order" in said
    assert "/approve-tool/" in said


def test_a_chat_goes_on(desk: Live) -> None:
    first = chat(desk, "Where is order 1042?")
    chat_id = first.strip().rsplit(" ", 1)[1]
    more = sinas("chat", "support/desk", "And 1057?", "--chat", chat_id, environment=desk.environment)
    assert "1057" in more.stdout
    with desk.client() as client:
        assert len(client.get(f"/chats/{chat_id}").json()["messages"]) == 8


def test_an_export_applies_elsewhere_as_it_is(desk: Live, tmp_path: Path) -> None:
    exported = sinas("export", "--managed-only", environment=desk.environment)
    assert exported.returncode == 0, exported.stderr
    file = tmp_path / "export.yaml"
    file.write_text(exported.stdout)
    dry = sinas("apply", "-f", str(file), "--dry-run", environment=desk.environment)
    assert dry.returncode == 0, dry.stderr
    assert {line.split()[0] for line in dry.stdout.splitlines()} == {"unchanged", "(dry"}


def test_variables_come_from_the_environment_of_the_command(live: Live, tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(
        "apiVersion: sinas.co/v1\nkind: SinasConfig\nspec:\n  agents:\n"
        "    - name: greeter\n      description: 'for ${TEAM}, not $${TEAM} or ${team}'\n"
    )
    missing = sinas("apply", "-f", str(file), environment=live.environment)
    assert (missing.returncode, "spec.agents[0].description" in missing.stderr) == (1, True)
    assert "${TEAM}" in missing.stderr
    done = sinas("apply", "-f", str(file), environment={**live.environment, "TEAM": "Blue"})
    assert done.returncode == 0, done.stderr
    with live.client() as client:
        found = client.get("/api/v1/agents/default/greeter").json()
    assert found["description"] == "for Blue, not ${TEAM} or ${team}"


def test_what_is_wrong_in_a_document_is_said_with_its_place(live: Live, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("apiVersion: sinas.co/v1\nkind: SinasConfig\nspec:\n  agents:\n    - name: '1st'\n")
    done = sinas("apply", "-f", str(file), environment=live.environment)
    assert done.returncode == 1
    assert "spec.agents[0].name" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("chat", "nobody/home", "hello"), 1, "404"),
        (("chat", "nameless", "hello"), 2, "NAMESPACE/NAME"),
        (("export", "--api-key", "wrong"), 1, "401"),
    ],
)
def test_refusals_are_one_readable_line(live: Live, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = sinas(*arguments, environment=live.environment)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_without_a_server_or_a_key_it_says_what_to_do(tmp_path: Path, live: Live) -> None:
    nowhere = {**live.environment, "PORT": str(free_port())}
    assert "Is `sinas up` running?" in sinas("export", environment=nowhere).stderr
    assert sinas("health", environment=nowhere).returncode == 1
    assert sinas("health", environment=live.environment).returncode == 0
    no_key = {**live.environment, "SINAS_DATA_DIR": str(tmp_path)}
    assert "no API key" in sinas("export", environment=no_key).stderr


def test_keys_are_rotated_and_what_can_go_is_said(live: Live) -> None:
    with live.client() as client:
        body = {"name": "ROTATED", "value": "x", "visibility": "private"}
        assert client.post("/api/v1/secrets", json=body).status_code == 201
    done = sinas("rotate-keys", environment=live.environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0 values are under the first key now that were not",
        "the keys behind the first one are not needed any more",
    ]
