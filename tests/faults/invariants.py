"""What must hold however the processes died: one end for everything, messages once and in order, no run too many."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson

from tests.faults.harness import Json, Stack, eventually
from tests.faults.reader import Reader

INTERRUPTED = "interrupted, outcome unknown"


def conversation(chat: Json) -> list[str]:
    """What was said in a chat, and in the places of their results the names of what was called."""
    return [
        message["name"].rpartition("t__")[2] if message["role"] == "tool" else message["content"]
        for message in chat["messages"]
    ]


class Invariants:
    """What has begun since this was made, and whether all is well with it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._since = stack.rows("SELECT clock_timestamp() AS now")[0]["now"]

    async def ends(self) -> None:
        """Wait until every execution and every turn has ended, and nobody works any more."""
        await eventually(self._no_open, "not everything ends")
        await self.stack.rest()

    async def _no_open(self) -> bool:
        open_ones = self.stack.rows(
            "SELECT id FROM executions WHERE completed_at IS NULL"
            " UNION ALL SELECT id FROM turns WHERE finished_at IS NULL"
        )
        return not open_ones

    def executions(self) -> list[Json]:
        """Those that began since, in their order."""
        return self.stack.rows(
            "SELECT * FROM executions WHERE created_at >= %(since)s ORDER BY created_at", since=self._since
        )

    def completed(self) -> int:
        """How many of them have completed."""
        query = "SELECT count(*) AS n FROM executions WHERE created_at >= %(since)s AND status = 'COMPLETED'"
        return int(self.stack.rows(query, since=self._since)[0]["n"])

    def runs(self, execution: Json) -> tuple[int, int]:
        """How often the code of an execution began, and how often it came to its end."""
        began, ended = (self._marks(execution, word) for word in ("began", "ended"))
        return len(began), len(ended)

    def _marks(self, execution: Json, word: str) -> set[str]:
        start = f"{word}.{execution['id']}."
        return {mark for mark in self.stack.marks() if mark.startswith(start)}  # one that was repeated counts once

    def answered(self, chat: Json, *readers: Reader) -> None:
        """A chat of one turn, as it was right after `done`: all said once and in order, and readers heard just that."""
        said = chat["messages"]
        assert chat["last_turn"]["status"] == "COMPLETED", chat["last_turn"]
        answers = [message for message in said if message["role"] == "assistant"]
        calls = [call for answer in answers for call in answer["tool_calls"] or ()]
        results = [message for message in said if message["role"] == "tool"]
        shape = [message["role"] for message in said]
        assert shape == ["user", *(["assistant", *["tool"] * len(calls)] if calls else []), "assistant"], shape
        assert [result["tool_call_id"] for result in results] == [call["id"] for call in calls]
        self.told(chat["last_turn"]["id"], *readers)

    def told(self, turn: object, *readers: Reader, refused: Sequence[str] = ()) -> None:
        """Each answer of a turn that has completed was paid once, and readers heard just what was said in it.

        `refused`: calls that were never carried out, because the user did not want it.
        """
        query = "SELECT id::text, role, step, content, tool_calls, tool_call_id FROM messages WHERE turn_id = %(turn)s"
        said = self.stack.rows(query + " ORDER BY seq", turn=turn)
        answers = [message for message in said if message["role"] == "assistant"]
        calls = [call["id"] for answer in answers for call in answer["tool_calls"] or ()]
        spent = self.stack.rows("SELECT step FROM usage WHERE turn_id = %(turn)s ORDER BY step", turn=turn)
        assert [row["step"] for row in spent] == list(range(len(answers))), "each answer is paid once"
        for reader in readers:
            assert reader.end is not None
            assert (reader.end.name, reader.end.data.get("status")) == ("done", "completed")
            assert [reader.texts[phase] for phase in sorted(reader.texts)] == [answer["content"] for answer in answers]
            assert sorted(reader.started) == sorted(call for call in calls if call not in refused)
            assert reader.results == {row["tool_call_id"]: row["content"] for row in said if row["role"] == "tool"}
            assert reader.injected == [row["id"] for row in said if row["role"] == "user" and row["step"] is not None]

    def called(self, chat: Json, *, worker_lost: bool = False) -> None:
        """Each call of a chat ran as often as decision 29 allows, and its result is what the model was told."""
        rows = {row["tool_call_id"]: row for row in self.executions() if str(row["chat_id"]) == chat["id"]}
        results = {message["tool_call_id"]: message for message in chat["messages"] if message["role"] == "tool"}
        assert rows.keys() == results.keys()
        for call_id, row in rows.items():
            began, ended = self.runs(row)
            told = results[call_id]["content"]
            if not worker_lost:
                assert (row["status"], began, ended) == ("COMPLETED", 1, 1), row
            elif row["name"] == "once":
                assert began <= 1, row
            if row["status"] == "COMPLETED":
                assert told == orjson.dumps(row["output_data"]).decode()
            else:
                assert row["name"] == "once", row
                assert INTERRUPTED in told

    async def delegated(self, chat: Json) -> None:
        """The one call of a chat's agent began one chat of another agent, which was asked once and answered once."""
        [told] = [orjson.loads(message["content"]) for message in chat["messages"] if message["role"] == "tool"]
        rows = self.stack.rows("SELECT id FROM chats WHERE parent_chat_id = %(chat)s", chat=chat["id"])
        assert [str(row["id"]) for row in rows] == [told["chat_id"]]
        child = await self.stack.ask("GET", f"/chats/{told['chat_id']}")
        assert child["last_turn"]["status"] == "COMPLETED"
        said = [(message["role"], message["content"]) for message in child["messages"]]
        assert said == [("user", "roll"), ("assistant", told["response"])]
        assert chat["messages"][-1]["content"] == f"It said: {told['response']}"

    def check(self) -> None:
        """Every end came once, and nothing changed after it."""
        ended = Counter(row["id"] for row in self.stack.rows("SELECT id FROM fault_ends"))
        rows: list[dict[str, Any]] = self.executions()
        rows += self.stack.rows("SELECT id, status FROM turns WHERE created_at >= %(since)s", since=self._since)
        assert rows, "nothing has happened"
        assert {str(row["id"]): (ended[row["id"]], row["status"]) for row in rows if ended[row["id"]] != 1} == {}
