"""Which images, recordings and files each provider and family of models takes, known without asking them.

A provider's wire format says what can be sent at all. Of models only those are named that are known to take less: a
model nobody heard of yet is asked, and may refuse by itself. Text files become part of the prompt, which all take.
Bytes go to the provider in its own format; an address is passed on to those that fetch by themselves, and never fetched
here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from sinas_server.backends.llm import MediaPart, ProviderConfig
from sinas_server.backends.llm.options import OFFICIAL
from sinas_server.kit.media import is_text

IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
PDF = frozenset({"application/pdf"})
NOTHING: frozenset[str] = frozenset()
WORDS = {"audio/mpeg": "MP3", "audio/wav": "WAV", "application/pdf": "PDF"}


@dataclass(frozen=True)
class Takes:
    """Media types that can be sent as bytes, and those that can be sent by their address."""

    data: frozenset[str] = NOTHING
    url: frozenset[str] = NOTHING

    def allows(self, part: MediaPart) -> bool:
        """Whether this part can be sent."""
        if part.url is not None:
            return part.media_type in self.url
        return part.media_type in self.data or is_text(part.media_type)

    def without(self, *majors: str) -> "Takes":
        """The same but for some sorts of media (`image`, `audio`, `application`)."""
        return Takes(_without(self.data, majors), _without(self.url, majors))


def _without(types: frozenset[str], majors: tuple[str, ...]) -> frozenset[str]:
    return frozenset(known for known in types if known.partition("/")[0] not in majors)


WIRE: Mapping[str, Takes] = {
    "openai": Takes(IMAGES | PDF | {"audio/wav", "audio/mpeg"}, IMAGES),
    "anthropic": Takes(IMAGES | PDF, IMAGES | PDF),
    "mistral": Takes(IMAGES | PDF, IMAGES | PDF),
    "ollama": Takes(IMAGES),
}
"""By type of provider."""
RESPONSES = Takes(IMAGES | PDF, IMAGES | PDF)
"""OpenAI's newer API."""
_TEXT_ONLY: Mapping[str, re.Pattern[str]] = {
    "openai": re.compile(r"gpt-3\.5|gpt-4(-\d{4}(-preview)?|-32k.*)?$|o1-(mini|preview)|o3-mini|(babbage|davinci)-002"),
    "anthropic": re.compile(r"claude-(instant|v?[12]\b)"),
    "mistral": re.compile(
        r"open-m[ix]|mistral-tiny|codestral|mathstral|voxtral|mistral-large-24|mistral-medium-23|mistral-small-(24|2501)"
        r"|ministral-\db-24|devstral-(small|medium)-250[57]|magistral-(small|medium)-250[67]"
    ),
    "ollama": re.compile(
        r"(llama3(\.[12])?|llama2|mi[sx]tral|qwen2(\.5)?|qwen3|phi3|phi4|codellama|gpt-oss|gemma2|deepseek-(r1|v3))(:|$)"
    ),
}
"""Models that take text alone."""
_NO_AUDIO = re.compile(r"(?!.*audio)(gpt-[45]|chatgpt|o[134]\b)")
"""OpenAI's models that cannot listen: those that can say so in their name."""


def takes(config: ProviderConfig, model: str) -> Takes:
    """What can be sent to a model of a provider on the network."""
    wire = _wire(config)
    if config.type == "openai" and not _is_openai(config):  # whose models are called as anybody likes
        return wire
    if _TEXT_ONLY[config.type].match(model):
        return Takes()
    if config.type == "openai" and _NO_AUDIO.match(model):
        return wire.without("audio")
    if config.type == "openai" and "audio" in model:
        return wire.without("image", "application")
    return wire


def _wire(config: ProviderConfig) -> Takes:
    if config.type == "openai" and config.options.get("api") == "responses":
        return RESPONSES
    return WIRE[config.type]


def _is_openai(config: ProviderConfig) -> bool:
    return config.endpoint is None or urlsplit(config.endpoint).hostname == urlsplit(OFFICIAL["openai"]).hostname


def refusal(config: ProviderConfig, model: str, part: MediaPart) -> str | None:
    """Why a part cannot be sent to a model; None if it can. The offline model looks at nothing and takes all."""
    if config.type == "scripted":
        return None
    known = takes(config, model)
    if known.allows(part):
        return None
    form = "by URL" if part.url is not None else "inline"
    subject = config.type if known == _wire(config) else f"{config.type}'s model {model}"
    return f"{subject} does not take {part.kind} content of type {part.media_type} {form}; {_offer(known)}"


def _offer(known: Takes) -> str:
    if not known.data:
        return "it takes text and text files"
    inline = f"it takes text, text files, {_listed(known.data)}"
    return f"{inline}, and by URL {_listed(known.url)}" if known.url else inline


def _listed(types: frozenset[str]) -> str:
    return ", ".join(sorted(WORDS.get(name, name.partition("/")[2].upper()) for name in types))
