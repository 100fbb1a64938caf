"""Filling templates that users wrote, without ever waiting for one that does not end."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from sinas_server.backends.render import Part, RendererBusyError, RenderFailedError, RenderStoppedError
from sinas_server.kernel.errors import UnavailableError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.jinja import TemplateRenderError, TemplateStoppedError
from sinas_server.kit.parameters import Fixed, fixed, sources


async def fill(runtime: Runtime, templates: Sequence[str], variables: Mapping[str, JsonValue]) -> list[str]:
    """Jinja2 templates, filled. Raises `TemplateRenderError` (`TemplateStoppedError`), `UnavailableError`."""
    try:
        return await runtime.renderer.render([Part(source) for source in templates], variables)
    except RenderStoppedError as error:
        raise TemplateStoppedError(str(error)) from error
    except RenderFailedError as error:
        raise TemplateRenderError(str(error)) from error
    except RendererBusyError as error:
        raise UnavailableError(str(error), {"Retry-After": "5"}) from error


async def fixed_values(
    runtime: Runtime,
    declared: Mapping[str, JsonValue],
    schema: Mapping[str, JsonValue],
    variables: Mapping[str, JsonValue],
) -> Fixed:
    """What is fixed about a tool's arguments: see `kit.parameters.fixed`. Raises what `fill` raises."""
    found = sources(declared)
    texts = await fill(runtime, found, variables) if found else []
    return fixed(declared, schema, dict(zip(found, texts, strict=True)))
