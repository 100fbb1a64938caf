"""What a call costs in US dollars: the administrator's own prices, else the public ones of the provider."""

from collections.abc import Mapping
from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from sinas_server.backends.llm import ProviderConfig, Usage

MILLION = Decimal(1_000_000)
EVERY_MODEL = "*"


class Price(BaseModel):
    """US dollars per million tokens. Cached tokens cost as much as others unless they have a price of their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Decimal = Field(ge=0, description="Tokens the model reads.")
    output: Decimal = Field(ge=0, description="Tokens it writes.")
    cache_read: Decimal | None = Field(default=None, ge=0, description="Of those it reads: from the provider's cache.")
    cache_write: Decimal | None = Field(default=None, ge=0, description="Of those it reads: written to that cache.")


PRICES: TypeAdapter[dict[str, Price]] = TypeAdapter(dict[str, Price])


def check_prices(config: Mapping[str, JsonValue]) -> None:
    """Raise ValueError naming what is wrong with the `prices` of a provider's `config`."""
    try:
        PRICES.validate_python(config.get("prices", {}))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ValueError("; ".join(f"prices.{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems)) from error


def cost_of(config: ProviderConfig, model: str, usage: Usage) -> Decimal | None:
    """What the call costs, None if no price is known. The scripted model is free."""
    if config.type == "scripted":
        return Decimal(0)
    own = config.options.get("prices")
    if isinstance(own, Mapping) and (model in own or EVERY_MODEL in own):
        return _by(Price.model_validate(own.get(model, own.get(EVERY_MODEL))), usage)
    return _public(config, model, usage)


def _by(price: Price, usage: Usage) -> Decimal:
    plain = max(0, usage.prompt_tokens - usage.cache_read_tokens - usage.cache_write_tokens)
    read = price.input if price.cache_read is None else price.cache_read
    written = price.input if price.cache_write is None else price.cache_write
    total = plain * price.input + usage.cache_read_tokens * read + usage.cache_write_tokens * written
    return (total + usage.completion_tokens * price.output) / MILLION


def _public(config: ProviderConfig, model: str, usage: Usage) -> Decimal | None:
    if config.type == "ollama":
        return None
    import genai_prices  # lazy: a megabyte of prices, loaded already wherever a provider has been asked

    counted = genai_prices.Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    # Another server than the service's own has its own prices, known only where the address is.
    where = {"provider_api_url": config.endpoint} if config.endpoint else {"provider_id": config.type}
    try:
        return genai_prices.calc_price(counted, model, **where).total_price
    except (LookupError, ValueError):  # not in the list, or counts that its formula refuses
        return None
