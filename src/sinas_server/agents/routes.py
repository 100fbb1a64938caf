"""The runtime list of agents, and the default one."""

from fastapi import APIRouter, Response

from sinas_server.agents.kind import AGENT, default_agent
from sinas_server.kernel.errors import NotFoundError
from sinas_server.kernel.http import CurrentCaller, CurrentDb, new_router
from sinas_server.kernel.routes import Models, answer, crud_router, runtime_list_router

management_router = crud_router(AGENT)


def _runtime_router() -> APIRouter:
    router = new_router("", "agents")

    @router.get("/agents/default", response_model=Models(AGENT).read, summary="Get the default agent")
    async def get_default(db: CurrentDb, caller: CurrentCaller) -> Response:
        agent = await default_agent(db)
        if agent is None or not caller.allows(AGENT.plural, "chat", agent.owner_id, agent.namespace, agent.name):
            raise NotFoundError("there is no default agent that you may chat with")
        return answer(AGENT, agent)

    router.include_router(runtime_list_router(AGENT))
    return router


runtime_router = _runtime_router()
