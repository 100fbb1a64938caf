"""Events as a projection of the journal, and what of them a reader at any place has not seen."""

from uuid import uuid4

from hypothesis import given
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
    spoken,
    text_events,
)


def runs_of(pieces: list[tuple[bool, str]]) -> Runs:
    runs: Runs = ()
    for thinks, text in pieces:
        runs = merged(runs, "thinking" if thinks else "content", text)
    return runs


RUNS = st.lists(st.tuples(st.booleans(), st.text(max_size=5)), max_size=5).map(runs_of)


@given(RUNS, st.integers(0, 30), st.integers(0, 1000))
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
def test_cutting_loses_nothing(runs: Runs, at: int) -> None:
    assert merged_all(cut(runs, 0, at), cut(runs, at)) == runs
    assert length(cut(runs, 0, at)) == min(at, length(runs))
    assert content(runs) == "".join(text for kind, text in runs if kind == "content")


def call(index: int, order: int | None, *, asks: bool = False, approved: bool | None = None) -> Call:
    status = "done" if order else "awaiting_approval" if asks else "pending"
    return Call(index, f"c{index}", "f", "{}", {"target": "a/b"}, "", status, asks, approved, finish_order=order)


def story(segment: Segment) -> list[tuple[str, str]]:
    return [(str(event.position), event.name) for event in segment.events()]


def test_the_places_of_events_follow_from_the_journal() -> None:
    ids = (uuid4(), uuid4(), uuid4())
    calls = (call(0, 2), call(1, 1), call(2, None, asks=True))
    going = Segment(*ids).with_answer(Answer(0, (("content", "Hi"),), calls=calls))
    begun = [("1-2", "message"), ("2-1", "tool_start"), ("2-2", "tool_start"), ("2-4", "tool_end"), ("2-5", "tool_end")]
    assert story(going) == begun
    paused = Segment(*ids, answers=going.answers, suspended_step=0, end=("done", {"status": "suspended"}))
    assert story(paused) == [*begun, ("2-9", "approval_required"), ("3-1", "done")]
    again = Segment(*ids, after_approval=True, answers=going.answers, suspended_step=0, awaiting=(2,), end=paused.end)
    assert story(again) == [("2-9", "approval_required"), ("3-1", "done")]
    decided = (*calls[:2], call(2, 3, asks=True, approved=True))
    on = Segment(
        *ids, after_approval=True, answers={0: Answer(0, (), calls=decided), 1: Answer(1, (("content", "A"),))}
    )
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
