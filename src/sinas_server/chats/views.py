"""Chats, messages and answers as HTTP shows them."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from sinas_server.chats.attached import shown
from sinas_server.chats.content import Content
from sinas_server.chats.events import pending_input
from sinas_server.chats.queued import WhenBusy
from sinas_server.chats.record import as_call
from sinas_server.chats.tables import (
    ChatRow,
    MessageRow,
    QueuedMessageRow,
    Status,
    SummaryRow,
    ToolCallRow,
    TurnRow,
)
from sinas_server.settings import Settings

LONGEST_SECONDS = 315_360_000
Namespace = Annotated[str, Path(description="The agent's namespace.")]
AgentName = Annotated[str, Path(description="The agent's name.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class AgentChatCreateRequest(_Body):
    """A chat to create."""

    input: dict[str, JsonValue] | None = Field(default=None, description="Values the agent's `input_schema` asks for.")
    title: str | None = Field(default=None, max_length=500, description="Its title.")
    expires_in: int | None = Field(
        default=None, ge=1, le=LONGEST_SECONDS, description="Delete it with its messages after so many seconds."
    )
    job_timeout: int | None = Field(default=None, ge=1, le=86_400, description="Longest work on a turn, in seconds.")
    keep_alive: bool | None = Field(default=None, description="Kept for clients; turns always go on without them.")


class ChatUpdate(_Body):
    """What to change; absent or null leaves it."""

    title: str | None = Field(default=None, min_length=1, max_length=500, description="Its title.")
    archived: bool | None = Field(default=None, description="Hidden from the list unless asked for.")


class _Message(_Body):
    when_busy: WhenBusy = Field(
        default="queue",
        description="If the agent is at work in the chat: `queue` answers the message after those before it, `inject` "
        "gives it to the agent with its next step (or queues it where that cannot be), `reject` refuses it (409).",
    )


class EditRequest(_Body):
    """What the user says instead."""

    content: Content = Field(description="Text, or parts.")
    include_thinking: bool = Field(default=False, description="Stream the model's visible reasoning too.")


class MessageSendRequest(EditRequest, _Message):
    """What the user says."""


class InvokeRequest(_Message):
    """A message for an agent, in a conversation found by key or in a new one."""

    message: Content = Field(description="Text, or parts.")
    session_key: str | None = Field(
        default=None, min_length=1, max_length=500, description="Continues the conversation of this key."
    )
    reset: bool | None = Field(default=None, description="Archive the conversation of this key and begin another.")
    input: dict[str, JsonValue] | None = Field(default=None, description="Values for a new conversation.")


class ToolApprovalRequest(_Body):
    """The decision on a call."""

    approved: bool = Field(description="Whether it may be carried out.")
    always_allow: bool | None = Field(default=None, description="Do not ask again for this tool in this chat.")


class ChatResponse(_Answer):
    """A chat."""

    id: UUID = Field(description="Its id.")
    user_id: UUID = Field(description="Whose it is.")
    user_email: str = Field(description="The user's address.")
    agent_id: UUID | None = Field(description="The agent.")
    agent_namespace: str | None = Field(description="The agent's namespace.")
    agent_name: str | None = Field(description="The agent's name.")
    title: str = Field(description="Its title.")
    archived: bool = Field(default=False, description="Whether it is hidden from the list.")
    session_key: str | None = Field(default=None, description="The key that `invoke` finds it by.")
    parent_chat_id: UUID | None = Field(default=None, description="The chat whose agent has begun it.")
    expires_at: datetime | None = Field(default=None, description="When it will be deleted.")
    keep_alive: bool | None = Field(default=None, description="Kept for clients.")
    active_channel_id: str | None = Field(default=None, description="The channel of the turn that is running.")
    branch: int = Field(default=0, description="The active branch: the one that is shown and goes on.")
    created_at: datetime = Field(description="When it was created.")
    updated_at: datetime = Field(description="When something last happened in it.")
    last_message_at: datetime | None = Field(default=None, description="When something was last said.")

    @classmethod
    def of(cls, chat: ChatRow) -> "ChatResponse":
        """A chat's row as it is shown."""
        return cls(**_fields(chat))


