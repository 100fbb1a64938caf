"""What providers refuse about tools, so that the fake refuses it too: names, ids, and results without their calls.

The sources are the providers' API references and what their servers answer: OpenAI limits names to 64 characters and
ids to 40, Anthropic wants `^[a-zA-Z0-9_-]+$` of both and every id once, Mistral ids of nine letters and digits.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fakes.llm_server import Provider

NAMES: "dict[Provider, str]" = {
    "openai": r"[a-zA-Z0-9_-]{1,64}",
    "anthropic": r"[a-zA-Z0-9_-]{1,128}",
    "mistral": r"[a-zA-Z0-9_-]{1,64}",
    "ollama": r"[^\s]{1,256}",
}
IDS: "dict[Provider, str]" = {
    "openai": r"(?s).{1,40}",
    "anthropic": r"[a-zA-Z0-9_-]+",
    "mistral": r"[a-zA-Z0-9]{9}",
    "ollama": r"(?s).+",
}


def refusal(provider: "Provider", body: dict[str, Any]) -> str | None:
    """Why the provider would answer 400; None if it would not."""
    return next(_faults(provider, body), None)


def _faults(provider: "Provider", body: dict[str, Any]) -> Iterator[str]:
    for tool in body.get("tools") or ():
        name = tool["name"] if provider == "anthropic" else tool["function"]["name"]
        if not re.fullmatch(NAMES[provider], name):
            yield f"tools: the name {name!r} does not match {NAMES[provider]}"
    open_ids: list[str] = []
    seen: set[str] = set()
    for place, message in enumerate(body["messages"]):
        calls, results = _anthropic(message) if provider == "anthropic" else _openai(message)
        for call_id in results:
            if call_id not in open_ids:
                yield f"messages[{place}]: the result of {call_id!r} follows no such call"
            else:
                open_ids.remove(call_id)
        if open_ids and not results:
            yield f"messages[{place}]: no result for the calls {open_ids}"
        for call_id, name in calls:
            if not re.fullmatch(NAMES[provider], name):
                yield f"messages[{place}]: the name {name!r} does not match {NAMES[provider]}"
            if not re.fullmatch(IDS[provider], call_id):
                yield f"messages[{place}]: the id {call_id!r} does not match {IDS[provider]}"
            if call_id in seen:
                yield f"messages[{place}]: the id {call_id!r} is not unique"
            seen.add(call_id)
            open_ids.append(call_id)
    if open_ids:
        yield f"no result for the calls {open_ids}"


def _openai(message: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    calls = [(call["id"], call["function"]["name"]) for call in message.get("tool_calls") or ()]
    return calls, [message["tool_call_id"]] if message["role"] == "tool" else []


def _anthropic(message: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    blocks = message["content"] if isinstance(message["content"], list) else []
    calls = [(block["id"], block["name"]) for block in blocks if block["type"] == "tool_use"]
    return calls, [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
