"""Asking the model: its answer in groups of events, asked again when the provider fails before it has begun."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sinas_server.backends.llm import Event, ModelRequest, ProviderConfig, ProviderError
from sinas_server.chats.batches import batches
from sinas_server.kernel.runtime import Runtime

COALESCE_SECONDS = 0.025
BACKOFF_SECONDS = (0.5, 2.0)
MAX_BACKOFF_SECONDS = 30.0
"""A provider that wants to be left alone for longer counts as one that failed."""


async def ask(runtime: Runtime, config: ProviderConfig, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
    """The answer as it arrives, the first event at once, then coalesced. Raises `ProviderError`."""
    for pause in (*BACKOFF_SECONDS, None):
        begun = False
        try:
            async with (
                runtime.models.use(config) as model,
                aclosing(batches(model.stream(request), COALESCE_SECONDS)) as groups,
            ):
                async for group in groups:
                    begun = True
                    yield group
                return
        except ProviderError as error:
            wished = error.retry_after_seconds or 0.0
            if pause is None or begun or not error.retryable or wished > MAX_BACKOFF_SECONDS:
                raise
        await asyncio.sleep(max(pause, wished))
