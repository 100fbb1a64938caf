"""`sinas run` and `sinas types`: functions on one's own machine, without a server."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import clean_environment, sinas
from tests.packages import CACHE
from tests.stubs import typed_fields

CODE = """import os, sys
def handler(input_data, context):
    print("to the log")
    if input_data.get("fail"):
        raise ValueError("no such order")
    while input_data.get("spin"):
        pass
    return {"given": input_data, "by": context["user_email"], "trigger": context["trigger_type"]}
"""


@pytest.fixture
def at(tmp_path: Path) -> Path:
    (tmp_path / "order.py").write_text(CODE)
    return tmp_path


def run(at: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**clean_environment(), "SINAS_DATA_DIR": str(at / "data"), **variables}
    return sinas("run", *arguments, environment=environment, cwd=at)


def test_the_result_is_json_on_stdout_and_the_rest_on_stderr(at: Path) -> None:
    (at / "in.json").write_text('{"n": 1}')
    done = run(at, "order.py", "--input", "@in.json", "--context", '{"user_email": "ada@example.com"}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"given": {"n": 1}, "by": "ada@example.com", "trigger": "MANUAL"}
    assert done.stderr == "to the log\n"


def test_it_starts_without_what_serves_the_platform() -> None:
    """That takes longer than everything else."""
    code = "import sys, sinas_server.cli.run; print({'sqlalchemy', 'psycopg', 'redis', 'fastapi'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_failure_shows_the_traceback_and_a_limit_its_value(at: Path) -> None:
    failed = run(at, "order.py", "--input", '{"fail": true}')
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("to the log\nTraceback (most recent call last):\n")
    assert 'File "order.py", line 5, in handler' in failed.stderr
    assert failed.stderr.endswith("ValueError: no such order\n")
    slow = run(at, "order.py", "--input", '{"spin": true}', "--timeout", "0.5")
    assert slow.returncode == 124
    assert "0.5" in slow.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("missing.py",), "cannot be read"),
        (("broken.py",), "Syntax error in line 1"),
        (("order.py", "--input", "[1]"), "--input: must be a JSON object"),
        (("order.py", "--input", "{"), "--input: unexpected end of data"),
        (("order.py", "--context", "@missing"), "--context: "),
        (("order.py", "--egress", "everything"), "everything"),
        (("order.py", "--with", "a b"), "the packages cannot be had"),
    ],
)
def test_what_cannot_be_run(at: Path, arguments: tuple[str, ...], reason: str) -> None:
    (at / "broken.py").write_text("def (")
    done = run(at, *arguments)
    assert done.returncode == 2
    assert reason in done.stderr


def test_a_package_is_there_when_asked_for(at: Path) -> None:
    (at / "uses.py").write_text("import iniconfig\ndef handler(i, c): return iniconfig.__name__")
    without = run(at, "uses.py")
    assert without.returncode == 1
    assert "POST /api/v1/dependencies" in without.stderr
    done = run(at, "uses.py", "--with", "iniconfig>=2", UV_CACHE_DIR=str(CACHE))
    assert (done.returncode, done.stdout) == (0, '"iniconfig"\n'), done.stderr


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_it_is_canceled_by_a_signal(at: Path, asked: signal.Signals) -> None:
    environment = {**clean_environment(), "SINAS_DATA_DIR": str(at / "data")}
    command = [str(Path(sys.executable).parent / "sinas"), "run", "order.py", "--input", '{"spin": true}']
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=at) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "to the log\n"
        process.send_signal(asked)
        assert process.wait(30) == 130
        assert process.stderr.read() == "canceled\n"


def test_types_are_written_beside_functions(at: Path) -> None:
    environment = {**clean_environment(), "SINAS_DATA_DIR": str(at / "data")}
    done = sinas("types", str(at), environment=environment)
    assert done.returncode == 0
    written = (at / "sinas_types.pyi").read_text()
    (at / "keys.py").write_text("def handler(input_data, context): return sorted(context)")
    assert set(json.loads(run(at, "keys.py").stdout)) == typed_fields(written, "Context")
