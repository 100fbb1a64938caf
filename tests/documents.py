"""Every OpenAPI document of the server, found by what is mounted: a new one is tested as soon as it is there."""

from fastapi import FastAPI
from starlette.routing import Mount


def documents(app: FastAPI) -> dict[str, FastAPI]:
    """Where each application with a document is mounted → that application; the outermost at ''."""
    found = {"": app}
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, FastAPI):
            found |= {f"{route.path}{path}": part for path, part in documents(route.app).items()}
    return {path: part for path, part in found.items() if part.openapi_url}
