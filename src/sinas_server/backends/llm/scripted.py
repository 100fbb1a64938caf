"""A deterministic offline model for demos and for testing agents: rules instead of a network.

The rules are the provider's `config`:

    rules:
      - when: {regex: "order (?P<id>\\\\d+)"}
        call:
          - {tool: shop/find_order, arguments: {order_id: "{{ groups.id | int }}"}}
      - when: {after_tool: shop/find_order}
        answer: "Order {{ results['shop/find_order'].id }} is {{ results['shop/find_order'].status }}."
    default: "I answer questions about orders."
    chunk_size: 8
    delay_ms: 20

The first rule whose whole `when` holds acts: it calls tools, answers, or answers and calls. A rule without `after_tool`
looks at a new user message, a rule with it at the results that just came back. Templates are Jinja2 over `message` (the
user's last message), `input` (the same parsed, if it is JSON), `groups` (of the rule's `regex`), `results` (of this
turn's tools by name, the last of each, parsed if they are JSON) and `every` (by name, all of them in order). An
argument that is a single `{{ expression }}` keeps its type.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final

import regex
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from sinas_server.backends.llm import (
    Answer,
    AssistantMessage,
    EmbeddingRequest,
    Embeddings,
    Event,
    Message,
    ModelRequest,
    ProviderConfig,
    ProviderError,
    TextDelta,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from sinas_server.backends.llm.options import describe
from sinas_server.backends.render import Part, Renderer, RendererBusyError, RenderFailedError
from sinas_server.kit import jinja

LABEL: Final = "scripted offline model (for demos and tests)"
MODEL_NAME: Final = "scripted"
MATCH_SECONDS: Final = 1.0
_EXPRESSION = re.compile(r"\s*\{\{-?(?P<expression>(?:(?!\{\{|\}\}).)+?)-?\}\}\s*", re.DOTALL)


def _check_template(source: str) -> str:
    try:
        jinja.check(source)
    except jinja.TemplateRenderError as error:
        raise ValueError(f"not a Jinja2 template: {error}") from error
    return source


def _check_templates(value: JsonValue) -> JsonValue:
    for source in _strings(value):
        _check_template(source)
    return value


def _strings(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _check_regex(pattern: str) -> str:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Template = Annotated[str, AfterValidator(_check_template)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class When(_Strict):
    """What must hold for a rule to act; every condition given must."""

    contains: str | None = Field(default=None, min_length=1, description="Text in the user's message, in any case.")
    regex: Annotated[str, AfterValidator(_check_regex)] | None = Field(
        default=None,
        description="A regular expression, in Python's syntax, found in the user's message.",
    )
    after_tool: str | None = Field(
        default=None, min_length=1, description="A tool (`namespace/name`) whose result has just come back."
    )


class Call(_Strict):
    """A tool to call."""

    tool: str = Field(min_length=1, description="The tool as `namespace/name`, or the name sent to providers.")
    arguments: Annotated[dict[str, JsonValue], AfterValidator(_check_templates)] = Field(
        default_factory=dict, description="The arguments; every string inside is a template."
    )


class Rule(_Strict):
    """One rule: a condition, and tools to call or an answer to give."""

    when: When = Field(default_factory=When, description="The condition; empty holds for every user message.")
    call: list[Call] = Field(default_factory=list, description="Tools to call, all at once.")
    answer: Template | None = Field(default=None, description="The text to say, before the calls if there are any.")

    @model_validator(mode="after")
    def _acts(self) -> "Rule":
        if not self.call and self.answer is None:
            raise ValueError("a rule needs `call` or `answer`")
        return self


class ScriptedRules(_Strict):
    """The `config` of a provider of type `scripted`."""

    rules: list[Rule] = Field(default_factory=list, description="The rules, in order; the first that holds acts.")
    default: Template = Field(
        default=f"This is a {LABEL}. No rule matches this message.", description="The answer when no rule holds."
    )
    chunk_size: int = Field(default=16, ge=1, le=10_000, description="Characters per streamed piece.")
    delay_ms: int = Field(default=0, ge=0, le=10_000, description="Milliseconds between pieces.")


@dataclass(frozen=True)
class _Turn:
    """What the rules look at: the user's last message and what came after it."""

    message: str
    last: tuple[ToolMessage, ...]
    results: Mapping[str, JsonValue]
    every: Mapping[str, list[JsonValue]]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> "_Turn":
        start = max((i for i, message in enumerate(messages) if isinstance(message, UserMessage)), default=-1)
        user = messages[start] if start >= 0 else None
        parts = user.parts if isinstance(user, UserMessage) else ()
        results: dict[str, JsonValue] = {}
        every: dict[str, list[JsonValue]] = {}
        last: list[ToolMessage] = []
        for message in messages[start + 1 :]:
            if isinstance(message, AssistantMessage):
                last = []
            elif isinstance(message, ToolMessage):
                last.append(message)
                value = _parsed(message.content)
                for name in {message.name, message.name.replace("__", "/", 1)}:
                    results[name] = value
                    every.setdefault(name, []).append(value)
        text = "\n\n".join(part.text for part in parts if isinstance(part, TextPart))
        return cls(text, tuple(last), results, every)

    async def groups(self, when: When) -> dict[str, str | None] | None:
        """The named groups if the condition holds, else None. Raises `TimeoutError`."""
        if bool(self.last) != (when.after_tool is not None):
            return None
        if when.after_tool is not None and not any(_same(when.after_tool, result.name) for result in self.last):
            return None
        if when.contains is not None and when.contains.casefold() not in self.message.casefold():
            return None
        if when.regex is None:
            return {}
        # Patterns may backtrack for ever: in a thread, which lets others run.
        match = partial(regex.search, when.regex, self.message, timeout=MATCH_SECONDS, concurrent=True)
        found = await asyncio.to_thread(match)
        return found.groupdict() if found else None


