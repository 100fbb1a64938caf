"""`SINAS_INTERNAL_URL`: where function workers reach the API, of sandboxes and of the shared pool alike."""

from collections.abc import Awaitable, Callable

import pytest

from sinas_server.backends.sandbox import Sandbox, Task
from sinas_server.roles import open_shared_pool, start_function_sandbox
from sinas_server.settings import Settings

HEALTH = (
    "import os, urllib.request\n"
    "def handler(input_data, context):\n"
    "    urls = (os.environ['SINAS_URL'], 'http://host.docker.internal:8000')\n"
    "    return [urllib.request.urlopen(url + '/health', timeout=20).status for url in urls]\n"
)


async def shared_pool(settings: Settings) -> Sandbox:
    pool = open_shared_pool(settings.model_copy(update={"default_worker_count": 1}))
    await pool.start()
    return pool


async def sandbox(settings: Settings) -> Sandbox:
    sizes = {"sandbox_driver": "native", "sandbox_min_size": 1, "sandbox_min_idle": 0}
    return await start_function_sandbox(settings.model_copy(update=sizes), "test")


@pytest.mark.parametrize("opened", [sandbox, shared_pool])
async def test_it_leads_to_the_api(
    settings: Settings, port: int, opened: Callable[[Settings], Awaitable[Sandbox]]
) -> None:
    """The name of another host than the loopback's address, and a port that is not this process' own."""
    away = settings.model_copy(update={"sinas_internal_url": f"http://localhost:{port}", "port": 9})
    runner = await opened(away)
    try:
        outcome = await runner.run(Task(HEALTH, ("handler",), {}, {}, egress="none"))
    finally:
        await runner.close()
    assert outcome.result == [200, 200], outcome
