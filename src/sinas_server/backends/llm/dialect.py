"""Names and ids of tool calls as providers take them."""

import hashlib
import re
from dataclasses import dataclass

from sinas_server.backends.llm import ToolCall, ToolMessage

MAX_NAME = 64
"""The longest tool name that every provider takes."""


@dataclass(frozen=True)
class Dialect:
    """How a provider wants messages written: which ids of tool calls it takes."""

    call_id: re.Pattern[str] = re.compile(r".{1,40}", re.DOTALL)
    call_id_length: int = 24
    """Of the ids that stand for those it does not take."""

    def id_of(self, call: ToolCall | ToolMessage) -> str:
        """A call's id as this provider takes it: itself if it fits, else letters and digits that stand for it."""
        found = call.id if isinstance(call, ToolCall) else call.call_id
        if self.call_id.fullmatch(found):
            return found
        return hashlib.sha256(found.encode()).hexdigest()[: self.call_id_length]


def sent_name(name: str) -> str:
    """A tool's name as every provider takes it. Ours are so already; models make up others, which history holds."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:MAX_NAME] or "_"
