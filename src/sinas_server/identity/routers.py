"""The routers of identity, as the catalog mounts them."""

from sinas_server.identity.api_keys import api_keys_router
from sinas_server.identity.routes import auth_router

RUNTIME_ROUTERS = (auth_router,)
"""Mounted at `/`."""

MANAGEMENT_ROUTERS = (api_keys_router,)
"""Mounted at `/api/v1`."""
