"""Fitting a conversation into what a model can read at once, where its provider's `config.context_window` tells.

Tokens are guessed from characters, since each model counts by its own rules and few tell them. The guess is corrected
by what the model itself counted for the chat's last request: the ratio of the two is kept with the chat.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from zlib import crc32

import orjson
from pydantic import JsonValue

from sinas_server.backends.llm import MediaPart, Message, ModelRequest, ToolMessage, UserMessage
from sinas_server.providers.admit import EXPECTED_ANSWER, texts_of
from sinas_server.providers.resolve import Resolved
from sinas_server.providers.usage import ModelCall, tokens_in

MEDIA_TOKENS = 1500
"""What an image counts for, and anything that is only named by its address."""
RATIOS = (0.25, 8.0)
"""The least and the most that is believed of how many tokens a model counts for each that is guessed."""


def tokens_of(message: Message) -> int:
    """About how many tokens a message takes: a quarter of its characters; files a quarter of their bytes."""
    parts = message.parts if isinstance(message, UserMessage) else ()
    media = sum(_media_tokens(part) for part in parts if isinstance(part, MediaPart))
    return media + sum(map(tokens_in, texts_of(message)))


def _media_tokens(part: MediaPart) -> int:
    if part.kind == "image" or part.url is not None:
        return MEDIA_TOKENS
    return part.size // 4


def guessed(request: ModelRequest) -> int:
    """About how many tokens a request takes, its tools included."""
    tools = [orjson.dumps([tool.name, tool.description, dict(tool.parameters)]) for tool in request.tools]
    return sum(map(tokens_of, request.messages)) + sum(len(tool) for tool in tools) // 4


def counted(call: ModelCall | None) -> dict[str, JsonValue]:
    """By the name of a model, how many tokens it counted for each that was guessed; empty if a call does not tell."""
    if call is None or call.failed or call.estimated or not call.guessed or not call.usage.prompt_tokens:
        return {}
    least, most = RATIOS
    return {_name(call.provider): min(max(call.usage.prompt_tokens / call.guessed, least), most)}


def _name(provider: Resolved) -> str:
    return f"{provider.name}/{provider.model}"


@dataclass(frozen=True)
class Window:
    """How many tokens a model reads at once; None where nobody says. `ratio`: how many it counts for one guessed."""

    tokens: int | None
    ratio: float = 1.0

    @classmethod
    def of(cls, provider: Resolved, known: Mapping[str, JsonValue]) -> "Window":
        """That of a provider's model. `known`: what `counted` gave before."""
        ratio = known.get(_name(provider))
        return cls(provider.context_window, ratio if isinstance(ratio, float) else 1.0)

    def room(self, request: ModelRequest) -> int | None:
        """How many guessed tokens are left beside what this request holds already, and the answer; None: no limit."""
        if self.tokens is None:
            return None
        return int((self.tokens - (request.max_tokens or EXPECTED_ANSWER)) / self.ratio) - guessed(request)


def fitting(history: Sequence[Message], most: int) -> list[Message]:
    """The newest exchanges that take at most so many tokens, a call never without its results.

    Where the current exchange alone takes more: all that the user said, and the newest steps; at least the last one.
    """
    steps: list[list[Message]] = []
    for message in history:
        if isinstance(message, ToolMessage) and steps:
            steps[-1].append(message)
        else:
            steps.append([message])
    sizes = [sum(map(tokens_of, step)) for step in steps]
    asked = [index for index, step in enumerate(steps) if isinstance(step[0], UserMessage) and not step[0].injected]
    if not asked:
        return list(history)
    starts = [start for start in asked if sum(sizes[start:]) <= most]
    if starts:
        near = [start for start in starts[:-1] if sum(sizes[start:]) > most * 3 // 4] if starts != asked else []
        return _joined(steps[min(near, key=lambda start: _mark(steps[start][0]), default=starts[0]) :])
    own = steps[asked[-1] :]
    last = max((index for index, step in enumerate(own) if not isinstance(step[0], UserMessage)), default=0)
    kept, size = list[list[Message]](), sum(sizes[asked[-1] :])
    for index, step in enumerate(own):
        if size <= most or index == last or isinstance(step[0], UserMessage):
            kept.append(step)
        else:
            size -= sizes[asked[-1] + index]
    return _joined(kept)


def _mark(message: Message) -> int:
    """By which the first to stay is chosen: see `history`."""
    return crc32("\n".join(texts_of(message)).encode())


def _joined(steps: Iterable[Sequence[Message]]) -> list[Message]:
    return list(chain.from_iterable(steps))
