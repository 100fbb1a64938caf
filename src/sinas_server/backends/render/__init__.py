"""Rendering templates of users where they can do no harm: they are code, and may loop or grow for ever."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue


@dataclass(frozen=True)
class Part:
    """A Jinja2 template."""

    source: str
    html: bool = False
    """Values of variables are escaped."""
    for_mail: bool = False
    """Its style sheets become attributes, since mail programs ignore them; nothing is fetched from anywhere."""


class RenderFailedError(Exception):
    """A part cannot be rendered. `index`: which of them; the message says why."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class RenderStoppedError(RenderFailedError):
    """Rendering took too long, or too much memory, and was stopped."""


class RendererBusyError(Exception):
    """So many templates are being rendered that this one did not get its turn."""


class Renderer(Protocol):
    """Fills templates with variables, within limits of time, memory and output."""

    async def render(self, parts: Sequence[Part], variables: Mapping[str, JsonValue]) -> list[str]:
        """The parts, filled. Raises `RenderFailedError` and `RendererBusyError`."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...
