"""The HTTP applications: the runtime API at the root, the management API and the OpenAI adapter below it."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from urllib.parse import parse_qsl

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sinas_server.catalog import ADAPTER_ROUTERS, MANAGEMENT_ROUTERS, RUNTIME_ROUTERS
from sinas_server.kernel.errors import UnavailableError
from sinas_server.kernel.http import (
    Form,
    JsonAnswer,
    Problem,
    Run,
    Unexpected,
    detail_form,
    install_error_handlers,
    new_router,
)
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.security_schemes import describe_credentials, mark_protected
from sinas_server.openai_adapter.errors import openai_form
from sinas_server.settings import Settings

VERSION = version("sinas-server")
MAX_BODY_BYTES = 32 << 20
TOO_LARGE = f"the body is larger than {MAX_BODY_BYTES >> 20} MB"
MANAGEMENT_PATH = "/api/v1"
ADAPTER_PATH = "/adapters/openai"
ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}
ALLOWED_HEADERS = [
    "Authorization",
    "Content-Type",
    "X-API-Key",
    "X-Application",
    "X-Chat-ID",
    "If-Match",
    "X-Trigger",
    "Idempotency-Key",
]
EXPOSED_HEADERS = [
    "X-Next-Cursor",
    "X-Truncated",
    "X-Chat-ID",
    "X-Channel-ID",
    "X-Message-Status",
    "ETag",
    "Retry-After",
]

OpenRuntime = Callable[[], AbstractAsyncContextManager[Runtime]]


def refusal(scope: Scope, problem: Problem) -> Response:
    """A request refused before it is routed, in the form of whatever it was for."""
    return (openai_form if scope["path"].startswith(f"{ADAPTER_PATH}/") else detail_form)(problem)


class CleanPath:
    """Both forms of a path, with and without a trailing slash, without redirects; NUL is refused before routing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            path = scope["path"]
            query = scope.get("query_string", b"").decode("latin-1")
            if "\x00" in path or "%00" in query:
                places = [["path"]] if "\x00" in path else [["query", name] for name in _with_nul(query)]
                told = {"msg": "NUL characters are not allowed", "type": "value_error"}
                detail = [{"loc": place, **told} for place in places]
                problem = Problem(422, {"detail": detail, "code": "invalid"})
                await refusal(scope, problem)(scope, receive, send)
                return
            if len(path) > 1 and path.endswith("/"):
                scope = {**scope, "path": path.rstrip("/") or "/"}
        await self._app(scope, receive, send)


def _with_nul(query: str) -> list[str]:
    """The parameters of a query string that hold a NUL character; there is one, or the string itself is at fault."""
    pairs = parse_qsl(query, keep_blank_values=True)
    return [name.replace("\x00", "") for name, value in pairs if "\x00" in name + value] or [""]


class BodyLimit:
    """Refuses bodies that say to be too large, or turn out to be, and those that are compressed.

    FastAPI's own limit does not answer in JSON.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            told = {"detail": f"Send the body as it is, not with Content-Encoding: {encoding}", "code": "encoded"}
            await refusal(scope, Problem(415, told, {"Accept-Encoding": "identity"}))(scope, receive, send)
            return
        said = headers.get("content-length", "0")
        if len(said) > 18 or (said.isdecimal() and int(said) > MAX_BODY_BYTES):
            problem = Problem(413, {"detail": TOO_LARGE, "code": "too_large"})
            await refusal(scope, problem)(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                raise HTTPException(413, TOO_LARGE)
            return message

        await self._app(scope, counted, send)


class SecurityHeaders:
    """The headers that every answer carries."""

    def __init__(self, app: ASGIApp, https: bool) -> None:
        self._app = app
        self._headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"strict-origin-when-cross-origin"),
            (b"x-frame-options", b"DENY"),
        ]
        if https:
            self._headers.append((b"strict-transport-security", b"max-age=31536000; includeSubDomains"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class Health(BaseModel):
    """Whether this process can serve."""

    status: str = Field(description="`healthy`.")


def _health_router() -> APIRouter:
    router = new_router("", "health")

    @router.get("/health", response_model=Health, summary="Whether the API can serve")
    async def health(runtime: Run) -> Response:
        try:
            await runtime.database.read(text("SELECT 1"))
        except SQLAlchemyError as error:
            raise UnavailableError("the database does not answer", {"Retry-After": "1"}) from error
        return JsonAnswer({"status": "healthy"})

    return router


def _add_docs(app: FastAPI, title: str, prefix: str) -> None:
    """Swagger UI from our own files, so that it works offline."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=f"{prefix}/openapi.json",
            title=title,
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon-32x32.png",
        )


def _add_assets(app: FastAPI) -> None:
    folder = files("fastapi_swagger") / "resources"

    @app.get("/docs/assets/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            return JsonAnswer({"detail": "Not Found"}, 404)
        content = (folder / name).read_bytes()
        return Response(content, media_type=ASSETS[name], headers={"Cache-Control": "public, max-age=86400"})


def _middleware(settings: Settings) -> list[Middleware]:
    origins = list(settings.cors_origins)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins or ["*"],
        allow_credentials=bool(origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
        allow_headers=ALLOWED_HEADERS,
        expose_headers=EXPOSED_HEADERS,
        max_age=86400,
    )
    return [
        Middleware(SecurityHeaders, https=settings.domain is not None),
        cors,
        Middleware(Unexpected),
        Middleware(BodyLimit),
        Middleware(CleanPath),
    ]


def _api(
    title: str,
    description: str,
    routers: Sequence[APIRouter],
    prefix: str = "",
    form: Form = detail_form,
    mounts: Mapping[str, FastAPI] | None = None,
) -> FastAPI:
    app = FastAPI(
        title=title,
        description=description,
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,
        servers=[{"url": prefix or "/"}],
    )
    install_error_handlers(app, form)
    for path, mounted in (mounts or {}).items():  # before the routers, whose every route would be tried first
        app.mount(path, mounted)
    for router in routers:
        mark_protected(router)
        app.include_router(router)
    describe_credentials(app)
    _add_docs(app, title, prefix)
    return app


def create_app(settings: Settings, open_runtime: OpenRuntime) -> FastAPI:
    """The whole HTTP application; `open_runtime` is entered when the server starts."""
    management = _api(
        "Sinas management API",
        "Everything that is declared: agents, functions, providers, roles, users, configuration.",
        MANAGEMENT_ROUTERS,
        MANAGEMENT_PATH,
    )
    adapter = _api(
        "Sinas OpenAI adapter",
        "Agents and models behind the API of OpenAI: point its SDKs here.",
        ADAPTER_ROUTERS,
        ADAPTER_PATH,
        openai_form,
    )
    runtime_api = _api(
        "Sinas runtime API",
        "What applications and their users call: login, chats, executions.",
        (_health_router(), *RUNTIME_ROUTERS),
        mounts={MANAGEMENT_PATH: management, ADAPTER_PATH: adapter},
    )
    _add_assets(runtime_api)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_runtime() as runtime:
            for part in (runtime_api, management, adapter):
                part.state.runtime = runtime
            yield

    runtime_api.router.lifespan_context = lifespan
    runtime_api.user_middleware.extend(_middleware(settings))
    return runtime_api
