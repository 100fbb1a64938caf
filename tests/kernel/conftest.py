"""What tests of workers share."""

import pytest

from sinas_server.kernel.runtime import Runtime
from tests.kernel.work import Scene, new_scene


@pytest.fixture
async def scene(runtime: Runtime) -> Scene:
    return await new_scene(runtime)
