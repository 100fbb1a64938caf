"""The way through a conversation that has branches: from its first message to the end of one branch."""

from uuid import UUID

from sqlalchemy import CTE, BigInteger, ColumnElement, Select, and_, cast, func, literal, select

from sinas_server.chats.tables import BranchRow, MessageRow
from sinas_server.kernel.unit import Db

_NO_END = 2**63 - 1


def stretches(chat_id: ColumnElement[UUID], branch: ColumnElement[int], most: ColumnElement[int] | None = None) -> CTE:
    """The parts of a branch's path, the last first: `branch`, and `upto`, the last `seq` of it that is on the path.

    `most`: only as many parts as it takes for the newest so many messages.
    """
    start = [branch.label("branch"), literal(_NO_END, BigInteger).label("upto")]
    if most is not None:
        start.append(cast(most, BigInteger).label("wanted"))
    part = select(*start).cte("parts", recursive=True)
    above = select(BranchRow.parent, BranchRow.fork_seq).where(
        BranchRow.chat_id == chat_id, BranchRow.number == part.c.branch
    )
    if most is not None:
        found = select(literal(1)).where(*_inside(chat_id, part)).limit(most).correlate(part).subquery()
        left = part.c.wanted - select(func.count()).select_from(found).scalar_subquery()
        above = above.add_columns(left).where(part.c.wanted > 0)
    return part.union_all(above)


def _inside(chat_id: ColumnElement[UUID], part: CTE) -> tuple[ColumnElement[bool], ...]:
    """That a message is in a part of the path."""
    return MessageRow.chat_id == chat_id, MessageRow.branch == part.c.branch, MessageRow.seq <= part.c.upto


def newest_of(
    chat_id: ColumnElement[UUID], branch: ColumnElement[int], most: ColumnElement[int]
) -> Select[tuple[object, ...]]:
    """The newest messages of a branch's path, the newest first: costs the same however long it is."""
    path = stretches(chat_id, branch, most)
    newest = select(MessageRow.__table__).where(*_inside(chat_id, path))
    part = newest.order_by(MessageRow.seq.desc()).limit(most).lateral("part")
    return select(part).select_from(path.join(part, path.c.wanted > 0)).order_by(part.c.seq.desc()).limit(most)


def path_of(chat_id: UUID, branch: int) -> Select[MessageRow]:
    """The messages of a path, in no order."""
    path = stretches(literal(chat_id), literal(branch))
    return select(MessageRow).join(path, and_(*_inside(literal(chat_id), path)))


async def read_path(db: Db, chat_id: UUID, branch: int) -> list[MessageRow]:
    """The messages of a branch from the first of the conversation on."""
    return list(await db.scalars(path_of(chat_id, branch).order_by(MessageRow.seq)))


async def last_of(db: Db, chat_id: UUID, branch: int, *where: ColumnElement[bool]) -> MessageRow | None:
    """The last message of a branch's path for which this holds."""
    return await db.scalar(path_of(chat_id, branch).where(*where).order_by(MessageRow.seq.desc()).limit(1))
