"""Chat turns on a fake model without latency: until the first words, how many a second, and with a tool."""

import json
from statistics import median

from bench.bars import SUCCESS, Bench
from bench.client import request
from bench.handler import INPUT
from bench.model import CHUNKS, QUESTION, WORDS, declare_agent, model, turns
from bench.report import Line
from bench.stack import answer_of, line_of, started

CALLERS = 16
COMPLETED = '"status":"completed"'
CHATS = 128
"""Of a turn under load: few enough to make, enough to keep them short."""


def measure_turn(bench: Bench, call: bytes) -> Line:
    """The time that the platform adds before the first words of an answer, against a function call."""
    with model(bench.stack, bench.client, "turn") as fake:
        declare_agent(bench.stack, "turn", fake)
        direct = request("POST", "/v1/chat/completions", {"Authorization": "Bearer none"}, QUESTION)
        ours, plain, calls, failed = list[float](), list[float](), list[float](), 0
        for round_ in range(bench.rounds + 1):
            asked = turns(bench.stack, "turn", bench.calls)
            sample = bench.client.ask(bench.stack.port, asked, WORDS[0], bench.calls)
            alone = bench.client.ask(fake.port, [direct], f'"content": "{WORDS[0]}', bench.calls)
            called = bench.client.ask(bench.stack.port, [call], SUCCESS, bench.calls)
            if round_ == 0:  # libraries of providers load at the first turn
                continue
            failed += sample.failed + alone.failed + called.failed
            ours, plain, calls = ours + sample.marked, plain + alone.marked, calls + called.ended
    added = (median(ours) - median(plain)) / 1000
    note = f"first message after {median(ours) / 1000:.1f} ms, the model's own {median(plain) / 1000:.1f} ms"
    name = f"added before the first message of {CHUNKS} / function call"
    return Line(name, added, median(calls) / 1000, "ms", 1.5, holds=not failed, note=note)


def measure_turns(bench: Bench, _: bytes) -> Line:
    """Whole turns by 16 callers against the same model asked through the same library, without the platform."""
    stack, rates, direct, failed, spent = bench.stack, list[float](), list[float](), 0, list[float]()
    with (
        model(stack, bench.client, "turns") as fake,
        started(["bench.direct_model", fake.endpoint, str(CALLERS)], stack.environ) as alone,
    ):
        declare_agent(stack, "turns", fake)
        line_of(alone.stdout)
        bench.client.ask(stack.port, turns(stack, "turns", CALLERS), COMPLETED, CALLERS)
        for _round in range(bench.rounds):
            asked, before = turns(stack, "turns", CHATS), stack.processor_seconds()
            sample = bench.client.load(stack.port, asked, COMPLETED, CALLERS, bench.seconds)
            spent.append((stack.processor_seconds() - before) / len(sample.ended))
            failed += sample.failed
            rates.append(sample.rate)
            count = json.loads(answer_of(alone, f"{bench.seconds}"))
            direct.append(count["completed"] / count["seconds"])
    note = f"{failed} failed; {median(spent) * 1000:.0f} ms of processor time a turn, servers included"
    name = f"turns / the same model asked directly, {CALLERS} callers"
    return Line(name, median(rates), median(direct), "/s", 0.25, at_least=True, holds=not failed, note=note)


def measure_tool_turn(bench: Bench, call: bytes) -> Line:
    """A whole turn in which the model calls a function, against a function call, both at concurrency 1."""
    stack, ours, calls, failed = bench.stack, list[float](), list[float](), 0
    with model(stack, bench.client, "tool") as fake:
        wanted = {"name": "bench__add", "arguments": json.dumps(INPUT)}
        fake.tell("POST", "replies", [{"text": "", "tool_calls": [wanted], "after_tool": False, "times": None}])
        declare_agent(stack, "tool", fake, enabled_functions=["bench/add"])
        for round_ in range(bench.rounds + 1):
            sample = bench.client.ask(stack.port, turns(stack, "tool", bench.calls), WORDS[0], bench.calls)
            called = bench.client.ask(stack.port, [call], SUCCESS, bench.calls)
            if round_ == 0:  # libraries of providers load at the first turn
                continue
            failed += sample.failed + called.failed
            ours, calls = ours + sample.ended, calls + called.ended
    name = "turn with a sandboxed tool / function call, p50"
    return Line(name, median(ours) / 1000, median(calls) / 1000, "ms", 3, holds=not failed)
