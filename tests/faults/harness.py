"""The stack seen from outside: starting and killing it, planning faults, asking its API and looking into its rows."""

import asyncio
import json
import os
import signal
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString, TypeVar

import httpx2
import psycopg
import redis
from psycopg.rows import dict_row

from sinas_server.backends.embedded.process import parents
from tests.faults.forks import Forks
from tests.faults.points import COMMANDS, comm, pids_of
from tests.faults.points import kill as kill_process
from tests.live import free_port

ROLES = ("api", "functions", "agents", "scheduler")
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Making one takes longer than a request, and nothing here is encrypted."""
PATIENCE = 60.0  # seconds; only a broken stack needs them
Json = dict[str, Any]
T = TypeVar("T")

ENDS = """
CREATE TABLE IF NOT EXISTS fault_ends (id uuid, status text, was text);
CREATE OR REPLACE FUNCTION fault_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO fault_ends VALUES (new.id, new.status, old.status); RETURN new; END $$;
"""
ENDED = {
    "executions": "new.status IN ('COMPLETED', 'FAILED', 'CANCELLED')",
    "turns": "new.finished_at IS NOT NULL",  # one that is stopped has its last status before it is settled
}


async def eventually(question: Callable[[], Awaitable[T | None]], why: str) -> T:
    """The first answer that is true; fails after a long time."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while asyncio.get_running_loop().time() < end:
        try:
            async with asyncio.timeout(PATIENCE):
                if answer := await question():
                    return answer
        except (OSError, psycopg.OperationalError, httpx2.TransportError, redis.RedisError) as error:
            why = f"{why}: {error}"[:300]
        await asyncio.sleep(0.03)
    raise AssertionError(why)


