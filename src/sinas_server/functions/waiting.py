"""Waiting for an execution on behalf of an HTTP client."""

from uuid import UUID

from fastapi import Request

from sinas_server.functions import execute
from sinas_server.functions.execute import Standing
from sinas_server.kernel.runtime import Runtime

PATIENCE_SECONDS = 15.0
"""How often a route that waits looks whether its client is still there."""


async def wait_while_connected(runtime: Runtime, execution_id: UUID, request: Request) -> Standing:
    """Where an execution stands once it has ended or paused; it goes on without a client who left before."""
    while True:
        now = Standing.of(await execute.wait(runtime, execution_id, PATIENCE_SECONDS))
        if now.has_stopped or await request.is_disconnected():
            return now