def _fields(chat: ChatRow) -> dict[str, object]:
    names = [name for name in ChatResponse.model_fields if name != "active_channel_id"]
    channel = None if chat.active_channel_id is None else str(chat.active_channel_id)
    return {**{name: getattr(chat, name) for name in names}, "active_channel_id": channel}


class MessageResponse(_Answer):
    """A message."""

    id: UUID = Field(description="Its id.")
    chat_id: UUID = Field(description="Its chat.")
    role: str = Field(description="`user`, `assistant` or `tool`.")
    content: str | None = Field(description="Its text; parts are a JSON text, with addresses of what is attached.")
    tool_calls: list[JsonValue] | None = Field(description="What the model asked for.")
    tool_call_id: str | None = Field(description="The call that a tool's message answers.")
    name: str | None = Field(description="The tool.")
    created_at: datetime = Field(description="When it was said.")
    branch: int = Field(default=0, description="The branch that begins with it or with a message before it.")

    @classmethod
    def of(cls, row: MessageRow, settings: Settings) -> "MessageResponse":
        """A message's row as it is shown."""
        return cls(**message_fields(row, settings))


def message_fields(row: MessageRow, settings: Settings) -> dict[str, object]:
    """The fields of a message."""
    names = ("id", "chat_id", "role", "tool_calls", "tool_call_id", "name", "created_at", "branch")
    return {
        **{name: getattr(row, name) for name in names},
        "content": shown(row.content, row.parts, row.chat_id, settings),
    }


class BranchMessageResponse(MessageResponse):
    """A message and its place among the branches."""

    parent_message_id: UUID | None = Field(default=None, description="The message it follows.")
    sibling_ids: list[UUID] = Field(
        default=[], description="What follows that message, here and on other branches, the oldest first; else nothing."
    )


class SummaryResponse(_Answer):
    """What the model is given instead of older messages, if they do not fit any more."""

    message_id: UUID = Field(description="The last message it covers.")
    messages: int = Field(description="How many messages it stands for.")
    content: str = Field(description="What it says of them.")
    provider: str = Field(description="The LLM provider that has written it.")
    model: str = Field(description="The model that has written it.")
    created_at: datetime = Field(description="When it was written.")

    @classmethod
    def of(cls, row: SummaryRow) -> "SummaryResponse":
        """A summary's row as it is shown."""
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


class PendingApprovalResponse(_Answer):
    """A call that waits for a decision."""

    tool_call_id: str = Field(description="The call.")
    function_namespace: str = Field(description="Namespace of what is called.")
    function_name: str = Field(description="Name of what is called.")
    arguments: dict[str, JsonValue] = Field(default={}, description="With what.")

    @classmethod
    def of(cls, row: ToolCallRow) -> "PendingApprovalResponse":
        """A call's row as it is shown."""
        call = as_call(row)
        namespace, name = call.function()
        return cls(
            tool_call_id=call.id, function_namespace=namespace, function_name=name, arguments=call.parsed() or {}
        )


class PendingInputResponse(_Answer):
    """A question of the agent to the user."""

    tool_call_id: str = Field(description="The call that asks.")
    question: str = Field(description="What is asked.")
    options: list[str] | None = Field(default=None, description="Answers to choose from; others are accepted too.")
    expires_at: datetime | None = Field(default=None, description="When the agent goes on without an answer.")
    created_at: datetime | None = Field(default=None, description="When it was asked.")

    @classmethod
    def of(cls, row: ToolCallRow) -> "PendingInputResponse":
        """A call's row as it is shown."""
        return cls.model_validate(
            {"tool_call_id": row.tool_call_id, "created_at": row.asked_at, **pending_input(as_call(row))}
        )


