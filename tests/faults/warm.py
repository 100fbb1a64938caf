"""What the stack's processes inherit ready-made: they are forked from one through which a chat has gone.

One that starts from nothing compiles the SQL of all it does, prepares the routes of the API and imports what is only
imported when it is needed; after each kill that took longer than the rest of the test. What is inherited never changes:
connections, tasks and whatever the product knows are each process's own.
"""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine

from sinas_server import catalog, roles
from sinas_server.app import OpenRuntime, create_app
from sinas_server.backends.db import open_engine
from sinas_server.backends.embedded import embedded_servers
from sinas_server.identity.bootstrap import ADMIN_KEY_FILE
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.settings import Settings

Json = dict[str, Any]
ECHO = "def handler(input_data, context):\n    return input_data\n"
ASKS = "def handler(input_data, context):\n    return input('Which?')\n"
OTHER = "call_agent_t__other"
RULES: list[Json] = [
    {
        "when": {"contains": "go"},
        "answer": "I ask.",
        "call": [
            {"tool": "t/echo", "arguments": {}},
            {"tool": "t/asks", "arguments": {}},
            {"tool": "askUser", "arguments": {"question": "Which?"}},
        ],
    },
    {
        "when": {"after_tool": "askUser"},
        "answer": "It says {{ results.askUser }}.",
        "call": [{"tool": OTHER, "arguments": {"message": "roll"}}],
    },
    {"when": {"after_tool": OTHER}, "answer": "It is done."},
]
ANY: Json = {"input_schema": {}, "output_schema": {}}


class Engines:
    """Engines that share what one of them has compiled."""

    def __init__(self) -> None:
        self._dialect: Dialect | None = None
        self._compiled: dict[object, object] = {}

    def open(self, url: str, pool_size: int = 10, prepare: bool = False) -> AsyncEngine:
        """As `open_engine`."""
        engine = open_engine(url, pool_size=pool_size, prepare=prepare)
        self._dialect = engine.sync_engine.dialect = self._dialect or engine.sync_engine.dialect  # part of each key
        engine.sync_engine.update_execution_options(compiled_cache=self._compiled)
        return engine


class Applications:
    """The application, made once; whoever serves it says what it runs on."""

    def __init__(self, settings: Settings) -> None:
        self._open: OpenRuntime | None = None
        self._app = create_app(settings, self._opened)

    def create(self, settings: Settings, open_runtime: OpenRuntime) -> FastAPI:
        """As `create_app`, for settings that shape it alike."""
        self._open = open_runtime
        return self._app

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Runtime]:
        assert self._open is not None
        async with self._open() as runtime:
            yield runtime


def warm(root: Path, settings: Settings) -> None:
    """Have a chat go through this process, on servers that are gone afterwards."""
    applications = Applications(settings)
    setattr(roles, "open_engine", Engines().open)  # noqa: B010 - mypy is right not to like it; it is what we want
    setattr(roles, "create_app", applications.create)  # noqa: B010 - as above
    with embedded_servers(root) as (database_url, redis_url):
        servers = {"database_url": SecretStr(database_url), "redis_url": SecretStr(redis_url), "sinas_data_dir": root}
        secrets = {"secret_key": SecretStr("only-for-tests-" * 3), "encryption_key": SecretStr("A" * 43 + "=")}
        settings = settings.model_copy(update={**servers, **secrets})
        roles.prepare(settings)
        asyncio.run(_live(settings, applications))
    gc.collect()
    gc.freeze()


async def _live(settings: Settings, applications: Applications) -> None:
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(roles.open_runtime(settings, "warm"))

        @asynccontextmanager
        async def opened() -> AsyncIterator[Runtime]:
            yield runtime

        app = applications.create(settings, opened)
        await stack.enter_async_context(app.router.lifespan_context(app))
        sandbox = await roles.start_function_sandbox(settings, "warm")
        stack.push_async_callback(sandbox.close)
        shared_pool = roles.open_shared_pool(settings)
        stack.push_async_callback(shared_pool.close)
        await shared_pool.start()
        equipped = replace(runtime, sandbox=sandbox, shared_pool=shared_pool)
        working = [asyncio.create_task(Worker(equipped, job, 4).run()) for job in catalog.JOBS.values()]
        key = (settings.sinas_data_dir / ADMIN_KEY_FILE).read_text().strip()
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app),
            base_url="http://warm",
            headers={"Authorization": f"Bearer {key}"},
        )
        async with client, asyncio.timeout(60):
            await _Chat(client).go()
        for loop in catalog.LOOPS:
            await loop.step(runtime)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


class _Chat:
    """One with most of what happens in the tests."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._id = ""

    async def _ask(self, method: str, path: str, body: Json | None = None) -> httpx2.Response:
        answer = await self._client.request(method, path, json=body)
        assert answer.is_success, answer.text
        return answer

    async def _add_agent(self, name: str, rules: list[Json], **more: object) -> None:
        provider = {"name": name, "provider_type": "scripted", "config": {"rules": rules, "chunk_size": 8}}
        made = (await self._ask("POST", "/api/v1/llm-providers", provider)).json()
        agent = {"namespace": "t", "name": name, "llm_provider_id": made["id"], **more}
        await self._ask("POST", "/api/v1/agents", agent)

    async def _declare(self) -> None:
        for name, code in (("echo", ECHO), ("asks", ASKS)):
            body = {"namespace": "t", "name": name, "code": code, "shared_pool": name == "asks", **ANY}
            await self._ask("POST", "/api/v1/functions", body)
        await self._add_agent("other", [{"answer": "I rolled 6."}])
        await self._add_agent(
            "agent",
            RULES,
            enabled_functions=["t/echo", "t/asks"],
            enabled_agents=["t/other"],
            system_tools=["askUser"],
            approval_policy={"t/echo": "ask"},
        )

    async def go(self) -> None:
        """From its beginning to its end."""
        await self._declare()
        self._id = (await self._ask("POST", "/agents/t/agent/chats", {})).json()["id"]
        async with self._client.stream("POST", f"/chats/{self._id}/messages/stream", json={"content": "go"}) as answer:
            await answer.aread()
        while (chat := (await self._ask("GET", f"/chats/{self._id}")).json())["last_turn"]["status"] != "COMPLETED":
            await self._decide(chat)
            channel = f"/chats/{self._id}/stream/{chat['last_turn']['channel_id']}"
            async with self._client.stream("GET", channel) as answer:
                await answer.aread()
        await self._ask("GET", "/auth/me")

    async def _decide(self, chat: Json) -> None:
        for pending in chat["pending_approvals"]:
            await self._ask("POST", f"/chats/{self._id}/approve-tool/{pending['tool_call_id']}", {"approved": True})
        for pending in (await self._ask("GET", f"/chats/{self._id}/pending-input")).json():
            path = f"/chats/{self._id}/pending-input/{pending['tool_call_id']}"
            await self._ask("POST", path, {"answer": "blue"})
