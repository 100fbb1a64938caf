"""Code that is no function, on every driver: what it is given and what its result is."""

import base64

import pytest
from pydantic import JsonValue

from sinas_server.backends.sandbox import Ending
from tests.backends.sandbox.conftest import Run


def given(files: dict[str, str] | None = None, **variables: JsonValue) -> dict[str, JsonValue]:
    encoded: dict[str, JsonValue] = {
        path: base64.b64encode(text.encode()).decode() for path, text in (files or {}).items()
    }
    return {"variables": variables, "files": encoded}


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("1 + 1", 2),
        ("x = 3\nx * 2", 6),
        ("result = {'a': [1]}", {"a": [1]}),
        ("result = 1\nprint('x')", 1),
        ("result = 1\n2", 2),
        ("x = 1", None),
        ("", None),
        ("{1, 1}", "{1}"),
        ("float('nan')", "nan"),
        ("def f():\n    return g()\ndef g():\n    return 5\nf()", 5),
        ("result = 7 if __name__ == '__main__' else 8", 7),
        ("import __main__\nresult = 'x'\n__main__.result", "x"),
    ],
)
async def test_the_result_is_the_last_expression_or_result(run: Run, code: str, result: JsonValue) -> None:
    outcome = await run(code, entry_points=(), input=given())
    assert (outcome.ending, outcome.result, outcome.entry_point) == (Ending.OK, result, None)


async def test_variables_and_files(run: Run) -> None:
    code = "import os\n[rows * 2, open('data/in.csv').read(), sorted(os.listdir('.'))]"
    outcome = await run(code, entry_points=(), input=given({"data/in.csv": "a,b\n"}, rows=4))
    assert outcome.result == [8, "a,b\n", ["data"]]


async def test_a_failing_script_shows_its_own_lines_only(run: Run) -> None:
    code = "print('before')\nclass Own(Exception): pass\nraise Own('no')\n1"
    outcome = await run(code, entry_points=(), input=given(), filename="code.py")
    assert (outcome.ending, outcome.error, outcome.stdout) == (Ending.ERROR, "Own: no", "before\n")
    assert outcome.traceback is not None
    assert 'File "code.py", line 3' in outcome.traceback
    assert "script.py" not in outcome.traceback