class Stack:
    """A running stack and its data directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self._forks = Forks(root, self.port)
        self._addresses: dict[str, str] = {}
        self._database: psycopg.Connection[Json] | None = None
        self._plans = 0
        self._falls = False
        """Whether all of it is to die, or has, and was not started again."""
        (root / "busy").mkdir()

    async def start(self) -> None:
        """Start it in its directory, whatever is there, and wait until it serves."""
        (self.root / "ready.json").unlink(missing_ok=True)
        self._forks.fork()

        async def ready() -> bool:
            assert not self.has_ended(), self.tail()
            return (self.root / "ready.json").exists()

        await eventually(ready, "the stack does not get ready")
        self._addresses = json.loads((self.root / "ready.json").read_text())
        with self._connect() as db:
            for table in ("executions", "turns"):
                db.execute(ENDS)
                # In these statements nothing comes from outside.
                ended = f"WHEN ({ENDED[table]} AND ({_changed(table)}))"
                db.execute(
                    f"CREATE OR REPLACE TRIGGER fault_end AFTER UPDATE ON {table} "
                    f"FOR EACH ROW {ended} EXECUTE FUNCTION fault_end()"
                )
        self._falls = False

    async def restart(self) -> None:
        """When the supervisor is killed, as planned, start it again."""

        async def ended() -> bool:
            return self.has_ended()

        await eventually(ended, "the plan does not happen")
        await self.start()

    def stop(self) -> None:
        """End it, whatever state it is in; fails if it does not end by itself."""
        if self._database is not None:
            self._database.close()
        self._forks.stop(PATIENCE)

    def has_ended(self) -> bool:
        """Whether its supervisor has ended, and all below it."""
        return self._forks.has_ended()

    def tail(self) -> str:
        """The end of what the stack wrote."""
        return (self.root / "stack.log").read_text()[-3000:]

    def kill(self, name: str) -> None:
        """Kill -9 a role or server now."""
        kill_process(self._forks.pid, name)

    @contextmanager
    def hanging(self, name: str) -> Iterator[None]:
        """Have a server and all its processes stand still meanwhile."""
        pids = pids_of(self._forks.pid, name)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    async def whole(self) -> None:
        """Wait until every role and server runs and the API answers."""
        me = self._forks.pid
        wanted = {*COMMANDS.values(), *(f"sinas-{role}" for role in ROLES)}

        async def runs() -> bool:
            assert not self.has_ended(), self.tail()
            return wanted <= {comm(pid) for pid, parent in parents().items() if parent == me}

        await eventually(runs, "not every process runs")
        async with self.client() as client:

            async def answers() -> bool:
                with redis.Redis.from_url(self.address("redis")) as servant:
                    servant.ping()
                return bool(self.rows("SELECT 1")) and (await client.get("/auth/me")).status_code == 200

            await eventually(answers, "the API does not answer")

    async def rest(self) -> None:
        """Wait until nobody works: much is done after the end that rows tell of, and passes points, or dies there."""
        me, roles = self._forks.pid, {f"sinas-{role}" for role in ROLES}

        async def rests() -> bool:
            alive = parents()  # a file of one that was killed stays; a server may have got its pid
            busy = [int(file.name) for file in (self.root / "busy").iterdir()]
            return not [pid for pid in busy if alive.get(pid) == me and comm(pid) in roles]

        await eventually(rests, "somebody works on and on")

    def plan(self, point: str, nth: int, actions: str) -> None:
        """Have this happen when a point is passed for the n-th time: processes to kill by name, `flush`, or `lose`."""
        self._plans += 1
        self._falls = "supervisor" in actions
        (self.root / "fired.json").unlink(missing_ok=True)
        fresh = self.root / "plan.new"
        fresh.write_text(json.dumps({"number": self._plans, "point": point, "nth": nth, "actions": actions.split()}))
        fresh.rename(self.root / "plan.json")

    @contextmanager
    def hold(self, point: str, nth: int) -> Iterator[None]:
        """Have who passes a point outside of transactions for the n-th time stand still there until the block ends.

        It does so once `happened` says so; from then on the block may plan what is to happen afterwards.
        """
        held = self.root / "held"
        held.touch()
        self.plan(point, nth, "hold")
        try:
            yield
        finally:
            held.unlink()

    async def happened(self) -> None:
        """Wait until the plan has happened, and there is a database to look at.

        The point may come after what the test has waited for.
        """

        async def fired() -> bool:
            return (self.root / "fired.json").exists() and not self._falls and bool(self.rows("SELECT 1"))

        await eventually(fired, "the plan does not happen")

    async def forget(self) -> None:
        """Forget a plan that has not happened; one that is happening comes to its end."""
        (self.root / "plan.json").unlink(missing_ok=True)

        async def at_rest() -> bool:
            return not (self.root / "firing.json").exists()

        await eventually(at_rest, "the plan does not come to its end")

    def forget_trace(self) -> None:
        """Forget the points passed so far."""
        os.truncate(self.root / "trace.log", 0)

    async def trace(self, *last: str) -> Counter[str]:
        """How often each point has been passed since, once the last ones of each process have been."""

        async def passed() -> Counter[str] | None:
            points = Counter((self.root / "trace.log").read_text().split())
            return points if points.keys() >= set(last) else None

        return await eventually(passed, f"{last} are not all passed")

    def marks(self) -> list[str]:
        """What functions reported from inside, ever."""
        file = self.root / "marks.log"
        return file.read_text().split() if file.exists() else []

    def address(self, name: str) -> str:
        """Of `database` or `redis`; or the administrator's `key`."""
        return self._addresses[name]

    def _connect(self) -> "psycopg.Connection[Json]":
        address = self.address("database").replace("+psycopg", "")
        return psycopg.connect(address, autocommit=True, row_factory=dict_row)

    def rows(self, query: LiteralString, **values: object) -> list[Json]:
        """Rows of a query. Raises `OperationalError` while the database is away."""
        if self._database is not None:
            try:
                return self._database.execute(query, values).fetchall()
            except psycopg.OperationalError:
                self._database.close()
        self._database = self._connect()
        return self._database.execute(query, values).fetchall()

    def forget_stream(self, channel: str | None) -> None:
        """Have Redis lose one channel."""
        with redis.Redis.from_url(self.address("redis")) as client:
            client.delete(f"sinas:stream:{channel}")

    def client(self) -> httpx2.AsyncClient:
        """A client with the administrator's key."""
        headers = {"Authorization": f"Bearer {self.address('key')}"}
        return httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=PATIENCE, verify=NO_TLS
        )

    async def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Json:
        """The answer to a request that must succeed."""
        async with self.client() as client:
            answer = await client.request(method, path, json=body)
        assert answer.status_code < 300, (answer.status_code, answer.text, self.tail())
        return dict(answer.json()) if answer.content else {}


def _changed(table: str) -> str:
    """That something changes that may not change of a row that has ended."""
    columns = {
        "executions": "status output_data::text error cause completed_at attempt",
        "turns": "status error finished_at attempt",
    }
    return " OR ".join(f"old.{column} IS DISTINCT FROM new.{column}" for column in columns[table].split())
