"""`sinas run`: a function file in the sandbox of this machine, without a server."""

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from uuid import UUID, uuid4

from pydantic import JsonValue

from sinas_server.backends.packages import PackageError
from sinas_server.backends.packages.directories import PackageDirectories
from sinas_server.backends.sandbox import Egress, Ending, Limits, Outcome, PackageSet, SandboxUnavailable, Task
from sinas_server.backends.sandbox.native import SandboxConfig, open_sandbox
from sinas_server.cli.console import fail, say
from sinas_server.dependencies.install import open_directories, open_tool
from sinas_server.dependencies.requirement import as_requirement
from sinas_server.functions.source import legacy_entry_point, syntax_problem
from sinas_server.kit.json import BadJsonError, parse
from sinas_server.settings import Settings

TYPES = "sinas_types.pyi"
FAILED, UNUSABLE, UNAVAILABLE, TIMED_OUT = 1, 2, 3, 124
"""Exit statuses: the function failed; the file, input or packages are no good; no sandbox here; the time limit."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to run."""

    file: Path
    input: str
    """JSON, or `@` and the name of a file that holds it."""
    context: str
    packages: Sequence[str]
    """As pip writes them."""
    egress: Egress | None
    timeout: float | None


def run(settings: Settings, asked: Run) -> None:
    """Print the result as JSON on standard output, what the function prints on standard error; exit as it ended."""
    task = _task(settings, asked)
    # As by Ctrl-C, which cleans up; for the first process of a container SIGTERM would do nothing at all.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        outcome = asyncio.run(_outcome(settings, task, asked.packages))
    except SandboxUnavailable as error:
        fail(f"no sandbox on this machine: {error}", UNAVAILABLE)
    except (PackageError, ValueError) as error:
        fail(f"the packages cannot be had: {error}", UNUSABLE)
    except KeyboardInterrupt:
        fail("canceled", 130)
    if outcome.ending is Ending.OK:
        say(json.dumps(outcome.result, indent=2, ensure_ascii=False))
        return
    status = TIMED_OUT if outcome.ending is Ending.TIMEOUT else FAILED
    shown, reason = (outcome.traceback or "").rstrip(), outcome.error or outcome.ending
    fail(shown if shown.endswith(reason) else f"{shown}\n{reason}".lstrip(), status)


def _task(settings: Settings, asked: Run) -> Task:
    try:
        code = asked.file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{asked.file} cannot be read: {error}", UNUSABLE)
    problem = syntax_problem(code)
    if problem:
        fail(f"{asked.file}: {problem}", UNUSABLE)
    return Task(
        code=code,
        entry_points=tuple(dict.fromkeys(("handler", legacy_entry_point(asked.file.stem)))),
        input=_object(asked.input, "--input"),
        context=_context() | _object(asked.context, "--context"),
        limits=Limits(
            wall_seconds=asked.timeout or settings.function_timeout,
            memory_bytes=settings.max_function_memory << 20,
            cpus=settings.max_function_cpu,
        ),
        egress=asked.egress or settings.function_egress,
        filename=str(asked.file),
    )


def _object(text: str, option: str) -> dict[str, JsonValue]:
    try:
        value = parse(Path(text[1:]).read_bytes() if text.startswith("@") else text.encode())
    except (BadJsonError, OSError, UnicodeError) as error:
        fail(f"{option}: {error}", UNUSABLE)
    if not isinstance(value, dict):
        fail(f"{option}: must be a JSON object", UNUSABLE)
    return value


def _context() -> dict[str, JsonValue]:
    """What a function finds in `context`, with nobody behind it."""
    return {
        "user_id": str(UUID(int=0)),
        "user_email": "local@example.com",
        "access_token": "",
        "execution_id": str(uuid4()),
        "trigger_type": "MANUAL",
        "chat_id": "",
        "secrets": {},
    }


async def _outcome(settings: Settings, task: Task, packages: Sequence[str]) -> Outcome:
    config = SandboxConfig(
        limits=task.limits,
        min_size=1,
        max_size=2,
        min_idle=1,
        platform=("127.0.0.1", settings.port),
        allowed_hosts=settings.sinas_allowed_hosts,
    )
    sandbox = open_sandbox(config)
    directories = open_directories(settings)
    wanted = await _packages(settings, directories, packages) if packages else None
    try:
        await sandbox.start()
        if wanted is not None:
            await sandbox.use(wanted)
        return await sandbox.run(task, lambda _, text: _pass_on(text))
    finally:
        await sandbox.close()
        directories.close()


async def _packages(settings: Settings, directories: PackageDirectories, packages: Sequence[str]) -> PackageSet:
    lock = await open_tool(settings).resolve([as_requirement(package) for package in packages], "")
    return await directories.get(lock, ())


def _pass_on(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def write_types(directory: Path) -> None:
    """Write the types of functions beside them."""
    target = directory / TYPES
    try:
        target.write_text((files("sinas_server.functions") / "stubs" / TYPES).read_text())
    except OSError as error:
        fail(f"{target} cannot be written: {error}")
    say(str(target))
