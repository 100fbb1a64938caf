"""What the OpenAI adapter adds to a direct call of the same provider."""

from statistics import median

from bench.bars import CHUNKS, SUCCESS, WORDS, Bench
from bench.client import environment, request
from bench.report import Line
from bench.stack import ROOT, line_of, started

CALLERS = 16
WANTED_RATE = 150
DONE = "data: [DONE]"


def measure_adapter(bench: Bench, call: bytes) -> Line:
    """A streamed chat completion through the adapter, less the same from the fake provider, against a function call."""
    with started(["tests.fakes.llm_server"], environment(PYTHONPATH=str(ROOT))) as fake:
        url = line_of(fake.stdout)
        port = int(url.rpartition(":")[2])
        reply = {"text": "".join(WORDS), "chunks": CHUNKS, "times": None}
        bench.client.ask(port, [request("PUT", "/control/default", body=reply)], "ok", 1)
        provider = {"name": "adapter", "provider_type": "openai", "api_key": "none", "api_endpoint": f"{url}/v1"}
        bench.stack.call("POST", "/api/v1/llm-providers", {**provider, "default_model": "fake-large"})
        return _compare(bench, port, call)


def _compare(bench: Bench, port: int, call: bytes) -> Line:
    body = {"model": "fake-large", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    direct = request("POST", "/v1/chat/completions", {"Authorization": "Bearer none"}, body)
    path = "/adapters/openai/v1/chat/completions"
    ours = request("POST", path, bench.stack.headers, {**body, "model": "adapter/fake-large"})
    through, plain, calls, failed = list[float](), list[float](), list[float](), 0
    rates = list[float]()
    for round_ in range(bench.rounds + 1):
        sample = bench.client.ask(bench.stack.port, [ours], DONE, bench.calls)
        asked = bench.client.ask(port, [direct], DONE, bench.calls)
        called = bench.client.ask(bench.stack.port, [call], SUCCESS, bench.calls)
        if round_ == 0:  # libraries of providers load at the first request
            continue
        failed += sample.failed + asked.failed + called.failed
        through, plain, calls = through + sample.ended, plain + asked.ended, calls + called.ended
        load = bench.client.load(bench.stack.port, [ours], DONE, CALLERS, bench.seconds)
        failed += load.failed
        rates.append(load.rate)
    added = (median(through) - median(plain)) / 1000
    rate = f"{median(rates):.0f} requests/s with {CALLERS} callers (wanted on a quiet machine: {WANTED_RATE})"
    note = f"{median(through) / 1000:.1f} ms through the adapter, {median(plain) / 1000:.1f} ms without; {rate}"
    return Line(
        "added by the adapter / function call", added, median(calls) / 1000, "ms", 0.5, holds=not failed, note=note
    )
