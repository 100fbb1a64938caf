"""The fake as other tests and the bench use it: a process of its own, told what to do over HTTP."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import httpx2
import pytest

from sinas_server.backends.llm import ModelRequest, ProviderConfig, TextDelta, TextPart, UserMessage
from sinas_server.backends.llm.remote import RemoteModel


@pytest.fixture
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.fakes.llm_server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


async def asked(url: str, said: str) -> list[str]:
    """The pieces of the answer."""
    model = RemoteModel(ProviderConfig("openai", None, f"{url}/v1"))
    request = ModelRequest("fake-large", (UserMessage((TextPart(said),)),))
    pieces = [event.text async for event in model.stream(request) if isinstance(event, TextDelta)]
    await model.close()
    return pieces


async def test_control(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as control:
        default = {"text": "ab" * 20, "chunks": 20}
        assert (await control.put("/control/default", json=default)).json() == {"ok": True}
        replies = [{"text": "rule", "when": "magic", "times": None}, {"text": "once"}]
        await control.post("/control/replies", json=replies)
        assert await asked(url, "Hello") == ["once"]
        assert await asked(url, "Hello") == ["ab"] * 20
        assert await asked(url, "magic") == await asked(url, "magic") == ["rule"]
        recorded = (await control.get("/control/requests")).json()
        assert [item["body"]["messages"][0]["content"] for item in recorded] == ["Hello", "Hello", "magic", "magic"]
        assert all(item["finished"] and not item["closed_early"] for item in recorded)
        await control.delete("/control")
        assert (await control.get("/control/requests")).json() == []


async def test_an_answer_waits_until_it_is_released(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as control:
        await control.post("/control/replies", json=[{"text": "one two", "hold_after": 2}])
        asking = asyncio.ensure_future(asked(url, "Hello"))
        while not any(item["held"] for item in (await control.get("/control/requests")).json()):
            await asyncio.sleep(0.01)
        assert not asking.done()
        assert (await control.get("/control/requests")).json()[0]["finished"] is False
        await control.post("/control/release")
        assert "".join(await asking) == "one two"
