"""What of a long conversation the model is given: never a call without its results."""

import random
from dataclasses import replace
from uuid import UUID

import pytest

from sinas_server.chats.history import Said, whole
from sinas_server.settings import Settings
from tests.chats.conftest import Declare, open_chat, stream, text_of
from tests.people import Person


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A model is given few messages."""
    return settings.model_copy(update={"max_history_messages": 3})


def said(roles: str) -> list[Said]:
    """Messages by their first letters: `u`ser, `i`njected by the user, `a`ssistant, `t`ool."""
    names = {"u": "user", "i": "user", "a": "assistant", "t": "tool"}
    return [
        Said(n, UUID(int=n), names[role], role, None, None, None, None, None, None if role == "u" else 0)
        for n, role in enumerate(roles)
    ]


def kept(roles: str, most: int) -> list[int]:
    return [row.seq for row in whole(said(roles), UUID(int=0), most)]


def test_a_short_history_is_whole() -> None:
    assert kept("uauatta", 10) == [0, 1, 2, 3, 4, 5, 6]


def test_it_begins_with_what_a_user_said() -> None:
    assert kept("auatta", 6) == [1, 2, 3, 4, 5]
    assert kept("ttaua", 5) == [3, 4]


def test_a_turn_longer_than_the_limit_keeps_its_question_and_its_last_steps() -> None:
    rows = said("uattattatta")
    given = [rows[0], *rows[-4:]]  # as read: the question, and the newest four
    assert [row.seq for row in whole(given, rows[0].id, 4)] == [0, 7, 8, 9, 10]
    given = [rows[0], *rows[-3:]]
    assert [row.seq for row in whole(given, rows[0].id, 3)] == [0, 10]


def test_all_that_a_user_said_in_the_turn_stays() -> None:
    rows = said("uattiattattia")
    assert [row.seq for row in whole([rows[0], rows[4], *rows[-6:]], rows[0].id, 6)] == [0, 4, 8, 9, 10, 11, 12]
    assert [row.seq for row in whole(rows, rows[0].id, 4)] == [0, 4, 11, 12]  # as read for a summary
    assert [row.seq for row in whole(said("uaua") + rows[4:], UUID(int=2), 2)] == [2, 4, 11, 12]


def test_the_last_step_is_whole_however_many_results_it_has() -> None:
    rows = said("uatattttt")
    assert [row.seq for row in whole(rows, rows[0].id, 3)] == [0, 3, 4, 5, 6, 7, 8]
    assert [row.seq for row in whole([rows[0], *rows[-4:]], rows[0].id, 3)] == [0]  # the caller has to read more


def test_older_messages_go_many_at_once() -> None:
    """So that what a provider keeps of one request is the beginning of the next ones too."""
    dice = random.Random(1)  # noqa: S311 - to be the same each time
    rows = [replace(row, id=UUID(int=dice.getrandbits(128))) for row in said("ua" * 300)]
    begins = []
    for end in range(101, 600, 2):  # each turn ends with what the user has just said
        given = whole(rows[:end], rows[end - 1].id, 100)
        assert 75 <= len(given) <= 100
        assert given[0].role == "user"
        begins.append(given[0].seq)
    assert begins == sorted(begins)
    assert len(set(begins)) < len(begins) / 4


def test_what_is_answered_does_not_go_before_it_must() -> None:
    rows = [replace(row, id=UUID(int=100 - row.seq)) for row in said("uauauauat" + "ta" * 10)]
    given = whole(rows, rows[6].id, len(rows) - 1)
    assert given[0].seq == 6
    asked_first = whole(rows, rows[2].id, len(rows) - 1)  # what the user has said meanwhile comes later
    assert asked_first[0].seq == 2


@pytest.mark.usefixtures("worker")
async def test_a_model_gets_all_results_of_a_step_that_alone_is_longer_than_the_limit(
    declare: Declare, user: Person
) -> None:
    calls = [{"tool": "shop/look", "arguments": {"n": n}} for n in range(20)]
    agent = await declare(
        "one",
        rules=[
            {"when": {"contains": "go"}, "call": calls},
            {"when": {"after_tool": "shop/look"}, "answer": "{{ message }}: {{ every['shop/look'] | length }}"},
        ],
        enabled_functions=["shop/look"],
    )
    assert text_of(await stream(user, await open_chat(user, agent), "go")) == "go: 20"
