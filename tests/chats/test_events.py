"""Events as a projection of the journal, and what of them a reader at any place has not seen."""

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from hypothesis import given, settings
from hypothesis import strategies as st

from sinas_server.backends.stream import START, Position
from sinas_server.chats.events import (
    Answer,
    Call,
    Runs,
    Segment,
    content,
    cut,
    length,
    merged,
    payload,
    rest,
    round_suspended,
    spoken,
    text_events,
)
from sinas_server.chats.tables import CallStatus
from sinas_server.kernel.tool import Wait


def runs_of(pieces: list[tuple[bool, str]]) -> Runs:
    runs: Runs = ()
    for thinks, text in pieces:
        runs = merged(runs, "thinking" if thinks else "content", text)
    return runs


RUNS = st.lists(st.tuples(st.booleans(), st.text(max_size=5)), max_size=5).map(runs_of)


@given(RUNS, st.integers(0, 30), st.integers(0, 1000))
@settings(deadline=None)
def test_a_reader_gets_each_character_once(runs: Runs, seen: int, offset: int) -> None:
    seen = min(seen, length(runs))
    events = text_events(3, offset, runs)
    _, left = spoken(rest(events, Position(7, offset + seen)), 3)
    assert merged_all(cut(runs, 0, seen), left) == runs
    assert spoken(events, 3) == (0, runs)


def merged_all(first: Runs, second: Runs) -> Runs:
    for kind, text in second:
        first = merged(first, kind, text)
    return first


@given(RUNS, st.integers(0, 30))
@settings(deadline=None)
def test_cutting_loses_nothing(runs: Runs, at: int) -> None:
    assert merged_all(cut(runs, 0, at), cut(runs, at)) == runs
    assert length(cut(runs, 0, at)) == min(at, length(runs))
    assert content(runs) == "".join(text for kind, text in runs if kind == "content")


FIRST, SECOND = uuid4(), uuid4()
"""Channels."""


def call(index: int, order: int | None, on: UUID | None = FIRST, *, asks: bool = False) -> Call:
    status = CallStatus.DONE if order else CallStatus.WAITING if asks else CallStatus.PENDING
    waits = Wait.APPROVAL if asks else None
    made = Call(index, f"c{index}", "f", "{}", {"target": "a/b"}, "", status, asks, waits_for=waits, finish_order=order)
    return replace(made, started_on=on, finished_on=on if order else None)


def story(segment: Segment) -> list[tuple[str, str]]:
    return [(str(event.position), event.name) for event in segment.events()]


def test_the_places_of_events_follow_from_the_journal() -> None:
    ids = (uuid4(), uuid4(), FIRST)
    waiting = call(2, None, None, asks=True)
    calls = (call(0, 2), call(1, 1), waiting)
    going = Segment(*ids).with_answer(Answer(0, (("content", "Hi"),), calls=calls))
    begun = [("1-2", "message"), ("2-1", "tool_start"), ("2-2", "tool_start"), ("2-4", "tool_end"), ("2-5", "tool_end")]
    assert story(going) == begun
    asked = round_suspended([waiting], FIRST, {})
    ended: dict[str, Any] = {"suspended_step": 0, "asked": asked, "end": ("done", {"status": "suspended"})}
    paused = replace(going, **ended)
    end = [("2-7", "approval_required"), ("2-8", "round_suspended"), ("3-1", "done")]
    assert story(paused) == [*begun, *end]
    assert payload(paused.events()[-2]) == {"tool_call_ids": ["c2"], "channel_id": str(FIRST), "usage": None}
    ids = (*ids[:2], SECOND)
    again = Segment(*ids, resumed=True, answers=going.answers, **ended)
    assert story(again) == end
    decided = (*calls[:2], call(2, 3, SECOND, asks=True))
    on = Segment(*ids, resumed=True, answers={0: Answer(0, (), calls=decided), 1: Answer(1, (("content", "A"),))})
    assert story(on) == [("2-3", "tool_start"), ("2-6", "tool_end"), ("3-1", "message")]
    assert payload(on.events()[1])["tool_call_id"] == "c2"


def test_the_end_comes_after_everything_that_may_have_been_sent() -> None:
    ids = (uuid4(), uuid4(), uuid4())
    error = ("error", {"error": "x"})
    assert story(Segment(*ids, end=error)) == [("2-1", "error")]
    in_calls = Segment(*ids, answers={0: Answer(0, (), calls=(call(0, None),))}, end=error)
    assert in_calls.events()[-1].position > Position(2, 100)
    told = Segment(*ids, answers={0: Answer(0, (("content", "A"),), offset=9)}, end=("done", {"status": "completed"}))
    assert story(told) == [("1-9", "restart"), ("1-10", "message"), ("2-1", "done")]
    assert [event.name for event in rest(told.events(), START)] == ["restart", "message", "done"]
