"""The ids of what the call of an agent begins: they follow from the call, so that it begins at most once."""

from dataclasses import dataclass
from uuid import UUID, uuid5

AGENTS = "agents"
"""The name of the toolset of agents."""


@dataclass(frozen=True)
class ChildIds:
    """The chat, turn and first channel of a called agent."""

    chat: UUID
    turn: UUID
    channel: UUID

    @classmethod
    def of(cls, turn_id: UUID, step: int, index: int) -> "ChildIds":
        """Those that the call (turn, step, index) begins."""
        chat, turn, channel = (uuid5(turn_id, f"{step}.{index}.{what}") for what in ("chat", "turn", "channel"))
        return cls(chat, turn, channel)