def sent_name(tool: str) -> str:
    """`namespace/name` as it is sent to providers: `namespace__name`, other characters replaced by `_`."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", tool.replace("/", "__", 1))


def _same(tool: str, sent: str) -> bool:
    return sent in {tool, sent_name(tool)}


def _parsed(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value


def _typed(source: str) -> str | None:
    """The template that gives, as JSON, what a single expression is; None for any other template."""
    single = _EXPRESSION.fullmatch(source)
    return None if single is None else "{{ (" + single["expression"] + ") | tojson }}"


def _sources(rule: Rule) -> list[str]:
    """Everything of a rule that must be rendered. A text comes before what it is as JSON: its errors say more."""
    found = [] if rule.answer is None else [rule.answer]
    for call in rule.call:
        for source in _strings(call.arguments):
            typed = _typed(source)
            found += [source] if typed is None else [source, typed]
    return found


def _filled(value: JsonValue, texts: Mapping[str, str]) -> JsonValue:
    """The arguments with their templates filled; a single expression gives a value of its own type."""
    if isinstance(value, Mapping):
        return {key: _filled(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, texts) for item in value]
    if not isinstance(value, str):
        return value
    typed = _typed(value)
    return texts[value] if typed is None else _parsed(texts[typed])


class ScriptedModel:
    """A `LanguageModel` that follows rules: the same request gives the same answer, byte for byte."""

    def __init__(self, rules: ScriptedRules, renderer: Renderer) -> None:
        self._rules = rules
        self._renderer = renderer

    @classmethod
    def open(cls, config: ProviderConfig, renderer: Renderer) -> "ScriptedModel":
        """The model for a configuration. Raises `ProviderError` that names each bad field."""
        try:
            return cls(ScriptedRules.model_validate(dict(config.options)), renderer)
        except ValidationError as error:
            raise ProviderError(f"the scripted model's rules are not valid: {describe(error)}") from error

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Event, None]:
        """See `LanguageModel`. Usage is zero: no model was asked."""
        answer = await self.answer(request)
        size, delay = self._rules.chunk_size, self._rules.delay_ms / 1000
        for start in range(0, len(answer.text), size):
            if start and delay:
                await asyncio.sleep(delay)
            yield TextDelta(answer.text[start : start + size])
        yield answer

    async def list_models(self) -> list[str]:
        """See `LanguageModel`."""
        return [MODEL_NAME]

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See `LanguageModel`."""
        raise ProviderError("the scripted model has no embeddings")

    async def close(self) -> None:
        """Nothing is open."""

    async def answer(self, request: ModelRequest) -> Answer:
        """What the rules say to this request. Raises `ProviderError` that names the rule which failed."""
        turn = _Turn.of(request.messages)
        variables: dict[str, JsonValue] = {
            "message": turn.message,
            "input": _parsed(turn.message),
            "groups": {},
            "results": dict(turn.results),
            "every": dict(turn.every),
        }
        rule, where = Rule(answer=self._rules.default), "default"
        for index, candidate in enumerate(self._rules.rules):
            try:
                groups = await turn.groups(candidate.when)
            except TimeoutError as error:
                told = f"regex takes more than {MATCH_SECONDS:g} s to look through the message"
                raise ProviderError(f"the scripted model's rules.{index} failed: its {told}") from error
            if groups is not None:
                rule, where, variables["groups"] = candidate, f"rules.{index}", dict(groups)
                break
        try:
            sources = _sources(rule)
            done = await self._renderer.render([Part(source) for source in sources], variables)
            texts = dict(zip(sources, done, strict=True))
            calls = tuple(_call(call, index, request, texts) for index, call in enumerate(rule.call))
        except (RenderFailedError, RendererBusyError, LookupError) as error:
            busy = isinstance(error, RendererBusyError)
            raise ProviderError(f"the scripted model's {where} failed: {error.args[0]}", retryable=busy) from error
        text = "" if rule.answer is None else texts[rule.answer]
        return Answer(text, calls, finish_reason="tool_calls" if calls else "stop")


def _call(call: Call, index: int, request: ModelRequest, texts: Mapping[str, str]) -> ToolCall:
    name = next((tool.name for tool in request.tools if _same(call.tool, tool.name)), None)
    if name is None:
        offered = ", ".join(tool.name for tool in request.tools) or "none"
        raise LookupError(f"it calls {call.tool}, which is not among the tools offered ({offered})")
    arguments = _filled(dict(call.arguments), texts)
    # The id depends on the request alone, and differs from every earlier one of the chat.
    return ToolCall(f"scripted_{len(request.messages)}_{index}", name, json.dumps(arguments, ensure_ascii=False))
