"""One stack for all fault tests of a session, with functions that report each run from inside."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import pytest

from tests.faults.harness import Stack
from tests.faults.invariants import Invariants

CODE = """
import os, socket, time

def mark(what):
    host, _, port = os.environ["SINAS_URL"].removeprefix("http://").partition(":")
    for _ in range(500):
        try:
            with socket.create_connection((host, int(port)), 5) as client:
                client.sendall(f"GET /health?mark={what} HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n".encode())
                if b" 200 " in client.recv(100):
                    return
        except OSError:
            pass
        time.sleep(0.02)
    raise RuntimeError("nobody heard " + what)

def handler(input_data, context):
    run = f"{context['execution_id']}.{os.urandom(4).hex()}"
    mark("began." + run)
    time.sleep(input_data.get("seconds", 0))
    mark("ended." + run)
    if input_data.get("raises"):
        raise ValueError("as asked")
    if "message" in input_data:
        return {"content": input_data["message"]["content"] + " Seen."}
    return {"run": run}
"""
ASKING_CODE = (
    CODE.partition("def handler")[0]
    + """
def handler(input_data, context):
    run = f"{context['execution_id']}.{os.urandom(4).hex()}"
    mark("began." + run)
    colour = input("Which colour?")
    number = input(f"How many of {colour}?")
    mark("ended." + run)
    return f"{number} {colour}"
"""
)
RULES: list[dict[str, object]] = [
    {
        "when": {"contains": "go"},
        "answer": "Looking at both.",
        "call": [{"tool": "t/once", "arguments": {}}, {"tool": "t/again", "arguments": {}}],
    },
    {
        "when": {"after_tool": "t/again"},
        "answer": "They say {{ results['t/once'] is mapping }}, {{ results['t/again'] is mapping }}.",
    },
]
DICE = [{"answer": "I rolled" + " {{ range(100000) | random }}" * 5}]
"""A model that never says the same again."""
CALL = "call_agent_t__called"
BOSS: list[dict[str, object]] = [
    {"when": {"contains": "go"}, "answer": "I ask.", "call": [{"tool": CALL, "arguments": {"message": "roll"}}]},
    {"when": {"after_tool": CALL}, "answer": f"It said: {{{{ results['{CALL}'].response }}}}"},
]
"""A model that has the one above work for it."""
BUSY: list[dict[str, object]] = [
    RULES[0],
    {"when": {"contains": "fail", "after_tool": "t/again"}, "answer": "{{ results['t/once'].nothing.more }}"},
    RULES[1],
    {"when": {"contains": "second"}, "answer": "The second answer."},
    {"when": {"contains": "third"}, "answer": "The third answer."},
]
"""A model that is told more while it works, and fails where it is asked to."""
QUESTION = {"tool": "askUser", "arguments": {"question": "Which?"}}
ASKS: list[dict[str, object]] = [
    {
        "when": {"contains": "go"},
        "answer": "I ask first.",
        "call": [{"tool": "t/once", "arguments": {}}, QUESTION, {"tool": "t/again", "arguments": {}}],
    },
    {"when": {"contains": "careful"}, "answer": "May I?", "call": [{"tool": "t/once", "arguments": {}}]},
    {"when": {"after_tool": "askUser"}, "answer": "You say {{ results.askUser }}, {{ results['t/once'] is mapping }}."},
    {"when": {"after_tool": "t/once"}, "answer": "It says {{ results['t/once'] is mapping }}."},
    {"when": {"contains": "instead"}, "answer": "Something else, then."},
]
"""A model whose calls need the user."""
CHIEF_CALL = "call_agent_t__asks"
CHIEF: list[dict[str, object]] = [
    {
        "when": {"contains": "go"},
        "answer": "I ask.",
        "call": [{"tool": CHIEF_CALL, "arguments": {"message": "careful"}}],
    },
    {"when": {"after_tool": CHIEF_CALL}, "answer": f"It said: {{{{ results['{CHIEF_CALL}'].response }}}}"},
]
"""A model that has the one above work for it."""
PROMPTED: list[dict[str, object]] = [
    {"when": {"contains": "go"}, "answer": "It may ask.", "call": [{"tool": "t/prompts", "arguments": {}}]},
    {"when": {"after_tool": "t/prompts"}, "answer": "It says: {{ results['t/prompts'] }}"},
]
"""A model whose function asks the user twice."""
RECALLS: list[dict[str, object]] = [{"when": {"contains": "The messages:"}, "answer": "Six questions."}]
"""A model that is asked for summaries too."""
ANY: dict[str, object] = {"input_schema": {}, "output_schema": {}}
FUNCTIONS = {"once": False, "again": True}
"""Name → whether it is idempotent."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many executions `test_kills.py` has run; known when these tests are asked for by their path."""
    parser.addoption("--executions", type=int, default=300, help="executions through kills of workers at random")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


