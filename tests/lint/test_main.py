"""The command runs every rule over what git knows, names each problem and says by its status whether there is one."""

import subprocess
from pathlib import Path

import pytest

from scripts.lint.__main__ import main
from scripts.lint.exempt import COMMITS, EDGES, SIZES, WIRE
from scripts.lint.settings import SETTINGS


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in which every exemption is needed and nothing breaks a rule."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    write(SETTINGS, "class Settings: ...\n")
    for exempt, text in (
        (WIRE, "x: Any\n"),
        (EDGES, "try:\n    f()\nexcept Exception:\n    pass\n"),
        (COMMITS, "db.commit()\n"),
        (SIZES, "def f():\n" + "    g()\n" * 400),
    ):
        for entry in exempt:
            path = entry.path + "x.py" if entry.path.endswith("/") else entry.path
            write(path, (Path(path).read_text() if Path(path).exists() else "") + text)
    return tmp_path


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def test_nothing_wrong(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("logo.png").write_bytes(b"\x89PNG\xff")
    assert main() == 0
    assert capsys.readouterr().out == ""


def test_each_problem_is_named_with_its_place(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("src/sinas_server/chats/utils.py", "def f(x: Any):\n    import numpy\n")
    assert main() == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in printed] == [
        "src/sinas_server/chats/utils.py:1",
        "src/sinas_server/chats/utils.py:1",
        "src/sinas_server/chats/utils.py:2",
    ]


def test_what_git_ignores_is_not_judged(repository: Path) -> None:
    write(".gitignore", "build/\n")
    write("build/utils.py", "db.commit()\n")
    assert main() == 0


def test_an_exemption_nothing_needs_is_a_problem(repository: Path) -> None:
    Path(COMMITS[0].path).unlink()
    assert main() == 1


def test_a_syntax_error_is_a_problem_with_its_line(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("src/sinas_server/x.py", "x = 1\ndef f(:\n")
    assert main() == 1
    assert "src/sinas_server/x.py:2: " in capsys.readouterr().out
