"""What a Sinas function is given and may return, for editors and type checkers.

`sinas types` writes this file beside your functions. It does not exist where they run, so import it for checking only:

    from __future__ import annotations
    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        from sinas_types import Context

    def handler(input_data: dict, context: Context): ...
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

Trigger = Literal["AGENT", "API", "WEBHOOK", "SCHEDULE", "CDC", "HOOK", "MANUAL"]

class Context(TypedDict):
    """The second argument of `handler`."""

    user_id: str
    """Id of the user for whom the function runs."""
    user_email: str
    access_token: str
    """For calls to this platform on the user's behalf; void when the execution ends."""
    execution_id: str
    trigger_type: Trigger
    chat_id: str
    """The chat whose agent called the function; empty otherwise."""
    secrets: Mapping[str, str]
    """Name → value, in the shared pool only; empty in the sandbox."""

class Message(TypedDict):
    role: Literal["user", "assistant"]
    content: str

class AgentName(TypedDict):
    namespace: str
    name: str

class MessageHookInput(TypedDict):
    """What a message hook is given."""

    message: Message
    chat_id: str
    agent: AgentName
    session_key: str | None
    user_id: str

class MessageHookOutput(TypedDict, total=False):
    """What a message hook may return; `None` or `{}` passes the message on."""

    content: str
    block: bool
    reply: str

class CdcInput(TypedDict):
    """What a function is given about changed rows."""

    table: str
    operation: str
    rows: list[dict[str, Any]]
    poll_column: str
    count: int
    timestamp: str

class PreUploadFilterInput(TypedDict):
    """What a content filter is given."""

    content_base64: str
    namespace: str
    collection: str
    filename: str
    content_type: str
    size_bytes: int
    user_metadata: dict[str, Any]
    user_id: str

class PreUploadFilterOutput(TypedDict):
    """What a content filter returns."""

    approved: bool
    reason: NotRequired[str | None]
    content_base64: NotRequired[str | None]
    metadata: NotRequired[dict[str, Any] | None]

class PostUploadInput(TypedDict):
    """What a function is given about a file that was stored."""

    file_id: str
    namespace: str
    collection: str
    filename: str
    version: int
    file_path: str
    user_id: str
    metadata: dict[str, Any]
