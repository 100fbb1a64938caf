"""Rendering user-written templates: Jinja2 in its immutable sandbox, undefined names are errors, output is capped."""

from collections.abc import Mapping
from functools import lru_cache

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 1 << 20
"""The most characters a template may produce."""
ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)
"""What a template can raise by what it does."""


class TemplateRenderError(ValueError):
    """The template is malformed, uses an undefined name, or does something that is not allowed."""


@lru_cache(maxsize=2)
def _environment(autoescape: bool) -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=autoescape, keep_trailing_newline=True)


@lru_cache(maxsize=512)
def _compiled(source: str, autoescape: bool) -> Template:
    return _environment(autoescape).from_string(source)


def check(source: str) -> None:
    """Accept a template's syntax or raise `TemplateRenderError`."""
    try:
        _compiled(source, autoescape=False)
    except TemplateError as error:
        raise TemplateRenderError(str(error)) from error


def render(source: str, variables: Mapping[str, object], *, autoescape: bool = False) -> str:
    """The template filled with `variables`. Raises `TemplateRenderError`."""
    try:
        pieces: list[str] = []
        size = 0
        for piece in _compiled(source, autoescape).generate(dict(variables)):
            size += len(piece)
            if size > MAX_OUTPUT:
                raise TemplateRenderError(f"the output is longer than {MAX_OUTPUT} characters")
            pieces.append(piece)
        text = "".join(pieces)
        text.encode()  # a literal can hold half a character, which nobody could be sent
        return text
    except ERRORS as error:
        raise TemplateRenderError(str(error) or type(error).__name__) from error
