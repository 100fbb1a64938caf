"""Filling a template with variables."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from sinas_server.kernel.errors import BadRequestError, InvalidError
from sinas_server.kernel.store import Resource
from sinas_server.kit import jinja
from sinas_server.kit.schema import violations
from sinas_server.templates.kind import TemplateSpec

Variables = Mapping[str, JsonValue]


class RenderError(BadRequestError):
    """The template cannot be rendered with these variables; the message says which part, and why."""

    code = "render_error"


@dataclass(frozen=True)
class Rendered:
    """A document, ready to be shown."""

    title: str | None
    html: str
    text: str | None


def render(template: Resource[TemplateSpec], variables: Variables) -> Rendered:
    """The document. Raises `InvalidError` for variables that break the schema, and `RenderError`."""
    spec = template.spec
    wrong = violations(spec.variable_schema, dict(variables))
    if wrong:
        raise InvalidError([(("body", "variables", *found.path), found.message) for found in wrong])
    return Rendered(
        title=_optional("title", spec.title, variables),
        html=_part("html_content", spec.html_content, variables, autoescape=True),
        text=_optional("text_content", spec.text_content, variables),
    )


def _optional(name: str, source: str | None, variables: Variables) -> str | None:
    return None if source is None else _part(name, source, variables, autoescape=False)


def _part(name: str, source: str, variables: Variables, *, autoescape: bool) -> str:
    try:
        return jinja.render(source, variables, autoescape=autoescape)
    except jinja.TemplateRenderError as error:
        raise RenderError(f"{name} cannot be rendered: {error}") from error
