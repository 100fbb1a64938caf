"""Function calls beyond the usual one: the slowest of them, those that fail, and very many at once."""

import sys
import time
from collections.abc import Callable
from statistics import median, quantiles

from bench.bars import CALLERS, SUCCESS, Bench
from bench.client import Sample, request
from bench.report import Line

CROWD = 500
RAISES = "def handler(input_data, context):\n    raise ValueError('no such order')\n"
RAISED = '"error":"ValueError: no such order"'


def measure_slowest(bench: Bench, call: bytes) -> Line:
    """The 99th percentile of calls at half load: each is followed by a pause of its own length; so is a bare Python."""
    failed = 0

    def called() -> Sample:
        return bench.client.ask(bench.stack.port, [call], SUCCESS, 1)

    def bare() -> Sample:
        return bench.client.spawn(1, [sys.executable, "-c", "pass"])

    times: dict[Callable[[], Sample], list[float]] = {called: [], bare: []}
    for _ in range(bench.calls * bench.rounds * 2):
        for what, taken in times.items():
            sample = what()
            failed += sample.failed
            taken.extend(sample.ended)
            time.sleep(sum(sample.ended) / 1e6)
    ours, theirs = (quantiles(taken, n=100)[98] / 1000 for taken in times.values())
    return Line("function call / python -c pass, p99 at half load", ours, theirs, "ms", 1, holds=not failed)


def measure_exception(bench: Bench, call: bytes) -> Line:
    """A call that raises against one that returns, both at concurrency 1."""
    stack, raised, returned, failed = bench.stack, list[float](), list[float](), 0
    stack.call("POST", "/api/v1/functions", {"namespace": "bench", "name": "raises", "code": RAISES})
    raises = request("POST", "/functions/bench/raises/execute", stack.headers, {"input": {}})
    for _ in range(3 * bench.rounds):
        for what, mark, times in ((raises, RAISED, raised), (call, SUCCESS, returned)):
            sample = bench.client.ask(stack.port, [what], mark, bench.calls)
            failed += sample.failed
            times.extend(sample.ended)
    name = "function call that raises / one that returns, p50"
    return Line(name, median(raised) / 1000, median(returned) / 1000, "ms", 1.1, holds=not failed)


def measure_crowd(bench: Bench, call: bytes) -> Line:
    """Five hundred callers against the usual number: they wait, and none fails."""
    rates, usual, failed, slowest = list[float](), list[float](), 0, 0.0
    for _ in range(bench.rounds):
        crowd = bench.client.load(bench.stack.port, [call], SUCCESS, CROWD, 2 * bench.seconds)
        few = bench.client.load(bench.stack.port, [call], SUCCESS, CALLERS, bench.seconds)
        failed += crowd.failed + few.failed
        rates.append(crowd.rate)
        usual.append(few.rate)
        slowest = max([slowest, *crowd.ended])
    note = f"{failed} failed; the slowest of {CROWD} waited {slowest / 1e6:.1f} s"
    name = f"function calls, {CROWD} callers / {CALLERS} callers"
    return Line(name, median(rates), median(usual), "/s", 0.8, at_least=True, holds=not failed, note=note)
