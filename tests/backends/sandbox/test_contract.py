"""What every sandbox driver does with code, its result, its output and its failures."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from sinas_server.backends.sandbox import Ending, Limits, Sandbox, SandboxBusy
from sinas_server.backends.sandbox.native import SandboxConfig
from tests.backends.sandbox.conftest import Run, task, until


async def test_result_input_and_context(run: Run) -> None:
    outcome = await run("def handler(input_data, context):\n    return [input_data, context]")
    assert (outcome.ending, outcome.result, outcome.error) == (Ending.OK, [{"a": 1}, {"user_id": "u"}], None)
    assert outcome.entry_point == "handler"


async def test_legacy_entry_point(run: Run) -> None:
    outcome = await run("def legacy(i, c): return 1")
    assert (outcome.result, outcome.entry_point) == (1, "legacy")


async def test_handler_comes_before_the_legacy_name(run: Run) -> None:
    assert (await run("def legacy(i, c): return 1\ndef handler(i, c): return 2")).result == 2


async def test_missing_entry_point_names_both(run: Run) -> None:
    outcome = await run("x = 1\nhandler = 3")
    assert outcome.ending is Ending.ERROR
    assert "`handler` or `legacy`" in (outcome.error or "")


async def test_async_handler(run: Run) -> None:
    code = "import asyncio\nasync def handler(i, c):\n    await asyncio.sleep(0)\n    return 'done'"
    assert (await run(code)).result == "done"


async def test_traceback_is_the_users_own(run: Run) -> None:
    code = "def inner():\n    raise ValueError('no\\nluck')\n\ndef handler(i, c):\n    inner()\n"
    outcome = await run(code, filename="orders/refund.py")
    assert (outcome.ending, outcome.error) == (Ending.ERROR, "ValueError: no luck")
    assert outcome.traceback is not None
    assert outcome.traceback.startswith(
        'Traceback (most recent call last):\n  File "orders/refund.py", line 5, in handler\n    inner()\n'
    )
    assert outcome.traceback.count("File ") == 2


async def test_traceback_of_an_async_handler_starts_in_the_users_file(run: Run) -> None:
    outcome = await run("async def handler(i, c):\n    return 1 / 0")
    lines = (outcome.traceback or "").splitlines()
    assert lines[1] == '  File "function.py", line 2, in handler'


async def test_traceback_keeps_the_cause(run: Run) -> None:
    code = (
        "def handler(i, c):\n    try: {}['x']\n    except KeyError as e: raise Failure('no x') from e\n"
        "class Failure(Exception): pass"
    )
    outcome = await run(code)
    assert outcome.error == "Failure: no x"
    assert "KeyError: 'x'" in (outcome.traceback or "")


@pytest.mark.parametrize("text", ["a\\x00b", "a\\ud800b", "ü😀"], ids=["nul", "half", "storable"])
async def test_an_exception_says_what_cannot_be_stored_as_python_writes_it(run: Run, text: str) -> None:
    outcome = await run(f"def handler(i, c): raise ValueError('{text}')")
    assert outcome.ending is Ending.ERROR
    assert outcome.error == f"ValueError: {text}"
    assert (outcome.traceback or "").endswith(f"ValueError: {text}\n")


async def test_syntax_error(run: Run) -> None:
    outcome = await run("def handler(i, c)\n    pass")
    assert outcome.ending is Ending.ERROR
    assert outcome.error == "SyntaxError: expected ':' (function.py, line 1)"
    assert (outcome.traceback or "").startswith('  File "function.py", line 1\n    def handler(i, c)\n')


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("{1, 2}", "result is of type set"),
        ("{'items': [1, {'x': object()}]}", "result['items'][1]['x'] is of type object"),
        ("float('nan')", "result is nan"),
        ("[float('inf')]", "result[0] is inf"),
        ("{(1, 2): 3}", "result has a key of type tuple"),
        ("b'bytes'", "result is of type bytes"),
        ("'a\\x00b'", "result holds a NUL character"),
        ("{'k\\ud800': 1}", "a key of result holds half of a surrogate pair"),
        ("(lambda x: x.append(x) or x)([])", "result[0] contains itself"),
        ("(x for x in ())", "result is of type generator"),
    ],
)
async def test_result_that_is_not_json(run: Run, expression: str, problem: str) -> None:
    outcome = await run(f"def handler(i, c):\n    return {expression}")
    assert outcome.ending is Ending.ERROR
    assert problem in (outcome.error or "")


@pytest.mark.parametrize("expression", ["None", "0", "''", "[[], {}]", "{'ü': '😀', 'n': 1.5}", "(1, 2)", "2**62"])
async def test_result_that_is_json(run: Run, expression: str) -> None:
    outcome = await run(f"def handler(i, c):\n    return {expression}")
    expected = eval(expression)  # noqa: S307 - the literals above
    assert outcome.result == (list(expected) if isinstance(expected, tuple) else expected)


async def test_output_is_captured_apart(run: Run) -> None:
    told = {"stdout": "", "stderr": ""}

    def hear(name: str, text: str) -> None:
        told[name] += text

    code = """import sys
