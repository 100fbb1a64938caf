"""What tests of templates share."""

from collections.abc import AsyncIterator

import pytest

from sinas_server.kernel.runtime import Runtime
from tests.mailbox import Mailbox, delivered


@pytest.fixture
async def mailbox(runtime: Runtime) -> AsyncIterator[Mailbox]:
    """The mail that is sent, by a real worker."""
    async with delivered(runtime) as made:
        yield made
