"""The official SDK of OpenAI for JavaScript, unmodified, over real HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
import uvicorn
from fastapi import FastAPI

from tests.chats.conftest import Declare
from tests.fakes import npm
from tests.fakes.llm_server import Call, FakeLLM, Reply
from tests.openai_adapter.conftest import URL, Provide
from tests.people import Person

SDK = npm.Package("openai", "7.57.0", "index.mjs")
PROGRAM = Path(__file__).with_name("sdk.mjs")


@pytest.fixture
async def address(app: FastAPI) -> AsyncIterator[str]:
    """Where the application listens."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, ws="none"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


async def test_the_sdk(
    address: str, declare: Declare, provide: Provide, fake: FakeLLM, admin: Person, worker: None
) -> None:
    try:
        sdk = await asyncio.to_thread(npm.install, SDK)
    except npm.UnavailableError as error:
        pytest.skip(f"npm cannot install the SDK here: {error}")  # no registry
    await declare("helper")
    await provide("main")
    fake.default = Reply(text="Hi there.", prompt_tokens=3, completion_tokens=4, chunk_size=2)
    fake.replies = [
        Reply(text="", tool_calls=[Call(name="weather", arguments='{"a": 1}', id="call_7")], when="weather")
    ]
    command = [*npm.node(), str(PROGRAM), str(sdk), f"{address}{URL}", admin.token]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    seen = json.loads(out)
    assert UUID(seen.pop("chat"))
    assert seen == {
        "models": ["agent:default/helper", "for-helper/scripted", "main/fake-large"],
        "model": "main/fake-large",
        "text": "Hi there.",
        "tokens": 7,
        "streamed": "Hi there.",
        "streamedTokens": 7,
        "call": [["call_7", "weather", '{"a": 1}']],
        "agent": "Hello, I am the agent.",
        "response": "Hi there.",
        "lastEvent": "response.completed",
        "vectors": [3, 3],
        "error": ["NotFoundError", 404, "model_not_found", "model"],
        "denied": ["AuthenticationError", 401],
    }
