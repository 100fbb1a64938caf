"""Agents and their models."""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings

from sinas_server.kit.texts import http_url
from sinas_server.settings.checks import Size


class AgentSettings(BaseSettings):
    """How agents work and which models they find."""

    # Agents
    max_tool_iterations: int = Field(25, ge=1, description="Rounds of tool calls in one turn.")
    max_history_messages: int = Field(
        100,
        ge=1,
        description="Messages of a chat given to the model; older ones are dropped, or summarized (`history_summary`).",
    )
    max_queued_messages: int = Field(
        20, ge=1, description="Messages of a chat that may wait for the turn that runs; further ones are refused (429)."
    )
    agent_job_timeout: float = Field(
        600, gt=0, description="Longest work on one turn, in seconds, not counting the time it waits for others."
    )
    tool_result_page: int = Field(
        30_000,
        ge=1_000,
        description="Characters of a tool's result that the model gets at once; it reads further pages when it wants.",
    )
    max_attachment_size: Size = Field(
        20 << 20,
        ge=1,
        validate_default=True,
        description="The largest image, recording or file of a message, like `20m`. A request as a whole has at most "
        "32 MB, in which a file in base64 takes four thirds of its size.",
    )
    max_attachments: int = Field(20, ge=0, description="The most images, recordings and files of one message.")
    approval_timeout: float = Field(
        86_400, gt=0, description="Seconds for a user to approve a call; after that the agent is told that he did not."
    )
    input_timeout: float = Field(
        86_400, gt=0, description="Seconds for a user to answer a question of an agent or of a paused execution."
    )
    openai_api_key: SecretStr | None = Field(
        None, description="OpenAI key; embedded, it makes OpenAI a provider if none is configured."
    )
    anthropic_api_key: SecretStr | None = Field(
        None, description="Anthropic key; embedded, it makes Anthropic a provider if none is configured."
    )
    mistral_api_key: SecretStr | None = Field(
        None, description="Mistral key; embedded, it makes Mistral a provider if none is configured."
    )
    ollama_host: Annotated[str, AfterValidator(http_url)] | None = Field(
        None,
        description="Address of Ollama. Unset: embedded, `http://127.0.0.1:11434` is used if it answers.",
    )
