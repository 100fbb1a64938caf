"""Fitting a conversation into a model's window."""

import pytest

from sinas_server.backends.llm import (
    AssistantMessage,
    MediaPart,
    Message,
    ModelRequest,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    ToolSpec,
    UserMessage,
)
from sinas_server.chats.window import MEDIA_TOKENS, Window, fitting, tokens_of

TEN = "x" * 40
MADE: dict[str, Message] = {
    "u": UserMessage((TextPart(TEN),)),
    "i": UserMessage((TextPart(TEN),), injected=True),
    "a": AssistantMessage(TEN),
    "c": AssistantMessage("", (ToolCall("1", "look", TEN),)),
    "t": ToolMessage("1", "look", TEN),
}


@pytest.mark.parametrize(
    ("roles", "most", "kept"),
    [
        ("uaua", 40, "uaua"),
        ("uaua", 39, "ua"),
        ("uacttaua", 45, "ua"),
        ("uauctt", 40, "uctt"),
        ("uauctct", 50, "uctct"),
        ("uauctct", 49, "uct"),
        ("uuctctt", 39, "uctt"),
        ("uauctict", 60, "uctict"),
        ("uauctict", 59, "uict"),
        ("uauctict", 1, "uict"),
        ("uaucti", 1, "ucti"),
        ("uauctctia", 59, "uctia"),
        ("u", 1, "u"),
        ("aa", 1, "aa"),
    ],
)
def test_the_newest_exchanges_are_kept_and_no_call_loses_its_results(roles: str, most: int, kept: str) -> None:
    assert fitting([MADE[role] for role in roles], most) == [MADE[role] for role in kept]


def test_media_and_tools_count() -> None:
    image = UserMessage((TextPart(TEN), MediaPart("image", "image/png", blob="0" * 64, size=75_000)))
    assert tokens_of(image) == 10 + MEDIA_TOKENS
    file = UserMessage((MediaPart("file", "text/plain", blob="0" * 64, size=1200),))
    assert tokens_of(file) == 300
    tool = ToolSpec("look", TEN, {"type": "object"})
    bare = ModelRequest(model="m", messages=(SystemMessage(TEN),), max_tokens=100)
    assert Window(1000).room(bare) == 890
    assert Window(1000, ratio=2.0).room(bare) == 440
    assert Window(None).room(bare) is None
    with_tool = Window(1000).room(ModelRequest(model="m", messages=(), tools=(tool,), max_tokens=100))
    assert with_tool is not None
    assert with_tool < 890


def test_older_exchanges_go_many_at_once() -> None:
    talk: list[Message] = []
    begins: list[Message] = []
    for number in range(200):
        talk += [UserMessage((TextPart(f"question {number:031}"),)), AssistantMessage(TEN)]
        kept = fitting(talk, 1000)
        begins.append(kept[0])
        if len(talk) > 100:
            assert 74 <= len(kept) <= 100
    assert begins[:50] == [talk[0]] * 50
    assert len(set(begins)) < 200 / 4