class QueuedMessageResponse(_Answer):
    """A message that is not part of the conversation yet."""

    id: UUID = Field(description="Its id, then and now.")
    content: str | None = Field(description="Its text; parts are a JSON text.")
    status: Literal["queued", "injected"] = Field(
        description="`queued`: it waits for a turn of its own. `injected`: the turn that runs hears it soon."
    )
    turn_id: UUID = Field(description="The turn that answers it.")
    channel_id: str = Field(description="Where the events of that turn can be read, before it begins too.")
    created_at: datetime = Field(description="When it was sent.")

    @classmethod
    def of(cls, row: QueuedMessageRow, turn: TurnRow, settings: Settings) -> "QueuedMessageResponse":
        """A message's row as it is shown."""
        return cls(
            id=row.id,
            content=shown(row.content, row.parts, row.chat_id, settings),
            status="queued" if turn.status == Status.QUEUED else "injected",
            turn_id=turn.id,
            channel_id=str(turn.channel_id),
            created_at=row.created_at,
        )


class TurnResponse(_Answer):
    """How the last message fared."""

    id: UUID = Field(description="Its id.")
    status: str = Field(
        description="`PENDING`, `RUNNING`, `WAITING`, `SUSPENDED`, `COMPLETED`, `FAILED` or `CANCELLED`."
    )
    error: str | None = Field(description="Why it failed.")
    channel_id: str = Field(description="Where its events can be read.")
    usage: dict[str, JsonValue] | None = Field(default=None, description="Calls of the model and their tokens.")

    @classmethod
    def of(cls, turn: TurnRow) -> "TurnResponse":
        """A turn's row as it is shown."""
        channel = str(turn.channel_id)
        return cls(id=turn.id, status=turn.status, error=turn.error, channel_id=channel, usage=turn.usage or None)


class ChatWithMessages(ChatResponse):
    """A chat and everything in it."""

    messages: list[BranchMessageResponse] = Field(description="What was said on the active branch, the oldest first.")
    pending_approvals: list[PendingApprovalResponse] = Field(default=[], description="Calls that wait for a decision.")
    last_turn: TurnResponse | None = Field(default=None, description="How the last message fared.")
    queued: list[QueuedMessageResponse] = Field(
        default=[], description="What was sent while the agent was at work and it has not heard yet, in its order."
    )


class SentResponse(MessageResponse):
    """The agent's answer."""

    status: str = Field(
        description="`completed`, `input_required` or `in_progress`; `injected`: completed, by a turn that ran already."
    )
    pending_inputs: list[PendingInputResponse] = Field(default=[], description="Questions of the agent.")
    pending_approvals: list[PendingApprovalResponse] = Field(default=[], description="Calls that wait for a decision.")
    channel_id: str | None = Field(description="Where the events of this turn can be read.")
    usage: dict[str, JsonValue] | None = Field(description="Calls of the model and their tokens.")


class InvokeResponse(_Answer):
    """The agent's answer as one text."""

    reply: str = Field(description="What the agent says.")
    chat_id: UUID = Field(description="The conversation.")
    session_key: str | None = Field(default=None, description="Its key.")
    usage: dict[str, JsonValue] | None = Field(default=None, description="Calls of the model and their tokens.")
    status: str = Field(description="`completed`, `input_required`, `in_progress` or `injected`, as of a message.")
    pending_inputs: list[PendingInputResponse] = Field(default=[], description="Questions of the agent.")
    channel_id: str | None = Field(description="Where the events of this turn can be read.")


class ApprovalResponse(_Answer):
    """What became of a decision."""

    status: str = Field(description="`approved` or `rejected`.")
    tool_call_id: str = Field(description="The call.")
    channel_id: str = Field(description="Where the turn goes on, or which calls still wait.")
    message: str = Field(description="The same in words.")
    resume: str = Field(description="`queued`: the agent goes on. `waiting`: other calls wait for decisions.")


class StopResponse(_Answer):
    """What became of the turn."""

    status: str = Field(description="`stopped`, or `idle` if nothing was running.")
    withdrawn: int = Field(default=0, description="How many queued messages were withdrawn.")
