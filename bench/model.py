"""A fake model without latency, and an agent of the stack that asks it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

from bench.client import Client, environment, request
from bench.stack import ROOT, Stack, line_of, started

CHUNKS = 20
WORDS = [f"word{index:02} " for index in range(CHUNKS)]
TEXT = "".join(WORDS)
MODEL = "fake-large"
QUESTION = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}


class _Config(TypedDict):
    provider_type: Literal["openai"]
    api_key: str


CONFIG: _Config = {"provider_type": "openai", "api_key": "none"}


@dataclass(frozen=True)
class Model:
    """The fake, and the id of the stack's provider that leads to it."""

    client: Client
    port: int
    provider: str = ""

    @property
    def endpoint(self) -> str:
        """Where its API is."""
        return f"http://127.0.0.1:{self.port}/v1"

    def tell(self, method: str, what: str, body: object = None) -> None:
        """Change what it answers."""
        self.client.ask(self.port, [request(method, f"/control/{what}", body=body)], "ok", 1)


@contextmanager
def model(stack: Stack, client: Client, provider: str) -> Iterator[Model]:
    """Starts the fake; it answers `TEXT` in pieces. Declares a provider of this name."""
    with started(["tests.fakes.llm_server"], environment(PYTHONPATH=str(ROOT))) as fake:
        found = Model(client, int(line_of(fake.stdout).rpartition(":")[2]))
        found.tell("PUT", "default", {"text": TEXT, "chunks": CHUNKS, "times": None})
        declared = {"name": provider, **CONFIG, "api_endpoint": found.endpoint, "default_model": MODEL}
        known = stack.call("POST", "/api/v1/llm-providers", declared)
        yield replace(found, provider=str(known["id"]))


def declare_agent(stack: Stack, name: str, asks: Model, **fields: object) -> None:
    """An agent that asks a model."""
    stack.call(
        "POST", "/api/v1/agents", {"namespace": "bench", "name": name, "llm_provider_id": asks.provider, **fields}
    )


def begin_chats(stack: Stack, agent: str, count: int) -> Sequence[str]:
    """So many new chats with an agent, so that turns do not get longer as more of them are measured."""
    return [str(stack.call("POST", f"/agents/bench/{agent}/chats", {})["id"]) for _ in range(count)]


def turns(stack: Stack, agent: str, count: int, said: str = "Hello") -> list[bytes]:
    """Requests that each begin a turn in a chat of its own."""
    chats = begin_chats(stack, agent, count)
    return [request("POST", f"/chats/{chat}/messages/stream", stack.headers, {"content": said}) for chat in chats]
