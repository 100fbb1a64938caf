"""Filling a template with variables."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from sinas_server.backends.render import Part, Renderer, RendererBusyError, RenderFailedError
from sinas_server.kernel.errors import BadRequestError, InvalidError, UnavailableError
from sinas_server.kernel.store import Resource
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


async def render(
    renderer: Renderer, template: Resource[TemplateSpec], variables: Variables, *, for_mail: bool = False
) -> Rendered:
    """The document. Raises `InvalidError` for variables that break the schema, `RenderError`, `UnavailableError`."""
    spec = template.spec
    wrong = violations(spec.variable_schema, dict(variables))
    if wrong:
        raise InvalidError([(("body", "variables", *found.path), found.message) for found in wrong])
    sources = {"html_content": spec.html_content, "title": spec.title, "text_content": spec.text_content}
    parts = {name: Part(source) for name, source in sources.items() if source is not None}
    parts["html_content"] = Part(spec.html_content, html=True, for_mail=for_mail)
    try:
        done = dict(zip(parts, await renderer.render(list(parts.values()), variables), strict=True))
    except RenderFailedError as error:
        raise RenderError(f"{list(parts)[error.index]} cannot be rendered: {error}") from error
    except RendererBusyError as error:
        raise UnavailableError(str(error), {"Retry-After": "5"}) from error
    return Rendered(done.get("title"), done["html_content"], done.get("text_content"))
