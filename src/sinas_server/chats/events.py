"""What a channel's readers see, as a pure projection of the journal: the same journal gives the same events and ids.

A step has two phases: the model's answer (`2 * step + 1`) and its tool calls (`2 * step + 2`). An event's id is
`<phase>-<n>`. In the first phase n counts the characters sent; in the second, of c calls, call i starts at i + 1, the
j-th to finish ends at c + j, and the k-th thing that the user is asked comes at 2c + k, then that the round is
suspended; where the turn goes on instead with messages that were injected, these come at 2c + 1. The end stands at
`<last phase + 1>-1`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, cast
from uuid import UUID

import orjson
from pydantic import JsonValue

from sinas_server.backends.stream import Position, StreamEvent
from sinas_server.chats.nesting import AGENTS, ChildIds
from sinas_server.chats.tables import CallStatus
from sinas_server.kernel.tool import Wait

Kind = Literal["content", "thinking"]
Runs = tuple[tuple[Kind, str], ...]
"""Text in the order it was said; neighbors differ in kind and none is empty."""
Asked = tuple[str, Mapping[str, JsonValue]]
"""Name and data of an event at the end of a channel that waits for the user."""
ENDS = frozenset({"done", "error"})


@dataclass(frozen=True)
class Call:
    """A journaled tool call."""

    index: int
    id: str
    name: str
    arguments: str
    tool: Mapping[str, JsonValue] | None
    description: str
    status: str
    requires_approval: bool
    approved: bool | None = None
    intact: bool = True
    """Whether its arguments are still those that were approved."""
    waits_for: Wait | None = None
    """What it waits for, or has waited for."""
    wait_until: datetime | None = None
    asked_at: datetime | None = None
    question: Mapping[str, JsonValue] | None = None
    answer: str | None = None
    result: str | None = None
    is_error: bool = False
    started_on: UUID | None = None
    finished_on: UUID | None = None
    """The channels that tell of its start and end."""
    finish_order: int | None = None

    @property
    def done(self) -> bool:
        """Whether its result is journaled."""
        return self.status == CallStatus.DONE

    def parsed(self) -> dict[str, JsonValue] | None:
        """The arguments as an object; None if the model wrote something else."""
        try:
            value = orjson.loads(self.arguments or "{}")
        except orjson.JSONDecodeError:
            return None
        return value if isinstance(value, dict) else None

    def function(self) -> tuple[str, str]:
        """What it calls, as namespace and name."""
        namespace, _, name = str((self.tool or {}).get("target", "")).rpartition("/")
        return namespace, name or self.name


@dataclass(frozen=True)
class Answer:
    """A journaled answer of the model."""

    step: int
    runs: Runs
    offset: int = 0
    calls: tuple[Call, ...] = ()
    injected: tuple[UUID, ...] = ()
    """The messages of the user that came into the conversation after it and its calls."""


@dataclass(frozen=True)
class Segment:
    """What the journal knows about one channel."""

    chat_id: UUID
    turn_id: UUID
    channel_id: UUID
    first_step: int = 0
    resumed: bool = False
    structured: bool = False
    answers: Mapping[int, Answer] = field(default_factory=dict)
    suspended_step: int | None = None
    asked: tuple[Asked, ...] = ()
    """What the user is asked at its end, and that the round is suspended."""
    end: tuple[str, Mapping[str, JsonValue]] | None = None
    """The name and data of its last event; None while it goes on."""

    def with_answer(self, answer: Answer) -> "Segment":
        """The same with an answer more, or one changed."""
        return replace(self, answers={**self.answers, answer.step: answer})

    def events(self) -> list[StreamEvent]:
        """Everything on the channel, as far as it is journaled."""
        events: list[StreamEvent] = []
        phase = answer_phase(self.first_step) - 1
        for step in range(self.first_step, max(self.answers, default=-1) + 1):
            answer = self.answers.get(step)
            if answer is None or (self.suspended_step is not None and step > self.suspended_step):
                break
            if not (self.resumed and step == self.first_step):
                phase = answer_phase(step)
                events += self._answer_events(answer)
            if answer.calls or answer.injected:
                phase = tools_phase(step)
                events += self._call_events(answer)
        if self.end is not None:
            unfinished = 1 if phase % 2 == 0 and self.suspended_step is None else 0  # the next answer had begun
            events.append(_event(phase + unfinished + 1, 1, self.end[0], self.end[1]))
        return events

    def _answer_events(self, answer: Answer) -> list[StreamEvent]:
        events = [restart_event(answer.step, answer.offset)] if answer.offset else []
        if self.structured and answer.calls:
            return events
        return events + text_events(answer.step, answer.offset, answer.runs)

    def _call_events(self, answer: Answer) -> list[StreamEvent]:
        phase, count = tools_phase(answer.step), len(answer.calls)
        started = [call for call in answer.calls if call.started_on == self.channel_id]
        ended = [call for call in answer.calls if call.done and call.finished_on == self.channel_id]
        finished = sorted((call.finish_order, call) for call in ended if call.finish_order)
        events = [self._start_event(phase, call) for call in started]
        events += [_end_event(phase, count + order, call) for order, call in finished]
        if self.suspended_step == answer.step:
            events += [_event(phase, 2 * count + n, name, data) for n, (name, data) in enumerate(self.asked, 1)]
        elif answer.injected:
            events.append(_event(phase, 2 * count + 1, "injected", {"message_ids": list(map(str, answer.injected))}))
        return events

    def _start_event(self, phase: int, call: Call) -> StreamEvent:
        data: dict[str, JsonValue] = {
            "tool_call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "description": call.description,
        }
        if (call.tool or {}).get("toolset") == AGENTS:  # where to follow the called agent
            child = ChildIds.of(self.turn_id, (phase - 1) // 2, call.index)
            data |= {"chat_id": str(child.chat), "channel_id": str(child.channel)}
        return _event(phase, call.index + 1, "tool_start", data)


def answer_phase(step: int) -> int:
    """The phase of a step's answer."""
    return 2 * step + 1