async def add_agent(
    stack: Stack,
    name: str,
    rules: Sequence[Mapping[str, object]],
    functions: Sequence[str],
    *agents: str,
    **more: object,
) -> None:
    """An agent `t/NAME` whose model follows these rules."""
    config = {"rules": rules, "chunk_size": 8, "delay_ms": 5}
    provider = {"name": name, "provider_type": "scripted", "config": config}
    made = await stack.ask("POST", "/api/v1/llm-providers", provider)
    agent = {
        "namespace": "t",
        "name": name,
        "llm_provider_id": made["id"],
        "enabled_functions": functions,
        "enabled_agents": agents,
        **more,
    }
    await stack.ask("POST", "/api/v1/agents", agent)


@pytest.fixture(scope="session")
async def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("faults"))
    try:
        await stack.start()
        for name, idempotent in FUNCTIONS.items():
            body = {"namespace": "t", "name": name, "code": CODE, "idempotent": idempotent}
            await stack.ask("POST", "/api/v1/functions", {**body, **ANY})
        code = "def handler(input_data, context):\n    return input_data\n"
        await stack.ask("POST", "/api/v1/functions", {"namespace": "t", "name": "echo", "code": code, **ANY})
        trusted = {"namespace": "t", "name": "prompts", "code": ASKING_CODE, "shared_pool": True}
        await stack.ask("POST", "/api/v1/functions", {**trusted, **ANY})
        await add_agent(stack, "agent", RULES, [f"t/{name}" for name in FUNCTIONS])
        await add_agent(stack, "dice", DICE, [])
        await add_agent(stack, "called", DICE, [])
        await add_agent(stack, "boss", BOSS, [], "t/called")
        await add_agent(stack, "busy", BUSY, [f"t/{name}" for name in FUNCTIONS])
        once, tools = {"t/once": "ask"}, ["askUser"]
        every = [f"t/{name}" for name in FUNCTIONS]
        await add_agent(stack, "asks", ASKS, every, approval_policy=once, system_tools=tools)
        await add_agent(stack, "chief", CHIEF, [], "t/asks")
        await add_agent(stack, "prompted", PROMPTED, ["t/prompts"])
        seen: dict[str, object] = {"function": "t/again", "on_timeout": "block", "timeout_seconds": 60}
        await add_agent(stack, "seen", DICE, [], hooks={"on_user_message": [seen], "on_assistant_message": [seen]})
        await add_agent(stack, "recalls", RECALLS, [], history_summary={})
        yield stack
    finally:
        stack.stop()


@pytest.fixture
async def stack(shared_stack: Stack) -> Stack:
    """The stack, whole, at rest and without a plan."""
    await shared_stack.forget()
    if shared_stack.has_ended():  # a test that failed has not started it again
        await shared_stack.start()
    await shared_stack.whole()
    await shared_stack.rest()
    return shared_stack


@pytest.fixture
def invariants(stack: Stack) -> Iterator[Invariants]:
    """What must hold after each case; checked at its end."""
    made = Invariants(stack)
    yield made
    made.check()
