"""Embeddings as OpenAI writes them."""

import base64
import sys
from array import array
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from sinas_server.backends.llm import (
    EmbeddingRequest,
    Embeddings,
    ModelRequest,
    ProviderError,
    TextPart,
    Usage,
    UserMessage,
)
from sinas_server.kernel.access import Caller
from sinas_server.kernel.runtime import Runtime
from sinas_server.openai_adapter.errors import from_provider
from sinas_server.openai_adapter.request import In
from sinas_server.providers.admit import within_budgets
from sinas_server.providers.resolve import Resolved
from sinas_server.providers.usage import ModelCall, Payer, record_now

Text = Annotated[str, Field(min_length=1, max_length=1_000_000)]


class EmbeddingsRequest(In):
    """Texts to embed."""

    model: str = Field(min_length=1, max_length=600, description="`provider/model`, or the model's name alone.")
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)] = Field(
        description="A text, or several; arrays of tokens are not supported."
    )
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="Numbers, or 32-bit floats (little-endian) in base64."
    )
    dimensions: int | None = Field(
        default=None, ge=1, le=65536, description="Length of the vectors, where it can be set."
    )

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts."""
        return (self.input,) if isinstance(self.input, str) else tuple(self.input)


async def embed(runtime: Runtime, caller: Caller, provider: Resolved, body: EmbeddingsRequest) -> Embeddings:
    """The vectors; what they took is recorded. Raises `SinasError`."""
    payer = Payer(caller.id, caller.api_key)
    asked = ModelRequest(provider.model, (UserMessage(tuple(map(TextPart, body.texts))),), max_tokens=1)
    async with within_budgets(runtime, payer, provider, asked):
        call = ModelCall(payer, provider)
        try:
            async with runtime.models.use(provider.config) as model:
                found = await model.embed(EmbeddingRequest(provider.model, body.texts, body.dimensions))
        except ProviderError as error:
            await record_now(runtime.database, replace(call, failed=True))
            raise from_provider(error) from error
        await record_now(runtime.database, replace(call, usage=Usage(prompt_tokens=found.prompt_tokens)))
    return found


def shown(name: str, body: EmbeddingsRequest, found: Embeddings) -> dict[str, JsonValue]:
    """The vectors as OpenAI writes them."""
    data: list[JsonValue] = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(found.vectors)
    ]
    usage: dict[str, JsonValue] = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


def _encoded(vector: tuple[float, ...], form: str) -> JsonValue:
    if form == "float":
        return list(vector)
    packed = array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()
