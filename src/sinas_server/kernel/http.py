"""The HTTP edge that every router shares: strict JSON bodies, what a handler may ask for, and rendering errors."""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from json import JSONDecodeError
from typing import Annotated, Any, cast

import orjson
import structlog
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sinas_server.backends.db import is_orphan, is_passing
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, SinasError, UnavailableError
from sinas_server.kernel.runtime import Credentials, Runtime
from sinas_server.kernel.unit import Db
from sinas_server.kit.json import BadJsonError, parse
from sinas_server.kit.places import place_in

log = structlog.get_logger()
MAX_INT = 2**31 - 1
"""The largest number a paging parameter may have: PostgreSQL's integer."""


class StrictRequest(Request):
    """A request whose JSON body can be stored: no NaN, no lone surrogates, no NUL."""

    async def json(self) -> Any:
        """The parsed body. Raises JSONDecodeError, which FastAPI renders as 422."""
        body = await self.body()
        try:
            return parse(body)
        except BadJsonError as error:
            raise JSONDecodeError(str(error), body.decode(errors="replace")[:200], 0) from error


class StrictRoute(APIRoute):
    """A route that reads its body through `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler around a stricter request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def new_router(prefix: str, tag: str) -> APIRouter:
    """A router whose bodies are strict and whose operation ids are `<tag>_<function>`."""
    return APIRouter(
        prefix=prefix,
        tags=[tag],
        route_class=StrictRoute,
        generate_unique_id_function=lambda route: f"{tag}_{route.name}".replace("-", "_"),
    )


def _runtime(request: Request) -> Runtime:
    return cast(Runtime, request.app.state.runtime)


async def get_runtime(request: Request) -> Runtime:
    """The process's runtime. Like every dependency it is `async`: FastAPI runs others in threads."""
    return _runtime(request)


async def get_db(request: Request) -> AsyncIterator[Db]:
    """One transaction for the request, committed before the first byte of the answer."""
    async with _runtime(request).database.unit() as db:
        yield db


def credentials(request: Request) -> Credentials:
    """The credentials a request carries in either header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" and token.strip() else None
    return Credentials(bearer, request.headers.get("x-api-key") or None)


async def get_caller(request: Request) -> Caller:
    """Who is calling. Raises `UnauthorizedError`."""
    runtime = _runtime(request)
    caller = await runtime.authenticate(runtime, credentials(request))
    request.scope["sinas_caller"] = caller
    return caller


Run = Annotated[Runtime, Depends(get_runtime)]
CurrentDb = Annotated[Db, Depends(get_db, scope="function")]
CurrentCaller = Annotated[Caller, Depends(get_caller)]


class JsonAnswer(Response):
    """JSON written with orjson, for answers that are built as plain data."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """The bytes of the answer."""
        return orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)


@dataclass(frozen=True)
class Problem:
    """An error as it is to be sent, before it is given a form."""

    status: int
    body: Mapping[str, Any]
    """`detail` (a text, or FastAPI's list of `{loc, msg, type}`) and mostly `code`."""
    headers: Mapping[str, str] = field(default_factory=dict)


Form = Callable[[Problem], Response]


def detail_form(problem: Problem) -> Response:
    """Our own form: `{"detail": ..., "code": ...}`."""
    return JsonAnswer(problem.body, problem.status, headers=dict(problem.headers))


def _sinas_error(request: Request, error: Exception) -> Problem:
    known = cast(SinasError, error)
    return Problem(known.status, known.body(), known.headers)


def _invalid(request: Request, error: Exception) -> Problem:
    known = cast(RequestValidationError, error)
    detail = [{"loc": _place(p, known.body), "msg": _message(request, p), "type": p["type"]} for p in known.errors()]
    return Problem(422, {"detail": detail, "code": "invalid"})


def _place(problem: dict[str, Any], body: object) -> list[str | int]:
    where, *inside = problem["loc"]
    if where != "body" or not isinstance(body, (dict, list)):
        return [where, *inside]
    return [where, *place_in(body, inside, missing=problem["type"] == "missing")]


def _message(request: Request, problem: dict[str, Any]) -> str:
    if problem["loc"] == ("body",) and isinstance(problem.get("input"), bytes):  # FastAPI parses no other type
        sent_as = request.headers.get("content-type")
        return f"The body must be JSON, sent with Content-Type: application/json instead of {sent_as}"
    reason = problem.get("ctx", {}).get("error") if problem["type"] == "json_invalid" else None
    return f"{problem['msg']}: {reason}" if reason else problem["msg"]


def _http_error(request: Request, error: Exception) -> Problem:
    known = cast(HTTPException, error)
    return Problem(known.status_code, {"detail": known.detail}, known.headers or {})


def _database_error(request: Request, error: Exception) -> Problem:
    if isinstance(error, DataError):
        return Problem(422, {"detail": "a value is out of the range that can be stored", "code": "invalid"})
    if is_orphan(error):
        gone = ConflictError("something that this needs was deleted at the same time")
        return _sinas_error(request, gone)
    if is_passing(error):
        busy = UnavailableError("the database is not available; try again", {"Retry-After": "1"})
        return _sinas_error(request, busy)
    return _unexpected(request, error)


class Unexpected:
    """Answers what no handler knows, below the middlewares: Starlette's own does it above them, so without headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started = False

        async def noticed(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noticed)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await detail_form(_unexpected(Request(scope), error))(scope, receive, send)


def _unexpected(request: Request, error: Exception) -> Problem:
    log.error("request failed unexpectedly", method=request.method, path=request.url.path, exc_info=error)
    return Problem(500, {"detail": "Internal server error", "code": "internal_error"})


HANDLERS: tuple[tuple[type[Exception], Callable[[Request, Exception], Problem]], ...] = (
    (SinasError, _sinas_error),
    (RequestValidationError, _invalid),
    (HTTPException, _http_error),
    (SQLAlchemyError, _database_error),
    (Exception, _unexpected),
)


def install_error_handlers(app: FastAPI, form: Form = detail_form) -> None:
    """Render every error in one form."""
    for kind, describe in HANDLERS:
        app.add_exception_handler(kind, _handler(describe, form))


def _handler(
    describe: Callable[[Request, Exception], Problem], form: Form
) -> Callable[[Request, Exception], Coroutine[Any, Any, Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        return form(describe(request, error))

    return handle
