"""The measurements behind each bar. The two sides of a ratio take turns, so that noise meets both."""

import json
import sys
import time
from dataclasses import dataclass
from statistics import median

from bench.client import Client, Sample, environment, request
from bench.handler import CODE, INPUT, RESULT
from bench.report import Line
from bench.stack import Stack, answer_of, await_http, line_of, started
from sinas_server.backends.embedded.datadir import free_port

CALLERS = 32
ALLOWED_MEMORY = 400 << 20
SUCCESS = '"result":' + json.dumps(RESULT, separators=(",", ":"))
EXECUTE = "/functions/bench/add/execute"


@dataclass(frozen=True)
class Bench:
    """What the measurements need."""

    stack: Stack
    client: Client
    rounds: int
    seconds: float
    """Of one turn under load."""
    calls: int
    """Of one turn at concurrency 1."""


def measure_start(bench: Bench) -> Line:
    """Later starts against importing the application; leaves the stack running."""
    stack, imports, starts = bench.stack, list[float](), list[float]()
    command = [sys.executable, "-c", "import sinas_server.roles"]
    bench.client.spawn(1, command)  # bytecode is written, files are in the page cache
    for _ in range(bench.rounds):
        stack.stop()
        imports += [seconds / 1e6 for seconds in bench.client.spawn(1, command).ended]
        starts.append(stack.start())
    return Line("later start / import once", median(starts), median(imports), "s", 4)


def measure_memory(bench: Bench, idle_seconds: float) -> tuple[Line, dict[str, int]]:
    """What the whole stack occupies when nothing happens, and each process's part of it."""
    time.sleep(idle_seconds)
    parts = bench.stack.memory()
    line = Line("idle memory (PSS) / 400 MB", sum(parts.values()) / (1 << 20), ALLOWED_MEMORY / (1 << 20), "MB", 1)
    return line, parts


def measure_me(bench: Bench) -> Line:
    """`GET /auth/me` with an API key against a bare route, at concurrency 32."""
    email = str(bench.stack.call("GET", "/auth/me")["email"])
    ours = request("GET", "/auth/me", bench.stack.headers)
    return against_bare_route(bench, f"GET /auth/me / bare route, {CALLERS} callers", ours, email)


def against_bare_route(bench: Bench, name: str, ours: bytes, mark: str) -> Line:
    """The rate of a request whose answers hold `mark`, against that of a route doing one SELECT."""
    stack, port = bench.stack, free_port()
    user = stack.call("GET", "/auth/me")
    theirs = request("GET", f"/users/{user['id']}", stack.headers)
    with started(["bench.reference", str(port)], environment(DATABASE_URL=stack.database_url)) as process:
        await_http(port, f"/users/{user['id']}", process)

        def both(seconds: float) -> tuple[Sample, Sample]:
            mine = bench.client.load(stack.port, [ours], mark, CALLERS, seconds)
            return mine, bench.client.load(port, [theirs], str(user["email"]), CALLERS, seconds)

        both(1.0)  # both connect and compile what they keep
        pairs = [both(bench.seconds) for _ in range(bench.rounds)]
    failed = sum(one.failed for one, _ in pairs)
    rates = median(one.rate for one, _ in pairs), median(other.rate for _, other in pairs)
    note = f"{failed} failed" if failed else ""
    return Line(name, *rates, "/s", 0.5, at_least=True, holds=not failed, note=note)


def declare_function(bench: Bench) -> bytes:
    """Makes the function, and the request that calls it."""
    bench.stack.call("POST", "/api/v1/functions", {"namespace": "bench", "name": "add", "code": CODE})
    return request("POST", EXECUTE, bench.stack.headers, {"input": INPUT})


def measure_call(bench: Bench, call: bytes) -> Line:
    """A function call at concurrency 1 against a bare Python."""
    calls, bare = list[float](), list[float]()
    bench.client.ask(bench.stack.port, [call], SUCCESS, bench.calls)
    failed = 0
    for _ in range(3 * bench.rounds):
        sample = bench.client.ask(bench.stack.port, [call], SUCCESS, bench.calls)
        failed += sample.failed
        calls += sample.ended
        bare += bench.client.spawn(bench.calls, [sys.executable, "-c", "pass"]).ended
    times = median(calls) / 1000, median(bare) / 1000
    return Line("function call / python -c pass, p50", *times, "ms", 1, holds=not failed)


def measure_shared(bench: Bench, call: bytes) -> Line:
    """A call of a function in the shared pool against one in the sandbox, both at concurrency 1."""
    stack, shared, native, failed = bench.stack, list[float](), list[float](), 0
    stack.call("POST", "/api/v1/functions", {"namespace": "bench", "name": "warm", "code": CODE, "shared_pool": True})
    warm = request("POST", "/functions/bench/warm/execute", stack.headers, {"input": INPUT})
    bench.client.ask(stack.port, [warm], SUCCESS, bench.calls)  # the workers start
    for _ in range(3 * bench.rounds):
        for what, times in ((warm, shared), (call, native)):
            sample = bench.client.ask(stack.port, [what], SUCCESS, bench.calls)
            failed += sample.failed
            times.extend(sample.ended)
    medians = median(shared) / 1000, median(native) / 1000
    return Line("shared pool / sandbox, function call p50", *medians, "ms", 0.5, holds=not failed)


def measure_calls(bench: Bench, call: bytes) -> Line:
    """Function calls by 32 callers against the sandbox pool driven directly."""
    stack, rates, direct, failed, slowest = bench.stack, list[float](), list[float](), 0, 0.0
    with started(["bench.direct_pool", str(CALLERS)], stack.environ) as pool:
        line_of(pool.stdout)
        for _ in range(bench.rounds):
            sample = bench.client.load(stack.port, [call], SUCCESS, CALLERS, bench.seconds)
            failed += sample.failed
            rates.append(sample.rate)
            slowest = max([slowest, *sample.ended])
            count = json.loads(answer_of(pool, f"{bench.seconds}"))
            direct.append(count["completed"] / count["seconds"])
            assert not count["failed"]
    note = f"{failed} failed; the slowest call took {slowest / 1e6:.2f} s"
    name = "function calls / sandbox pool directly, 32 callers"
    return Line(name, median(rates), median(direct), "/s", 0.6, at_least=True, holds=not failed, note=note)


def measure_docker(bench: Bench) -> Line | str:
    """An execution in the Docker driver's pool against one in the native driver's; or why there is none."""
    with started(["bench.docker_pool", str(bench.rounds), str(bench.calls)], environment()) as pools:
        times: dict[str, list[float]] = json.loads(line_of(pools.stdout))
    if "reason" in times:
        return str(times["reason"])
    docker, native = (median(times[name]) * 1000 for name in ("docker", "native"))
    return Line("execution in the Docker driver / native driver", docker, native, "ms", 3)
