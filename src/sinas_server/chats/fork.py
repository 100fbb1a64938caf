"""The branches of a conversation: beginning one, finding them, and which of them goes on."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, ScalarSelect, func, insert, select, update

from sinas_server.chats.path import last_of, read_path
from sinas_server.chats.tables import BranchRow, ChatRow, MessageRow, TurnRow
from sinas_server.chats.views import BranchMessageResponse, message_fields
from sinas_server.kernel.errors import NotFoundError
from sinas_server.kernel.unit import Db


async def go_on_after(db: Db, chat: ChatRow, message: MessageRow | None) -> None:
    """Have a chat, locked, go on after a message, or from the beginning: in a new branch, unless nothing follows."""
    seq, owner = (0, 0) if message is None else (message.seq, message.branch)
    for number in dict.fromkeys((chat.branch, owner)):
        last = await last_of(db, chat.id, number)
        if last is not None and last.seq == seq:
            await activate(db, chat, number)
            return
    newest = select(func.coalesce(func.max(BranchRow.number), 0)).where(BranchRow.chat_id == chat.id)
    number = 1 + (await db.execute(newest)).scalar_one()
    await db.execute(insert(BranchRow).values(chat_id=chat.id, number=number, parent=owner, fork_seq=seq))
    await activate(db, chat, number)


async def activate(db: Db, chat: ChatRow, number: int) -> None:
    """Have a chat, locked, go on with one of its branches."""
    await db.execute(update(ChatRow).where(ChatRow.id == chat.id).values(branch=number, updated_at=func.now()))
    await db.refresh(chat)


async def known_branch(db: Db, chat: ChatRow, number: int) -> int:
    """The number of a branch. Raises `NotFoundError` for one that the chat does not have."""
    if number != 0 and await db.get(BranchRow, (chat.id, number)) is None:
        raise NotFoundError("branch not found")
    return number


async def message_in(db: Db, chat: ChatRow, message_id: UUID) -> MessageRow:
    """A message of a chat, on whichever branch. Raises `NotFoundError`."""
    message = await db.scalar(select(MessageRow).where(MessageRow.id == message_id, MessageRow.chat_id == chat.id))
    if message is None:
        raise NotFoundError("message not found")
    return message


@dataclass(frozen=True)
class Fork:
    """A branch and where it begins. Messages are told by their ids."""

    number: int
    parent: int
    fork_seq: int
    created_at: datetime
    after: UUID | None
    """The message that it follows; None where it begins the conversation anew."""
    first: UUID | None
    """Its first message of its own, and the last; None while it has none."""
    last: UUID | None
    elder: UUID | None
    """What followed on the branch that it comes from."""


async def forks_of(db: Db, chat_id: UUID) -> list[Fork]:
    """All branches of a chat but the first, in the order in which they began."""

    def message(order: ColumnElement[int], *where: ColumnElement[bool]) -> ScalarSelect[UUID]:
        found = select(MessageRow.id).where(MessageRow.chat_id == BranchRow.chat_id, *where)
        return found.order_by(order).limit(1).correlate(BranchRow).scalar_subquery()

    oldest, newest = MessageRow.seq.asc(), MessageRow.seq.desc()
    own, above = MessageRow.branch == BranchRow.number, MessageRow.branch == BranchRow.parent
    query = select(
        BranchRow.number,
        BranchRow.parent,
        BranchRow.fork_seq,
        BranchRow.created_at,
        message(oldest, above, MessageRow.seq == BranchRow.fork_seq),
        message(oldest, own),
        message(newest, own),
        message(oldest, above, MessageRow.seq > BranchRow.fork_seq),
    )
    rows = await db.execute(query.where(BranchRow.chat_id == chat_id).order_by(BranchRow.number))
    return [Fork(*row) for row in rows]


def siblings(forks: list[Fork]) -> dict[UUID, list[UUID]]:
    """What else follows the message that a message follows, itself among them, the oldest first."""
    groups = defaultdict[tuple[int, int], dict[UUID, None]](dict)
    for fork in forks:
        found = (fork.elder, fork.first)
        groups[fork.parent, fork.fork_seq].update({known: None for known in found if known is not None})
    return {member: list(group) for group in groups.values() for member in group if len(group) > 1}


async def said_in(db: Db, chat: ChatRow, branch: int) -> list[BranchMessageResponse]:
    """The messages of a branch from the first of the conversation on, as they are shown."""
    rows = await read_path(db, chat.id, branch)
    beside = siblings(await forks_of(db, chat.id))
    parents = [None, *(row.id for row in rows)]
    return [
        BranchMessageResponse(
            **message_fields(row, db.settings), parent_message_id=parent, sibling_ids=beside.get(row.id, [])
        )
        for row, parent in zip(rows, parents, strict=False)
    ]


async def branch_with(db: Db, chat: ChatRow, message: MessageRow) -> int:
    """The branch through a message: the active one if it is, else the one that was last used."""
    through = {message.branch}
    for fork in await forks_of(db, chat.id):  # a branch is younger than the one that it comes from
        if fork.parent in through and (fork.parent != message.branch or fork.fork_seq >= message.seq):
            through.add(fork.number)
    if chat.branch in through:
        return chat.branch
    used = select(TurnRow.branch).where(TurnRow.chat_id == chat.id, TurnRow.branch.in_(through))
    last = await db.scalar(used.order_by(TurnRow.created_at.desc()).limit(1))
    return message.branch if last is None else last
