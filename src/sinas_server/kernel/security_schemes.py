"""What the OpenAPI documents say about credentials, so that Swagger UI can send them."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from sinas_server.kernel.http import get_caller

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An access token or an API key."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
}
SECURITY: list[dict[str, list[str]]] = [{name: []} for name in SCHEMES]
"""For `openapi_extra` of a route that reads its credentials itself."""


def _routes(router: APIRouter) -> Iterator[APIRoute]:
    for route in router.routes:
        inner = getattr(route, "original_router", None)
        if isinstance(route, APIRoute):
            yield route
        elif isinstance(inner, APIRouter):
            yield from _routes(inner)


def _asks_who_calls(dependant: Dependant) -> bool:
    return dependant.call is get_caller or any(map(_asks_who_calls, dependant.dependencies))


def mark_protected(router: APIRouter) -> None:
    """Note on each operation that needs a caller which credentials it takes."""
    for route in _routes(router):
        if _asks_who_calls(route.dependant):
            route.openapi_extra = {**(route.openapi_extra or {}), "security": SECURITY}


def describe_credentials(app: FastAPI) -> None:
    """Name the two forms of credentials in the application's document."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        document.setdefault("components", {})["securitySchemes"] = SCHEMES
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents
