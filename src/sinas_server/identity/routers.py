"""The routers of identity, as the catalog mounts them."""

from sinas_server.identity.api_keys import api_keys_router
from sinas_server.identity.roles import permissions_router, roles_router
from sinas_server.identity.routes import auth_router
from sinas_server.identity.users import users_router

RUNTIME_ROUTERS = (auth_router,)
"""Mounted at `/`."""

MANAGEMENT_ROUTERS = (api_keys_router, roles_router, permissions_router, users_router)
"""Mounted at `/api/v1`."""