def handler(i, c):
    print('first')
    print('zweite ü', file=sys.stderr)
    print('last', end='')"""
    outcome = await run(code, hear)
    assert (outcome.stdout, outcome.stderr) == ("first\nlast", "zweite ü\n")
    assert told == {"stdout": outcome.stdout, "stderr": outcome.stderr}


async def test_output_is_told_while_it_runs(run: Run) -> None:
    told, all_told = {"stdout": "", "stderr": ""}, asyncio.Event()

    def hear(name: str, text: str) -> None:  # in pieces of any size
        told[name] += text
        if told == {"stdout": "first\n", "stderr": "second\n"}:
            all_told.set()

    code = """import sys, time
def handler(i, c):
    print('first')
    print('second', file=sys.stderr)
    time.sleep(600)"""
    running = asyncio.ensure_future(run(code, hear, limits=Limits(wall_seconds=600)))
    try:
        await asyncio.wait_for(all_told.wait(), 60)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_output_of_code_that_fails_is_kept(run: Run) -> None:
    assert (await run("def handler(i, c):\n    print('before', end='')\n    1 / 0")).stdout == "before"


async def test_output_is_capped_with_a_marker(run: Run) -> None:
    limits = Limits(wall_seconds=20, log_bytes=1000)
    outcome = await run("def handler(i, c):\n    print('x' * 100_000)\n    return 'still works'", limits=limits)
    assert outcome.stdout == "x" * 1000 + "\n[output truncated at 1000 bytes]\n"
    assert outcome.result == "still works"


async def test_result_is_capped(run: Run) -> None:
    outcome = await run("def handler(i, c): return 'x' * 2000", limits=Limits(wall_seconds=20, result_bytes=1000))
    assert outcome.ending is Ending.OUTPUT_TOO_LARGE
    assert "0.000953674 MB" in (outcome.error or "")


async def test_time_limit_says_which(run: Run) -> None:
    code = "import time\ndef handler(i, c):\n    print('started', end='')\n    time.sleep(60)"
    outcome = await run(code, limits=Limits(wall_seconds=5))
    assert (outcome.ending, outcome.error) == (Ending.TIMEOUT, "the time limit of 5 s was hit")
    assert outcome.stdout == "started"


async def test_memory_limit_says_which(run: Run) -> None:
    limits = Limits(wall_seconds=20, memory_bytes=64 << 20)
    outcome = await run("def handler(i, c):\n    return len(b'x' * (200 << 20))", limits=limits)
    assert (outcome.ending, outcome.error) == (Ending.MEMORY, "the memory limit of 64 MB was hit")


@pytest.mark.parametrize(
    ("body", "ending", "error"),
    [
        ("import sys; sys.exit(3)", Ending.ERROR, "SystemExit: the function called sys.exit(3)"),
        ("raise KeyboardInterrupt", Ending.ERROR, "KeyboardInterrupt"),
        ("import os; os._exit(7)", Ending.DIED, "the process ended with exit code 7"),
        ("import os; os.close(3); return 1", Ending.DIED, "without returning a result"),
        ("import ctypes; ctypes.string_at(0)", Ending.DIED, "SIGSEGV"),
        ("f = lambda: f(); f()", Ending.ERROR, "RecursionError"),
        ("return input('name?')", Ending.ERROR, "RuntimeError: input() is not available"),
        ("raise type('Odd', (Exception,), {'__str__': lambda s: 1 / 0})()", Ending.ERROR, "Odd"),
        ("raise ExceptionGroup('many', [ValueError(1)])", Ending.ERROR, "ExceptionGroup: many"),
        ("import sys; sys.stdout = None; return 1", Ending.OK, None),
    ],
)
async def test_endings(run: Run, body: str, ending: Ending, error: str | None) -> None:
    outcome = await run(f"def handler(i, c):\n    {body}")
    assert outcome.ending is ending
    assert (error or "") in (outcome.error or "")


async def test_threads_left_running_do_not_hold_up_the_result(run: Run) -> None:
    code = (
        "import threading, time\n"
        "def handler(i, c):\n    threading.Thread(target=time.sleep, args=(60,)).start()\n    return 1"
    )
    assert (await run(code)).result == 1


async def test_classes_know_their_module(run: Run) -> None:
    code = (
        "from __future__ import annotations\nimport dataclasses, pickle, typing\n"
        "@dataclasses.dataclass\nclass Order:\n    number: int\n"
        "def handler(i, c):\n"
        "    return [pickle.loads(pickle.dumps(Order(7))).number, typing.get_type_hints(Order)['number'].__name__]"
    )
    assert (await run(code)).result == [7, "int"]


async def test_environment(run: Run) -> None:
    code = "import os\ndef handler(i, c): return [os.environ.get(k) for k in ('A', 'SINAS_URL', 'PATH', 'SECRET_KEY')]"
    assert (await run(code, env={"A": "b"})).result == ["b", "http://host.docker.internal:8000", "", None]


async def test_packages_can_be_imported(run: Run) -> None:
    code = "import numpy, requests\ndef handler(i, c): return [float(numpy.ones(3).sum()), requests.__name__]"
    assert (await run(code)).result == [3.0, "requests"]


@pytest.mark.parametrize(
    "expression",
    ["random.random()", "numpy.random.rand()", "ssl.RAND_bytes(16).hex()", "uuid.uuid4().hex", "secrets.token_hex()"],
)
async def test_randomness_is_not_shared(run: Run, expression: str) -> None:
    code = f"import random, numpy, ssl, uuid, secrets\ndef handler(i, c): return {expression}"
    assert len({str((await run(code)).result) for _ in range(4)}) == 4


async def test_ordinary_python_works(run: Run) -> None:
    code = """import subprocess, sys, zoneinfo, ssl, tempfile, concurrent.futures, multiprocessing.pool, sqlite3
