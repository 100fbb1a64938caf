"""What the model is asked: instructions, example messages, history and tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from sinas_server.agents.kind import AgentSpec
from sinas_server.backends.llm import (
    AssistantMessage,
    Message,
    ModelRequest,
    Sampling,
    SystemMessage,
    TextPart,
    ToolSpec,
    UserMessage,
)
from sinas_server.kernel.access import Caller
from sinas_server.kernel.fill import fill
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tool import AgentContext, Tool
from sinas_server.kit.jinja import TemplateRenderError

_FOR_TOOLS = {name for name in AgentSpec.model_fields if name.startswith("enabled_")} | {
    "function_parameters",
    "query_parameters",
    "status_templates",
    "system_tools",
}


class PromptError(Exception):
    """The agent's instructions cannot be written for this chat; the message says why."""


@dataclass(frozen=True)
class Prompt:
    """What stays the same in every request of a turn."""

    agent: AgentSpec
    opening: tuple[Message, ...]
    tools: Mapping[str, Tool]
    cache_key: str
    """The same in every request of the chat."""

    def recalling(self, *messages: Message) -> "Prompt":
        """The same with these messages before the history."""
        return replace(self, opening=(*self.opening, *messages))

    def request(self, history: Sequence[Message], model: str) -> ModelRequest:
        """The request for the next step."""
        return ModelRequest(
            model=model,
            messages=(*self.opening, *history),
            tools=tuple(ToolSpec(tool.name, tool.description, tool.parameters) for tool in self.tools.values()),
            sampling=Sampling(temperature=self.agent.temperature),
            max_tokens=self.agent.max_tokens,
            output_schema=self.agent.output_schema or None,
            cache_key=self.cache_key,
        )


async def opening(
    runtime: Runtime, agent: AgentSpec, values: Mapping[str, JsonValue], preloaded: Sequence[str] = ()
) -> tuple[Message, ...]:
    """The system message over the chat's input, what is preloaded, and the example messages. Raises `PromptError`."""
    messages: list[Message] = []
    try:
        instructions = await fill(runtime, [agent.system_prompt], values) if agent.system_prompt else []
    except TemplateRenderError as error:
        raise PromptError(f"the agent's system prompt cannot be rendered: {error}") from error
    if instructions or preloaded:
        messages.append(SystemMessage("\n\n".join([*instructions, *preloaded])))
    for example in agent.initial_messages or []:
        match example.role:
            case "system":
                messages.append(SystemMessage(example.content))
            case "user":
                messages.append(UserMessage((TextPart(example.content),)))
            case "assistant":
                messages.append(AssistantMessage(example.content))
    return tuple(messages)


def agent_context(agent: Resource[AgentSpec], owner: Caller | None, values: Mapping[str, JsonValue]) -> AgentContext:
    """What toolsets need to know of an agent."""
    return AgentContext(agent.id, owner, agent.spec.model_dump(mode="json", include=_FOR_TOOLS), values)
