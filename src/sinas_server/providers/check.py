"""Trying out a provider: whether it answers with what is configured, and which models it offers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Annotated

import httpx2
from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from sinas_server.backends.llm import LanguageModel, ProviderError
from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import SinasError
from sinas_server.kernel.http import CurrentCaller, Run, new_router
from sinas_server.kernel.routes import where_of
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.providers.kind import PROVIDER, ProviderSpec
from sinas_server.providers.resolve import direct

PATIENCE_SECONDS = 20.0
MISSING: dict[int | str, dict[str, object]] = {404: {"description": "No such LLM provider."}}
FAILING: dict[int | str, dict[str, object]] = {
    **MISSING,
    424: {"description": "The provider does not answer, or refuses."},
}
At = Annotated[tuple[str, str], Depends(where_of(PROVIDER))]


class ProviderUnusableError(SinasError):
    """The provider does not answer, or refuses; the message says why, without its key."""

    status, code = 424, "provider_error"


class ProviderTestResponse(BaseModel):
    """How a test went."""

    success: bool = Field(description="Whether the provider answered.")
    message: str = Field(description="What it offers, or why it cannot be used; never its key.")
    latency_ms: int = Field(description="How long it took, in milliseconds.")


class ProviderModelsResponse(BaseModel):
    """The models of a provider."""

    models: list[str] = Field(description="Their names as the provider gives them, sorted.")
    default_model: str | None = Field(description="The one used where an agent names none.")


async def _found(runtime: Runtime, caller: Caller, at: tuple[str, str]) -> Resource[ProviderSpec]:
    async with runtime.database.unit() as db:
        return await store.read(db, caller, PROVIDER, *at)


@asynccontextmanager
async def _opened(runtime: Runtime, provider: Resource[ProviderSpec]) -> AsyncIterator[LanguageModel]:
    """The provider, to be asked within `PATIENCE_SECONDS`. Raises `ProviderError`."""
    try:
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            runtime.models.use(direct(provider, provider.spec.model or "").config) as model,
        ):
            yield model
    except TimeoutError:
        raise ProviderError(f"the provider did not answer within {PATIENCE_SECONDS:g} seconds") from None
    except (
        ValueError,
        TypeError,
        httpx2.InvalidURL,
        httpx2.HTTPError,
    ) as error:  # a key or address that no request can carry
        raise ProviderError(f"its endpoint or key cannot be used: {type(error).__name__}") from error


async def _models(at: At, runtime: Run, caller: CurrentCaller) -> ProviderModelsResponse:
    """Asks the provider itself: what it offers now, whatever `models` says."""
    provider = await _found(runtime, caller, at)
    try:
        async with _opened(runtime, provider) as model:
            names = await model.list_models()
    except ProviderError as error:
        raise ProviderUnusableError(str(error)) from error
    return ProviderModelsResponse(models=names, default_model=provider.spec.model)


async def _test(at: At, runtime: Run, caller: CurrentCaller) -> ProviderTestResponse:
    """Asks for the list of its models, which costs nothing. Answers 200 also when the provider does not."""
    provider = await _found(runtime, caller, at)
    begun = monotonic()
    try:
        async with _opened(runtime, provider) as model:
            success, message = True, _words(provider.spec, await model.list_models())
    except ProviderError as error:
        success, message = False, str(error)
    return ProviderTestResponse(success=success, message=message, latency_ms=round((monotonic() - begun) * 1000))


def _words(spec: ProviderSpec, names: list[str]) -> str:
    offers = f"The provider answers and offers {len(names)} model{'s' * (len(names) != 1)}"
    if spec.default_model and spec.default_model not in names:
        return f"{offers}; its list does not have the default_model '{spec.default_model}'"
    return offers


def _check_router() -> APIRouter:
    router = new_router(f"/{PROVIDER.route}", PROVIDER.route)
    router.post("/{name}/test", summary="Try out an LLM provider", name="test", responses=MISSING)(_test)
    router.get("/{name}/models", summary="List the models of an LLM provider", name="models", responses=FAILING)(
        _models
    )
    return router


check_router = _check_router()
