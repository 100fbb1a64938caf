"""Opening providers: a `LanguageModel` for a configuration, and a pool that keeps opened ones."""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson

from sinas_server.backends.llm import LanguageModel, ProviderConfig
from sinas_server.backends.llm.remote import RemoteModel
from sinas_server.backends.llm.scripted import ScriptedModel
from sinas_server.backends.render import Renderer


def open_model(config: ProviderConfig, renderer: Renderer) -> LanguageModel:
    """A model to ask. Touches no network; the provider's library loads at the first request.

    `renderer`: fills the templates of `scripted`; whoever opened it closes it.
    Raises `ProviderError` when the configuration cannot work: no key, no endpoint, a forbidden one, invalid options.
    """
    if config.type == "scripted":
        return ScriptedModel.open(config, renderer)
    return RemoteModel(config)


@dataclass
class _Entry:
    model: LanguageModel
    users: int = 0


class ModelPool:
    """Opened models by configuration, so that connections are used again; beyond `limit` the longest idle close."""

    def __init__(self, renderer: Renderer, *, limit: int = 16) -> None:
        self._renderer = renderer
        self._limit = limit
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    @asynccontextmanager
    async def use(self, config: ProviderConfig) -> AsyncIterator[LanguageModel]:
        """The model for `config`, not closed while it is in use. Raises what `open_model` raises."""
        key = orjson.dumps(
            [config.type, config.api_key, config.endpoint, dict(config.options)], option=orjson.OPT_SORT_KEYS
        )
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(open_model(config, self._renderer))
        self._entries.move_to_end(key)
        entry.users += 1
        try:
            yield entry.model
        finally:
            entry.users -= 1
            await self._shrink(self._limit)

    async def warm(self, config: ProviderConfig) -> None:
        """Load the provider's library ahead of the first request, off the event loop; touches no network."""
        async with self.use(config) as model:
            if isinstance(model, RemoteModel):
                await model.warm()

    async def _shrink(self, limit: int) -> None:
        while len(self._entries) > limit:
            idle = next((key for key, entry in self._entries.items() if entry.users == 0), None)
            if idle is None:
                return
            await self._entries.pop(idle).model.close()

    async def close(self) -> None:
        """Close every model that is not in use."""
        await self._shrink(0)