def tools_phase(step: int) -> int:
    """The phase of a step's tool calls."""
    return 2 * step + 2


def _event(phase: int, n: int, name: str, data: Mapping[str, JsonValue]) -> StreamEvent:
    return StreamEvent(Position(phase, n), name, orjson.dumps(dict(data)))


def text_events(step: int, offset: int, runs: Runs) -> list[StreamEvent]:
    """The text of an answer that follows position `offset` of its phase."""
    events: list[StreamEvent] = []
    n = offset
    for kind, text in runs:
        n += len(text)
        data: dict[str, JsonValue] = {"content": text} if kind == "content" else {"content": "", "thinking": text}
        events.append(_event(answer_phase(step), n, "message", data))
    return events


def restart_event(step: int, n: int) -> StreamEvent:
    """Tells readers to forget the text of this answer, which begins again."""
    reason = "the answer was interrupted and begins again; discard its text so far"
    return _event(answer_phase(step), n, "restart", {"reason": reason})


def _end_event(phase: int, n: int, call: Call) -> StreamEvent:
    return _event(phase, n, "tool_end", {"tool_call_id": call.id, "name": call.name, "result": call.result or ""})


def asks(call: Call) -> Asked:
    """How the user is asked for what a call waits for."""
    if call.waits_for == Wait.APPROVAL:
        namespace, name = call.function()
        return "approval_required", {
            "tool_call_id": call.id,
            "function_namespace": namespace,
            "function_name": name,
            "arguments": call.parsed() or {},
        }
    return "input_required", {"tool_call_id": call.id, **pending_input(call)}


def round_suspended(calls: Sequence[Call], channel_id: UUID, usage: Mapping[str, JsonValue]) -> tuple[Asked, ...]:
    """The last events of a channel before its end: what the user is asked, and that the agent waits for it."""
    ids: list[JsonValue] = [call.id for call in calls]
    data: dict[str, JsonValue] = {"tool_call_ids": ids, "channel_id": str(channel_id), "usage": dict(usage) or None}
    return (*map(asks, calls), ("round_suspended", data))


def pending_input(call: Call) -> dict[str, JsonValue]:
    """What a call asks the user, and until when."""
    asked = call.question or {}
    return {
        "question": asked.get("question") or "",
        "options": asked.get("options"),
        "expires_at": call.wait_until.isoformat().replace("+00:00", "Z") if call.wait_until else None,
    }


def payload(event: StreamEvent) -> dict[str, JsonValue]:
    """The data of an event."""
    return cast(dict[str, JsonValue], orjson.loads(event.data))


def _said(data: Mapping[str, JsonValue]) -> tuple[Kind, str]:
    kind: Kind = "thinking" if data.get("thinking") else "content"
    return kind, str(data[kind])


def trimmed(event: StreamEvent, after: Position) -> StreamEvent | None:
    """What of an event a reader who is at `after` has not seen; text is cut at the character, None for nothing."""
    if event.position <= after:
        return None
    if event.name != "message" or event.position.step != after.step:
        return event
    kind, text = _said(payload(event))
    seen = after.offset - (event.position.offset - len(text))
    if seen <= 0:
        return event
    rest: Runs = ((kind, text[seen:]),)
    return text_events((event.position.step - 1) // 2, after.offset, rest)[0]


def rest(events: Iterable[StreamEvent], after: Position) -> list[StreamEvent]:
    """What of `events` a reader who is at `after` has not seen."""
    return [left for event in events if (left := trimmed(event, after)) is not None]


def merged(runs: Runs, kind: Kind, text: str) -> Runs:
    """`runs` with more text at the end."""
    if not text:
        return runs
    if runs and runs[-1][0] == kind:
        return (*runs[:-1], (kind, runs[-1][1] + text))
    return (*runs, (kind, text))


def length(runs: Runs) -> int:
    """How many characters were said."""
    return sum(len(text) for _, text in runs)


def cut(runs: Runs, start: int, end: int | None = None) -> Runs:
    """The characters from `start` to `end`."""
    left: Runs = ()
    n = 0
    for kind, text in runs:
        left = merged(left, kind, text[max(0, start - n) : None if end is None else max(0, end - n)])
        n += len(text)
    return left


def spoken(events: Sequence[StreamEvent], step: int) -> tuple[int, Runs]:
    """What a channel holds of a step's answer: the position it begins after, and its text since the last restart."""
    offset, runs = 0, cast(Runs, ())
    for event in events:
        if event.position.step != answer_phase(step):
            continue
        if event.name == "restart":
            offset, runs = event.position.offset, ()
        elif event.name == "message":
            runs = merged(runs, *_said(payload(event)))
    return offset, runs


def content(runs: Runs) -> str:
    """The text without the reasoning."""
    return "".join(text for kind, text in runs if kind == "content")
