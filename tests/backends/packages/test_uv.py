"""The package tool against the machine's package index, with small packages of Python only."""

import os
import stat
from pathlib import Path

import pytest

from sinas_server.backends.packages import PackageError, UnsatisfiableError
from sinas_server.backends.packages.directories import PackageDirectories, set_hash
from sinas_server.backends.packages.uv import Uv, environment_of, reason
from sinas_server.dependencies.requirement import locked_versions
from tests.packages import CACHE, PYTHON

UV = Uv(PYTHON, CACHE, source_builds=False, timeout=120)


async def test_a_lock_has_hashes_and_what_others_need_and_keeps_versions_that_fit() -> None:
    first = await UV.resolve(["iniconfig<2.1"], "")
    assert locked_versions(first) == {"iniconfig": "2.0.0"}
    assert first.count("--hash=sha256:") >= 1
    again = await UV.resolve(["iniconfig", "python-dateutil"], first)
    assert locked_versions(again).keys() > {"iniconfig", "python-dateutil"}
    assert locked_versions(again)["iniconfig"] == "2.0.0"


async def test_what_cannot_be_satisfied_says_why() -> None:
    with pytest.raises(UnsatisfiableError, match=r"iniconfig.*>=999"):
        await UV.resolve(["iniconfig>=999"], "")


async def test_a_package_that_would_have_to_be_built_is_refused() -> None:
    """Building it would run its code on this machine."""
    with pytest.raises(UnsatisfiableError, match=r"docopt.*wheel"):
        await UV.resolve(["docopt"], "")


async def test_an_index_out_of_reach_is_another_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://someone:s3cret@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    unreachable = Uv(PYTHON, tmp_path, source_builds=False, timeout=60)
    with pytest.raises(PackageError) as failed:
        await unreachable.resolve(["iniconfig"], "")
    assert not isinstance(failed.value, UnsatisfiableError)
    assert "127.0.0.1:9" in str(failed.value)
    assert "s3cret" not in str(failed.value)


async def test_a_hash_that_differs_is_refused(tmp_path: Path) -> None:
    lock = await UV.resolve(["iniconfig"], "")
    wrong = lock[: lock.index("sha256:")] + "sha256:" + "0" * 64 + "\n"
    with pytest.raises(PackageError, match=r"[Hh]ash"):
        await UV.install(wrong, tmp_path / "set")


async def test_it_ends_after_its_time() -> None:
    with pytest.raises(PackageError, match=r"longer than 0\.001 seconds"):
        await Uv(PYTHON, CACHE, source_builds=False, timeout=0.001).resolve(["iniconfig"], "")


async def test_a_set_is_installed_once_and_goes_when_nobody_holds_it(tmp_path: Path) -> None:
    lock = await UV.resolve(["iniconfig"], "")
    root = tmp_path / "packages"
    one, other = PackageDirectories(root, UV), PackageDirectories(root, UV)
    made = await one.get(lock, ["iniconfig"])
    assert (made.hash, made.path, made.preload) == (set_hash(lock), root / set_hash(lock), ("iniconfig",))
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o755
    assert list(made.path.glob("iniconfig/__pycache__/*.pyc"))
    before = made.path.stat().st_ino
    assert await other.get(lock, []) == type(made)(made.hash, made.path)
    assert made.path.stat().st_ino == before

    await one.release([])
    assert made.path.is_dir(), "the other one still holds it"
    other.close()
    await one.release([])
    assert [path.name for path in root.iterdir()] == [".installing"]


async def test_what_a_killed_install_left_is_removed_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "packages"
    (root / ".new-abc").mkdir(parents=True)
    directories = PackageDirectories(root, UV)
    with pytest.raises(PackageError):
        await directories.get("no-such-package-of-ours==1.0 --hash=sha256:" + "0" * 64, [])
    await directories.release([])
    assert [path.name for path in root.iterdir()] == [".installing"]


def test_no_secret_of_ours_reaches_the_tool(tmp_path: Path) -> None:
    ours = {
        "SECRET_KEY": "x",
        "ENCRYPTION_KEY": "x",
        "DATABASE_URL": "x",
        "SMTP_PASSWORD": "x",
        "OPENAI_API_KEY": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "PYTHONPATH": "x",
        "UV_PUBLISH_TOKEN": "x",
        "UV_DEFAULT_INDEX": "https://index.example.com/simple",
        "HTTPS_PROXY": "http://proxy.example.com",
        "HOME": "/home/x",
    }
    given = environment_of(ours, tmp_path)
    assert given.keys() - ours.keys() <= {"UV_CACHE_DIR", "UV_PYTHON_DOWNLOADS", "UV_NO_PROGRESS", "UV_SYSTEM_CERTS"}
    assert given.keys() & ours.keys() == {"UV_DEFAULT_INDEX", "HTTPS_PROXY", "HOME"}


async def test_the_tool_really_has_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "uv"
    spy.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\nprintf '' > lock.txt\n")
    spy.chmod(0o755)
    monkeypatch.setattr("sinas_server.backends.packages.uv.find_uv_bin", lambda: str(spy))
    monkeypatch.setenv("SECRET_KEY", "the-secret-of-this-test")
    await UV.resolve(["iniconfig"], "")
    seen = (tmp_path / "seen").read_text()
    assert "UV_CACHE_DIR" in seen
    assert "the-secret-of-this-test" not in seen
    assert "SECRET_KEY" in os.environ


def test_reasons_are_one_line_without_credentials() -> None:
    assert reason("error: a\n  b https://u:p@index/x\n") == "a b https://index/x"
