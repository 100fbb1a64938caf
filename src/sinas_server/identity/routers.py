"""The routers of identity, as the catalog mounts them."""

from sinas_server.identity.api_keys import api_keys_router
from sinas_server.identity.audit import audit_router
from sinas_server.identity.explain import explain_router
from sinas_server.identity.oidc_routes import oidc_router
from sinas_server.identity.password_routes import own_password_router, user_password_router
from sinas_server.identity.roles import permissions_router, roles_router
from sinas_server.identity.routes import auth_router
from sinas_server.identity.session_routes import own_sessions_router, user_sessions_router
from sinas_server.identity.users import users_router

RUNTIME_ROUTERS = (auth_router, explain_router, own_sessions_router, own_password_router, oidc_router)
"""Mounted at `/`."""

MANAGEMENT_ROUTERS = (
    api_keys_router,
    audit_router,
    roles_router,
    permissions_router,
    users_router,
    user_sessions_router,
    user_password_router,
)
"""Mounted at `/api/v1`."""
