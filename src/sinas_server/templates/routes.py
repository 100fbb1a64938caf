"""Templates over HTTP: declaring, rendering and sending them, by name and by id."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import AfterValidator, BaseModel, EmailStr, Field, JsonValue

from sinas_server.identity.mail import post
from sinas_server.kernel import lookup, store
from sinas_server.kernel.errors import UnavailableError
from sinas_server.kernel.http import CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.routes import Models, answer, by_id_router, crud_router, id_of, runtime_list_router, where_of
from sinas_server.templates.kind import TEMPLATE
from sinas_server.templates.mail import write_mail
from sinas_server.templates.render import render

MODELS = Models(TEMPLATE)


def _one_line(value: str | None) -> str | None:
    if value is not None and not value.isprintable():
        raise ValueError("must be a single line without control characters")
    return value


class TemplateRenderRequest(BaseModel):
    """What to fill a template with."""

    variables: dict[str, JsonValue] = Field(default={}, description="Variable → value.")


class TemplateRenderResponse(BaseModel):
    """A rendered template."""

    title: str | None = Field(description="Its title, if it has one.")
    html_content: str = Field(description="The document in HTML.")
    text_content: str | None = Field(description="The document as plain text, if the template has one.")


class TemplateEmailRequest(BaseModel):
    """To whom to send a template, and what to fill it with."""

    to: EmailStr = Field(max_length=320, description="Who gets the mail.")
    from_alias: str | None = Field(
        None,
        max_length=64,
        pattern=r"^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*$",
        description="The part before the @ of the sender's address; its domain is the platform's. Default: `noreply`.",
    )
    from_name: Annotated[str | None, AfterValidator(_one_line)] = Field(
        None, max_length=255, description="The sender's name."
    )
    variables: dict[str, JsonValue] = Field(default={}, description="Variable → value.")


class TemplateEmailResponse(BaseModel):
    """A mail that is on its way."""

    message: str = Field(description="What happens now, for people.")
    to: str = Field(description="Who gets the mail.")


Where = Callable[..., Awaitable[tuple[str, str]]]
BY_NAME: Where = where_of(TEMPLATE)
BY_ID: Where = id_of(TEMPLATE)
MISSING: dict[int | str, dict[str, object]] = {404: {"description": "No such template."}}
UNUSABLE: dict[int | str, dict[str, object]] = {
    400: {"description": "The template fails with these variables; the reason names the part and the variable."},
    404: {"description": "No such template, or it is not active."},
}
NO_MAIL: dict[int | str, dict[str, object]] = {503: {"description": "This installation has no mail server."}}


def _add_render(router: APIRouter, path: str, where: Where, name: str) -> None:
    async def render_template(
        at: Annotated[tuple[str, str], Depends(where)],
        body: TemplateRenderRequest,
        runtime: Run,
        caller: CurrentCaller,
    ) -> Response:
        """Variables that break the template's `variable_schema` are a 422 with the path of each."""
        template = await lookup.use(runtime.database, caller, TEMPLATE, at, "render")
        made = await render(runtime.renderer, template, body.variables)
        return JsonAnswer({"title": made.title, "html_content": made.html, "text_content": made.text})

    router.add_api_route(
        path,
        render_template,
        methods=["POST"],
        name=name,
        response_model=TemplateRenderResponse,
        summary="Render a template",
        responses=UNUSABLE,
    )


def _add_send(router: APIRouter, path: str, where: Where, name: str) -> None:
    async def send_template(
        at: Annotated[tuple[str, str], Depends(where)],
        body: TemplateEmailRequest,
        runtime: Run,
        db: CurrentDb,
        caller: CurrentCaller,
    ) -> Response:
        """It is rendered at once; the mail leaves a moment later, and is tried again if the mail server is away."""
        template = await lookup.use(runtime.database, caller, TEMPLATE, at, "send")
        if not runtime.settings.has_mail:
            raise UnavailableError("there is no mail server here; set SMTP_HOST")
        mail = await write_mail(runtime, template, body.variables, body.to, template.name)
        await post(db, runtime, replace(mail, from_name=body.from_name, from_alias=body.from_alias))
        return JsonAnswer({"message": "The mail is on its way", "to": body.to})

    router.add_api_route(
        path,
        send_template,
        methods=["POST"],
        name=name,
        response_model=TemplateEmailResponse,
        summary="Render a template and send it as mail",
        responses=UNUSABLE | NO_MAIL,
    )


def _runtime_router() -> APIRouter:
    router = new_router("/templates", "templates")
    _add_render(router, "/{namespace}/{name}/render", BY_NAME, "render")
    _add_render(router, "/{template_id}/render", BY_ID, "render_by_id")
    _add_send(router, "/{namespace}/{name}/email", BY_NAME, "email")
    _add_send(router, "/{namespace}/{name}/send", BY_NAME, "send")
    _add_send(router, "/{template_id}/send", BY_ID, "send_by_id")
    return router


def _management_router() -> APIRouter:
    router = by_id_router(TEMPLATE)

    @router.get(
        "/by-name/{namespace}/{name}", response_model=MODELS.read, summary="Get a template by name", responses=MISSING
    )
    async def get_by_name(
        at: Annotated[tuple[str, str], Depends(BY_NAME)], db: CurrentDb, caller: CurrentCaller
    ) -> Response:
        return answer(TEMPLATE, await store.read(db, caller, TEMPLATE, *at))

    _add_render(router, "/{template_id}/render", BY_ID, "render_by_id")
    return router


RUNTIME_ROUTERS = (_runtime_router(), runtime_list_router(TEMPLATE))
"""At the root."""

MANAGEMENT_ROUTERS = (_management_router(), crud_router(TEMPLATE))
"""Below `/api/v1`."""
