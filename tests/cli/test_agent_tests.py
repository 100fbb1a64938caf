"""`sinas agent test` against a running Sinas: what passes, what fails and why, recording, and replay."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import httpx2
import pytest
import yaml

from sinas_server.cli.agent_tests.read import Found
from sinas_server.cli.agent_tests.run import _Run
from sinas_server.cli.agent_tests.scenario import Scenario
from tests.live import Live, sinas

DESK = Path("examples/support-desk").resolve()
PAGE = Path("docs/agent-tests.md")


@pytest.fixture(scope="module")
def desk(live: Live) -> Live:
    """A Sinas with the support desk."""
    done = sinas("apply", "-f", str(DESK / "sinas.yaml"), environment=live.environment)
    assert done.returncode == 0, done.stderr
    return live


def run(live: Live, path: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return sinas("agent", "test", str(path), *options, environment=live.environment)


def titles(live: Live) -> list[str]:
    """The chats of tests that are there."""
    with live.client() as client:
        found = [str(chat["title"]) for chat in client.get("/chats").json()]
    return [title for title in found if title.startswith("Test: ")]


def write(folder: Path, **scenario: object) -> Path:
    file = folder / "scenario.yaml"
    file.write_text(yaml.safe_dump({"name": "One", "agent": "support/desk", **scenario}, allow_unicode=True))
    return file


def test_the_example_passes_from_its_recordings(desk: Live, tmp_path: Path) -> None:
    junit, results = tmp_path / "junit.xml", tmp_path / "results.json"
    done = run(desk, DESK, "--replay", "--junit", str(junit), "--json", str(results))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == f"skipped {DESK / 'sinas.yaml'}: no scenario, since it has no `turns`\n"
    assert "PASS  Nothing is canceled without approval (replayed" in done.stdout
    assert done.stdout.endswith("4 passed, 0 failed\n")
    suite = ElementTree.parse(junit).getroot()[0]  # noqa: S314 - written by ourselves
    assert (suite.get("tests"), suite.get("failures"), len(suite)) == ("4", "0", 4)
    assert json.loads(results.read_text())["passed"] == 4
    assert titles(desk) == []


def test_a_folder_without_scenarios_says_so(desk: Live, tmp_path: Path) -> None:
    shutil.copy(DESK / "sinas.yaml", tmp_path)
    done = run(desk, tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"no scenario in {tmp_path}")


def test_recording_again_writes_the_same_bytes(desk: Live, tmp_path: Path) -> None:
    shutil.copytree(DESK / "scenarios", tmp_path / "scenarios")
    kept = {file.name: file.read_text() for file in (tmp_path / "scenarios").glob("*.json")}
    assert len(kept) == 4
    done = run(desk, tmp_path / "scenarios", "--record")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name: file.read_text() for file in (tmp_path / "scenarios").glob("*.json")} == kept


def test_what_fails_says_why(desk: Live, tmp_path: Path) -> None:
    expect = {
        "tool_calls": [{"tool": "support/lookup_order", "arguments": {"order_number": "1043"}}],
        "answer": {"contains": "lost", "regex": "^No"},
    }
    file = write(tmp_path, turns=[{"user": "Where is order 1042?", "expect": expect}])
    junit = tmp_path / "junit.xml"
    done = run(desk, file, "--junit", str(junit))
    assert done.returncode == 1
    assert "FAIL  One (live" in done.stdout
    assert 'turn 1: tool call support/lookup_order: arguments.order_number: "1043" → "1042"' in done.stdout
    assert 'turn 1: answer: "lost" is not in "Order 1042' in done.stdout
    assert "turn 1: answer: ^No is not found" in done.stdout
    assert done.stdout.endswith("0 passed, 1 failed\n")
    assert "1043" in junit.read_text()
    assert titles(desk) == []


def test_what_a_scenario_leaves_open_waits(desk: Live, tmp_path: Path) -> None:
    turn = {"user": "Please cancel order 1057", "expect": {"status": "waiting", "max_tool_calls": 1}}
    assert run(desk, write(tmp_path, turns=[turn])).returncode == 0
    decided = {**turn, "approvals": [{"tool": "support/cancel_order", "approve": True}]}
    done = run(desk, write(tmp_path, turns=[decided]))
    assert done.returncode == 1
    assert "status: expected waiting, it is completed" in done.stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--replay",), "has no recording; make one with --record"),
        (("-k", "refund"), "no scenario in"),
        (("--record", "--live"), "exclude each other"),
    ],
)
def test_options_that_cannot_be(desk: Live, tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    done = run(desk, write(tmp_path, turns=[{"user": "Hi"}]), *options)
    assert (done.returncode, reason in done.stderr) == (2, True), done.stderr


def test_mistakes_are_told_before_anything_is_run(desk: Live, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("name: Good\nagent: support/desk\nturns: [{user: Hi}]\n")
    (tmp_path / "bad.yaml").write_text("name: Bad\nagent: support/desk\nturns:\n  - user: Hi\n    expects: {}\n")
    done = run(desk, tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path / 'bad.yaml'}:5: turns[0].expects: is not known\n"
    assert done.stdout == ""


def test_an_agent_that_is_not_there_fails_its_scenario(desk: Live, tmp_path: Path) -> None:
    done = run(desk, write(tmp_path, agent="support/nobody", turns=[{"user": "Hi"}]))
    assert done.returncode == 1
    assert "404" in done.stdout


@contextmanager
def provider() -> Iterator[str]:
    """A fake of OpenAI's server in a process of its own."""
    command = [sys.executable, "-m", "tests.fakes.llm_server"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def test_a_replay_needs_no_provider_and_sees_every_change(desk: Live, tmp_path: Path) -> None:
    calls = [{"name": "support__lookup_order", "arguments": '{"order_number": "1042"}', "id": "call_0"}]
    verdict = '{"passed": true, "reason": "It is brief."}'
    replies = [{"text": "", "tool_calls": calls}, {"text": "It was delivered."}, {"text": verdict}]
    expect = {
        "tool_calls": [{"tool": "support/lookup_order"}],
        "max_tokens": 100,
        "answer": {"exact": "It was delivered.", "judge": {"rubric": "The answer is brief."}},
    }
    file = write(tmp_path, agent="default/asker", turns=[{"user": "Where is order 1042?", "expect": expect}])
    with provider() as address, desk.client() as client:
        body = {"name": "wire", "provider_type": "openai", "api_key": "sk-very-secret", "api_endpoint": address + "/v1"}
        made = client.post("/api/v1/llm-providers", json={**body, "default_model": "fake-large"})
        assert made.status_code == 201, made.text
        agent = {"name": "asker", "llm_provider_id": made.json()["id"], "system_prompt": "Be brief."}
        agent["enabled_functions"] = ["support/lookup_order"]
        assert client.post("/api/v1/agents", json=agent).status_code == 201
        httpx2.post(f"{address}/control/replies", json=replies)
        done = run(desk, file, "--record")
        assert done.returncode == 0, done.stdout + done.stderr
        asked = httpx2.get(f"{address}/control/requests").json()
    assert len(asked) == 3
    kept = file.with_suffix(".recording.json").read_text()
    assert "sk-very-secret" not in kept
    assert run(desk, file).returncode == 0  # nobody listens there any more
    with desk.client() as client:
        assert client.put("/api/v1/agents/default/asker", json={"system_prompt": "Be long."}).status_code == 200
    changed = run(desk, file, "--replay")
    assert changed.returncode == 1
    assert 'messages[0].text: "Be brief." → "Be long."' in changed.stdout
    broken = run(desk, file, "--record")
    assert broken.returncode == 1
    assert "is as it was: a turn did not end as expected" in broken.stdout
    assert file.with_suffix(".recording.json").read_text() == kept


def test_answers_to_the_agents_questions(desk: Live, tmp_path: Path) -> None:
    rules = [
        {"when": {"contains": "go"}, "call": [{"tool": "askUser", "arguments": {"question": "Red or blue?"}}]},
        {"when": {"after_tool": "askUser"}, "answer": "You said {{ results.askUser }}."},
    ]
    with desk.client() as client:
        body = {"name": "asking", "provider_type": "scripted", "config": {"rules": rules}}
        made = client.post("/api/v1/llm-providers", json=body).json()
        agent = {"name": "asking", "llm_provider_id": made["id"], "system_tools": ["askUser"]}
        assert client.post("/api/v1/agents", json=agent).status_code == 201
    expect = {"tool_calls": [{"tool": "askUser"}], "answer": "blue"}
    turns = [{"user": "go", "answers": ["blue"], "expect": expect}]
    done = run(desk, write(tmp_path, agent="default/asking", turns=turns))
    assert done.returncode == 0, done.stdout


def test_ctrl_c_deletes_the_chats(desk: Live, tmp_path: Path) -> None:
    with desk.client() as client:
        config = {"default": "x" * 1000, "chunk_size": 1, "delay_ms": 1000}
        made = client.post(
            "/api/v1/llm-providers", json={"name": "slow", "provider_type": "scripted", "config": config}
        )
        agent = {"name": "slow", "llm_provider_id": made.json()["id"]}
        assert client.post("/api/v1/agents", json=agent).status_code == 201
    file = write(tmp_path, agent="default/slow", turns=[{"user": "go"}])
    command = [str(Path(sys.executable).parent / "sinas"), "agent", "test", str(file)]
    process = subprocess.Popen(command, env={**os.environ, **desk.environment}, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if titles(desk):
            break
        time.sleep(0.1)
    assert titles(desk) == ["Test: One"]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "canceled; the chats are deleted\n")
    assert titles(desk) == []


async def test_a_chat_that_is_just_being_made_when_all_is_canceled_is_deleted_too() -> None:
    asked, answered, seen = asyncio.Event(), asyncio.Event(), list[str]()

    async def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(f"{request.method} {request.url.path}")
        if request.method == "POST":
            asked.set()
            await answered.wait()
        return httpx2.Response(200, json={"id": "made"})

    scenario = Scenario.model_validate({"name": "One", "agent": "shop/desk", "turns": [{"user": "Hi"}]})
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://sinas.test") as http:
        running = asyncio.create_task(_Run(http, Found(Path("one.yaml"), scenario), "live").outcome())
        await asked.wait()
        running.cancel()
        await asyncio.sleep(0)
        answered.set()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert seen == ["POST /agents/shop/desk/test-chats", "DELETE /chats/made"]


def test_the_scenario_on_the_page_is_one(desk: Live, tmp_path: Path) -> None:
    (scenario,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "page.yaml").write_text(scenario)
    done = run(desk, tmp_path)
    assert done.returncode == 1  # its agent is made up, its form is right
    assert "agent 'shop/desk' not found" in done.stdout or "404" in done.stdout


def test_the_commands_on_the_page_do_what_it_says(desk: Live, tmp_path: Path) -> None:
    shutil.copytree(DESK, tmp_path / "examples" / "support-desk")
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    commands = [line.partition("#")[0].split() for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        done = sinas(*command[1:], environment=desk.environment, cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
