"""What the OpenAI adapter adds to a direct call of the same provider."""

from statistics import median

from bench.bars import SUCCESS, Bench
from bench.client import request
from bench.model import MODEL, QUESTION, model
from bench.report import Line

CALLERS = 16
WANTED_RATE = 150
DONE = "data: [DONE]"


def measure_adapter(bench: Bench, call: bytes) -> Line:
    """A streamed chat completion through the adapter, less the same from the fake provider, against a function call."""
    with model(bench.stack, bench.client, "adapter") as fake:
        return _compare(bench, fake.port, call)


def _compare(bench: Bench, port: int, call: bytes) -> Line:
    direct = request("POST", "/v1/chat/completions", {"Authorization": "Bearer none"}, QUESTION)
    path = "/adapters/openai/v1/chat/completions"
    ours = request("POST", path, bench.stack.headers, {**QUESTION, "model": f"adapter/{MODEL}"})
    through, plain, calls, failed = list[float](), list[float](), list[float](), 0
    rates, spent = list[float](), list[float]()
    for round_ in range(bench.rounds + 1):
        sample = bench.client.ask(bench.stack.port, [ours], DONE, bench.calls)
        asked = bench.client.ask(port, [direct], DONE, bench.calls)
        called = bench.client.ask(bench.stack.port, [call], SUCCESS, bench.calls)
        if round_ == 0:  # libraries of providers load at the first request
            continue
        failed += sample.failed + asked.failed + called.failed
        through, plain, calls = through + sample.ended, plain + asked.ended, calls + called.ended
        before = bench.stack.processor_seconds()
        load = bench.client.load(bench.stack.port, [ours], DONE, CALLERS, bench.seconds)
        spent.append((bench.stack.processor_seconds() - before) / len(load.ended))
        failed += load.failed
        rates.append(load.rate)
    added = (median(through) - median(plain)) / 1000
    rate = f"{median(rates):.0f} requests/s with {CALLERS} callers (wanted on a quiet machine: {WANTED_RATE})"
    rate += f", {median(spent) * 1000:.1f} ms of processor time each, servers included"
    note = f"{median(through) / 1000:.1f} ms through the adapter, {median(plain) / 1000:.1f} ms without; {rate}"
    return Line(
        "added by the adapter / function call", added, median(calls) / 1000, "ms", 0.5, holds=not failed, note=note
    )
