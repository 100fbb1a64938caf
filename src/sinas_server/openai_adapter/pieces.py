"""What both sides of the adapter yield: groups of pieces of an answer, the last of which is `Final`."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import JsonValue

from sinas_server.backends.llm import Answer, TextDelta, ThinkingDelta, ToolCallDelta
from sinas_server.openai_adapter.errors import ProviderFailedError

NO_END = "the answer has no end"


@dataclass(frozen=True)
class Final:
    """The whole answer, and what only Sinas has to say about it."""

    answer: Answer
    extension: Mapping[str, JsonValue] | None = None


Piece: TypeAlias = TextDelta | ThinkingDelta | ToolCallDelta | Final
Pieces: TypeAlias = AsyncGenerator[list[Piece], None]
"""An empty group is a sign of life."""


async def whole(groups: Pieces) -> Final:
    """The end of an answer, however it came. Raises `SinasError`."""
    final: Final | None = None
    async with aclosing(groups):
        async for group in groups:
            final = next((piece for piece in group if isinstance(piece, Final)), final)
    if final is None:
        raise ProviderFailedError(NO_END)
    return final


async def begun(groups: Pieces) -> Pieces:
    """The same groups once the first is there, so that what fails at once is an ordinary error answer."""
    first = await anext(groups, None)
    if first is None:
        raise ProviderFailedError(NO_END)

    async def all_of_them() -> Pieces:
        async with aclosing(groups):
            yield first
            async for group in groups:
                yield group

    return all_of_them()
