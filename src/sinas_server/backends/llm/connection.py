"""What a provider's module supplies to `DirectModel`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from pydantic_ai.settings import ModelSettings

from sinas_server.backends.llm.dialect import Dialect

if TYPE_CHECKING:
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.mistral import MistralModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

Adapter: TypeAlias = "OpenAIChatModel | OpenAIResponsesModel | AnthropicModel | MistralModel"


@dataclass(frozen=True)
class Connection:
    """An adapter for a model's name, what the provider takes, and settings for every request.

    `caching`: for a `cache_key`, the settings that make the provider keep what requests have in common.
    """

    model: Callable[[str], Adapter]
    dialect: Dialect
    settings: ModelSettings = field(default_factory=ModelSettings)
    caching: Callable[[str], ModelSettings] | None = None
