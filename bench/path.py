"""Reading the newest messages of long and of branched conversations, beside the plain query and a walk by parents.

Usage: python -m bench.path. Prints one JSON object: the median of the plain query in milliseconds, and ratios to it.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import Integer, Uuid, bindparam, insert, select, text

from sinas_server.backends.embedded import embedded_servers
from sinas_server.chats.path import newest_of
from sinas_server.chats.tables import BranchRow, ChatRow, MessageRow, TurnRow
from sinas_server.kernel.tables import Base
from sinas_server.kernel.unit import Database
from sinas_server.roles import open_runtime
from sinas_server.settings import Settings

MESSAGES, MOST, ROUNDS = 20_000, 100, 300
DEPTHS = (0, 10, 100, 1000)
CHAT = bindparam("of_chat", type_=Uuid)
BRANCH, NEWEST = (bindparam(name, type_=Integer) for name in ("of_branch", "most"))
OURS = newest_of(CHAT, BRANCH, NEWEST)
PLAIN = (
    select(MessageRow.__table__)
    .where(MessageRow.chat_id == CHAT, MessageRow.branch == 0)
    .order_by(MessageRow.seq.desc())
    .limit(NEWEST)
)
PARENTS = """CREATE TABLE walked AS SELECT messages.*, lag(id) OVER (PARTITION BY chat_id ORDER BY seq) AS parent_id
FROM messages; ALTER TABLE walked ADD PRIMARY KEY (id); ANALYZE"""
WALK = text(
    """WITH RECURSIVE path AS (SELECT walked.*, 1 AS n FROM walked WHERE id = :leaf
    UNION ALL SELECT walked.*, n + 1 FROM walked JOIN path ON walked.id = path.parent_id WHERE n < :most
    ) SELECT * FROM path"""
).bindparams(bindparam("leaf", type_=Uuid), NEWEST)


async def fill(database: Database, depth: int) -> TurnRow:
    """A chat whose messages are spread evenly over so many branches, each of the one before; a turn at its end."""
    chat_id, nobody = uuid4(), UUID(int=0)
    named = {"user_email": "", "agent_namespace": "n", "agent_name": "a", "title": "t", "input": {}}
    async with database.unit() as db:
        values = {"id": chat_id, "user_id": nobody, "agent_id": nobody, "branch": depth, **named}
        await db.execute(insert(ChatRow).values(values))
        parent = 0
        for branch in range(depth + 1):
            if branch:
                row = {"chat_id": chat_id, "number": branch, "parent": branch - 1, "fork_seq": parent}
                await db.execute(insert(BranchRow).values(row))
            roles = ("user", "assistant") * (MESSAGES // 2 // (depth + 1))
            rows = [{"chat_id": chat_id, "branch": branch, "role": role, "content": "x" * 200} for role in roles]
            made = await db.execute(insert(MessageRow).returning(MessageRow.seq), rows)
            parent = max(made.scalars())
    return TurnRow(chat_id=chat_id, branch=depth, message_id=nobody)


async def seconds(read: Callable[[], Awaitable[Sequence[object]]]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    assert len(await read()) == MOST
    return time.perf_counter() - began


async def measure(settings: Settings) -> dict[str, float]:
    """All ways take turns, so that they meet the same noise."""
    async with open_runtime(settings, "bench") as runtime:
        database = runtime.database
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        turns = {depth: await fill(database, depth) for depth in DEPTHS}
        async with database.engine.begin() as connection:
            for statement in PARENTS.split(";"):
                await connection.execute(text(statement))
        chat = {"of_chat": turns[0].chat_id, "most": MOST}
        leaf = {"leaf": (await database.lookup(PLAIN, chat))[0].id, "most": MOST}
        ways: dict[str, Callable[[], Awaitable[Sequence[object]]]] = {
            "plain": lambda: database.lookup(PLAIN, chat),
            "walk by parents": lambda: database.lookup(WALK, leaf),
        }
        for depth, turn in turns.items():
            values = {"of_chat": turn.chat_id, "of_branch": turn.branch, "most": MOST}
            ways[f"path, {depth} forks"] = partial(database.lookup, OURS, values)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                taken[name].append(await seconds(way))
    found = {name: statistics.median(times) for name, times in taken.items()}
    plain = found.pop("plain")
    return {"plain ms": plain * 1000, **{name: value / plain for name, value in found.items()}}


def main() -> None:
    """Starts servers of its own, measures, and prints."""
    with tempfile.TemporaryDirectory(prefix="sinas-bench-") as name, embedded_servers(Path(name)) as addresses:
        settings = Settings(
            _env_file=None,
            sinas_mode="embedded",
            sinas_data_dir=Path(name),
            secret_key=SecretStr("only-for-a-measurement" * 2),
            encryption_key=SecretStr(Fernet.generate_key().decode()),
            database_url=SecretStr(addresses[0]),
            redis_url=SecretStr(addresses[1]),
        )
        found = asyncio.run(measure(settings))
    print(json.dumps({what: round(value, 2) for what, value in found.items()}, indent=1))


if __name__ == "__main__":
    main()
