"""What of a long conversation the model is given: never a call without its results."""

import random
from dataclasses import replace
from uuid import UUID

from sinas_server.chats.history import Said, whole


def said(roles: str) -> list[Said]:
    """Messages by their first letters: `u`ser, `a`ssistant, `t`ool."""
    names = {"u": "user", "a": "assistant", "t": "tool"}
    return [Said(n, UUID(int=n), names[role], role, None, None, None, None, None) for n, role in enumerate(roles)]


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
