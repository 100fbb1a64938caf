"""Fitting a conversation into what a model can read at once, where its provider's `config.context_window` tells.

Tokens are guessed from characters, since each model counts by its own rules; a window should be set with that in mind.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import orjson

from sinas_server.backends.llm import MediaPart, Message, ModelRequest, ToolMessage, UserMessage
from sinas_server.providers.admit import EXPECTED_ANSWER, texts_of
from sinas_server.providers.usage import tokens_in

MEDIA_TOKENS = 1500
"""What an image counts for, and anything that is only named by its address."""


def tokens_of(message: Message) -> int:
    """About how many tokens a message takes: a quarter of its characters; files a quarter of their bytes."""
    parts = message.parts if isinstance(message, UserMessage) else ()
    media = sum(_media_tokens(part) for part in parts if isinstance(part, MediaPart))
    return media + sum(map(tokens_in, texts_of(message)))


def _media_tokens(part: MediaPart) -> int:
    if part.kind == "image" or part.data_base64 is None:
        return MEDIA_TOKENS
    return len(part.data_base64) * 3 // 16


def room(request: ModelRequest, window: int) -> int:
    """How many tokens are left for the conversation beside what this request holds already, and the answer."""
    tools = [orjson.dumps([tool.name, tool.description, dict(tool.parameters)]) for tool in request.tools]
    answer = request.max_tokens or EXPECTED_ANSWER
    return window - answer - sum(map(tokens_of, request.messages)) - sum(len(tool) for tool in tools) // 4


def fitting(history: Sequence[Message], most: int) -> list[Message]:
    """The newest exchanges that take at most so many tokens, a call never without its results.

    Where the current exchange alone takes more: what the user said, and the newest steps; at least the last one.
    """
    steps: list[list[Message]] = []
    for message in history:
        if isinstance(message, ToolMessage) and steps:
            steps[-1].append(message)
        else:
            steps.append([message])
    sizes = [sum(map(tokens_of, step)) for step in steps]
    asked = [index for index, step in enumerate(steps) if isinstance(step[0], UserMessage)]
    if not asked:
        return list(history)
    for start in asked:
        if sum(sizes[start:]) <= most:
            return _joined(steps[start:])
    last = asked[-1]
    for start in range(last + 1, len(steps)):
        if sizes[last] + sum(sizes[start:]) <= most:
            return _joined([steps[last], *steps[start:]])
    return _joined([steps[last], *steps[last + 1 :][-1:]])


def _joined(steps: Iterable[Sequence[Message]]) -> list[Message]:
    return list(chain.from_iterable(steps))
