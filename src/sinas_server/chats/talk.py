"""A chat and its agent as they are now, in one cheap round trip: what each message begins with, on both sides."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Uuid, and_, bindparam, func, or_, select

from sinas_server.agents.kind import AGENT, AgentSpec
from sinas_server.chats.tables import OPEN, ChatRow, Status, ToolCallRow, TurnRow
from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import NotFoundError
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Database

IS_OPEN = or_(
    *(TurnRow.status == status.value for status in OPEN),
    and_(TurnRow.status == Status.CANCELLED.value, TurnRow.finished_at.is_(None)),
)
"""A turn that has not come to its end: a canceled one until somebody has settled it."""
_CHAT = ChatRow.__table__.columns
_AGENT = ResourceRow.__table__.columns
_TALK = (
    select(
        *(column.label(f"chat_{column.name}") for column in _CHAT),
        *(column.label(f"agent_{column.name}") for column in _AGENT),
        select(TurnRow.id).where(TurnRow.chat_id == ChatRow.id, IS_OPEN).exists().label("busy"),
        select(ToolCallRow.turn_id)
        .where(ToolCallRow.chat_id == ChatRow.id, ToolCallRow.whole_result.is_not(None))
        .exists()
        .label("paged"),
    )
    .join_from(
        ChatRow,
        ResourceRow,
        and_(ResourceRow.id == ChatRow.agent_id, ResourceRow.kind == AGENT.name, ResourceRow.deleted_at.is_(None)),
        isouter=True,
    )
    .where(
        ChatRow.id == bindparam("of_chat", type_=Uuid),
        or_(ChatRow.expires_at.is_(None), ChatRow.expires_at > func.now()),
    )
)


@dataclass(frozen=True)
class Talk:
    """A chat, its agent unless that is gone, whether a turn is open, and whether it has results of several pages."""

    chat: ChatRow
    agent: Resource[AgentSpec] | None
    busy: bool
    paged: bool


async def read_talk(database: Database, chat_id: UUID) -> Talk | None:
    """What is known of a chat; None for one that does not exist any more."""
    rows = await database.lookup(_TALK, {"of_chat": chat_id})
    if not rows:
        return None
    values = rows[0]._asdict()
    chat = ChatRow.loaded({column.name: values[f"chat_{column.name}"] for column in _CHAT})
    agent = ResourceRow.loaded({column.name: values[f"agent_{column.name}"] for column in _AGENT})
    return Talk(
        chat,
        None if agent.id is None else store.load(database, AGENT, agent),
        bool(values["busy"]),
        bool(values["paged"]),
    )


def allowed_agent(caller: Caller, chat: ChatRow, agent: Resource[AgentSpec] | None) -> Resource[AgentSpec]:
    """The chat's agent if the caller may still chat with it. Raises 404 or 403."""
    if agent is None or not agent.is_active:
        raise NotFoundError(f"The agent '{chat.agent_namespace}/{chat.agent_name}' of this chat is not available")
    caller.require(AGENT.plural, "chat", agent.owner_id, agent.namespace, agent.name)
    return agent
