"""Embeddings over plain HTTP in the form that OpenAI, Mistral and Ollama share: no provider's library is needed."""

from collections.abc import Mapping, Sequence

import httpx2
from pydantic import BaseModel, Field, ValidationError

from sinas_server.backends.llm import EmbeddingRequest, Embeddings, ProviderConfig, ProviderError
from sinas_server.backends.llm.failures import answered, unreachable
from sinas_server.backends.net import ForbiddenAddressError

PATHS: Mapping[str, str] = {"openai": "/embeddings", "mistral": "/v1/embeddings", "ollama": "/embeddings"}
"""What follows the endpoint, as `options.endpoint_of` gives it."""


class _Vector(BaseModel):
    index: int
    embedding: list[float]


class _Count(BaseModel):
    prompt_tokens: int = 0


class _Answer(BaseModel):
    data: list[_Vector]
    usage: _Count = Field(default_factory=_Count)


async def embed(
    http: httpx2.AsyncClient, config: ProviderConfig, endpoint: str, request: EmbeddingRequest, secrets: Sequence[str]
) -> Embeddings:
    """The vectors in the order of the texts. Raises `ProviderError`."""
    path = PATHS.get(config.type)
    if path is None:
        raise ProviderError(f"{config.type} has no embeddings")
    body: dict[str, object] = {"model": request.model, "input": list(request.texts)}
    if request.dimensions is not None:
        body["output_dimension" if config.type == "mistral" else "dimensions"] = request.dimensions
    headers = {"authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    try:
        response = await http.post(f"{endpoint}{path}", json=body, headers=headers | dict(http.headers))
    except (httpx2.HTTPError, ForbiddenAddressError) as error:
        raise unreachable(config.type, error, secrets) from None
    if not response.is_success:
        raise answered(config.type, response.status_code, response.content, secrets)
    try:
        found = _Answer.model_validate_json(response.content)
    except ValidationError:
        raise ProviderError(f"{config.type} did not answer with embeddings", retryable=True) from None
    vectors = [vector.embedding for vector in sorted(found.data, key=lambda vector: vector.index)]
    if len(vectors) != len(request.texts):
        raise ProviderError(f"{config.type} gave {len(vectors)} embeddings for {len(request.texts)} texts")
    return Embeddings(tuple(map(tuple, vectors)), found.usage.prompt_tokens)