def handler(i, c):
    out = subprocess.run([sys.executable, '-I', '-S', '-c', 'print(40 + 2)'], capture_output=True, text=True).stdout
    with concurrent.futures.ThreadPoolExecutor(2) as pool: squares = list(pool.map(lambda x: x * x, range(3)))
    with tempfile.NamedTemporaryFile('w+') as f: f.write('x'); f.seek(0); text = f.read()
    rows = sqlite3.connect(':memory:').execute('select 1').fetchall()
    return [out, squares, text, str(zoneinfo.ZoneInfo('Europe/Zurich')), rows]"""
    assert (await run(code)).result == ["42\n", [0, 1, 4], "x", "Europe/Zurich", [[1]]]


async def test_large_input(run: Run) -> None:
    outcome = await run("def handler(i, c): return len(i)", input="x" * (20 << 20))
    assert outcome.result == 20 << 20


async def test_other_limits_than_the_pools(run: Run) -> None:
    code = "import os\ndef handler(i, c): return os.statvfs('/tmp').f_blocks * os.statvfs('/tmp').f_frsize"
    assert (await run(code, limits=Limits(wall_seconds=20, tmp_bytes=8 << 20))).result == 8 << 20


async def test_more_callers_than_sandboxes(run: Run, sandbox: Sandbox) -> None:
    outcomes = await asyncio.gather(*(run("def handler(i, c): return i", input=number) for number in range(40)))
    assert [outcome.result for outcome in outcomes] == list(range(40))
    assert sandbox.stats().in_use == 0


async def test_failures_do_not_shrink_the_pool(run: Run, sandbox: Sandbox) -> None:
    for body in ("1 / 0", "import os; os._exit(1)", "import ctypes; ctypes.string_at(0)", "return {1}") * 3:
        assert (await run(f"def handler(i, c):\n    {body}")).ending is not Ending.OK
    await until(lambda: sandbox.stats().idle == 2, "the pool is full again")


async def test_no_free_sandbox_says_so(driver: Callable[[SandboxConfig], Sandbox]) -> None:
    sandbox = driver(SandboxConfig(min_size=1, min_idle=0, max_size=1, acquire_timeout=0.2))
    await sandbox.start()
    try:
        long = asyncio.create_task(sandbox.run(task("import time\ndef handler(i, c): time.sleep(60)")))
        await until(lambda: sandbox.stats().in_use == 1, "the first runs")
        with pytest.raises(SandboxBusy, match=r"no sandbox became free within 0\.2 s: 1 of 1 are in use"):
            await sandbox.run(task("def handler(i, c): return 1"))
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        found: list[object] = []
        async with asyncio.timeout(60):
            while not found:  # another one may take longer to be made than a caller waits here
                with contextlib.suppress(SandboxBusy):
                    found.append((await sandbox.run(task("def handler(i, c): return 1", limits=Limits()))).result)
        assert found == [1]
    finally:
        await sandbox.close()


async def test_cancelling_kills_the_execution(run: Run, sandbox: Sandbox) -> None:
    started = asyncio.Event()
    code = "import time\ndef handler(i, c):\n    print('started')\n    time.sleep(60)"
    running = asyncio.ensure_future(run(code, lambda _name, _text: started.set()))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: sandbox.stats().in_use == 0 and sandbox.stats().idle == 2, "its place is free")
