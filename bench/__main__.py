"""Measures everything in one run: `make bench`, `make bench ARGS="--json out.json --rounds 3"`."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import bars, checks, executions, turns
from bench.adapter import measure_adapter
from bench.client import Client
from bench.report import Line, table, write_json
from bench.stack import Stack
from bench.streams import measure_streams

IDLE_SECONDS = 10.0
CHOICES = (
    *("me", "checks", "call", "slowest", "raises", "shared", "calls", "crowd", "turn", "turns", "tool"),
    *("adapter", "streams", "memory", "start", "docker"),
)

CALLING: Mapping[str, tuple[str, Callable[[bars.Bench, bytes], Line]]] = {
    "call": ("a function call", bars.measure_call),
    "slowest": ("the slowest function calls", executions.measure_slowest),
    "raises": ("a function call that raises", executions.measure_exception),
    "shared": ("a function call in the shared pool", bars.measure_shared),
    "calls": ("function calls", bars.measure_calls),
    "crowd": ("very many function calls", executions.measure_crowd),
    "turn": ("a chat turn", turns.measure_turn),
    "turns": ("chat turns", turns.measure_turns),
    "tool": ("a chat turn with a tool", turns.measure_tool_turn),
    "adapter": ("the OpenAI adapter", measure_adapter),
    "streams": ("open streams", measure_streams),
}
"""What is compared with function calls."""


def main() -> None:
    """Runs the chosen measurements; always exits 0, because a bar is not a test."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("only", nargs="*", choices=[*CHOICES, []], help="what to measure; nothing for all")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side of a ratio has its turn")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn under load")
    parser.add_argument("--calls", type=int, default=20, help="calls of a turn at concurrency 1")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack is stopped
    with tempfile.TemporaryDirectory(prefix="sinas-bench-") as name:
        directory = Path(name)
        client, stack = Client(directory), Stack(directory)
        bench = bars.Bench(stack, client, chosen.rounds, chosen.seconds, chosen.calls)
        if not client.compiled:
            _say("No C compiler (cc, gcc, clang): the load comes from a client in Python, which takes CPU itself.")
        try:
            lines, facts = _measure(bench, set(chosen.only or CHOICES))
        finally:
            stack.stop()
    print(table(lines))
    facts |= {"compiled client": client.compiled, "load at the end": os.getloadavg()}
    if chosen.json:
        write_json(chosen.json, lines, facts)


def _measure(bench: bars.Bench, wanted: set[str]) -> tuple[list[Line], dict[str, object]]:
    facts: dict[str, object] = {}
    lines: list[Line] = []
    _say("first start")
    facts["first start, seconds"] = bench.stack.start()
    if "start" in wanted:
        _say("later starts")
        lines.append(bars.measure_start(bench))
    if "memory" in wanted:
        _say("idle memory")
        line, facts["memory when fresh, bytes"] = bars.measure_memory(bench, IDLE_SECONDS)
        lines.append(line)
    if "me" in wanted:
        _say("GET /auth/me")
        lines.append(bars.measure_me(bench))
    if "checks" in wanted:
        _say("permission checks")
        lines += [checks.measure_check(bench), checks.measure_check_route(bench)]
    if wanted & CALLING.keys():
        call = bars.declare_function(bench)
        for name, (told, measure) in CALLING.items():
            if name in wanted:
                _say(told)
                lines.append(measure(bench, call))
    lines += _measure_docker(bench, wanted, facts)
    if "memory" in wanted and len(wanted) > 1:
        _say("idle memory after use")
        line, facts["memory after use, bytes"] = bars.measure_memory(bench, IDLE_SECONDS)
        facts["memory after use, MB"] = line.ours
    return lines, facts


def _measure_docker(bench: bars.Bench, wanted: set[str], facts: dict[str, object]) -> list[Line]:
    if "docker" not in wanted:
        return []
    _say("the Docker driver")
    measured = bars.measure_docker(bench)
    if isinstance(measured, Line):
        return [measured]
    facts["no Docker driver"] = measured
    _say(measured)
    return []


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")


if __name__ == "__main__":
    main()
