"""Skills over HTTP: declaring them, and the runtime list."""

from sinas_server.kernel.routes import crud_router, runtime_list_router
from sinas_server.skills.kind import SKILL

management_router = crud_router(SKILL)
runtime_router = runtime_list_router(SKILL)
