"""Applying the configuration file of a deployment when it starts."""

import asyncio
import os
from pathlib import Path

import structlog

from sinas_server.config.document import DocumentError, Lookup, parse
from sinas_server.kernel.access import Caller
from sinas_server.kernel.apply import Order, Problem, apply
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Managed

log = structlog.get_logger()
OWN_SECRETS = frozenset(
    {"SECRET_KEY", "ENCRYPTION_KEY", "DATABASE_PASSWORD", "DATABASE_URL", "REDIS_URL", "SMTP_PASSWORD"}
)
"""The platform's own secrets, which no document may read."""


def file_lookup() -> Lookup:
    """What a file on this machine may read: the whole environment but the platform's own secrets."""
    return lambda name: None if name in OWN_SECRETS else os.environ.get(name)


async def apply_file(runtime: Runtime, caller: Caller, path: Path) -> bool:
    """Apply a file on behalf of `caller`, all of it or nothing; problems are logged, and whether there were none."""
    try:
        document = parse(await asyncio.to_thread(path.read_text), file_lookup(), base=path.parent)
    except (OSError, UnicodeDecodeError) as error:
        problems = [Problem(str(path), f"cannot be read: {error}")]
    except DocumentError as error:
        problems = error.problems
    else:
        order = Order(caller, Managed("config", document.name))
        async with runtime.database.unit() as db:
            report = await apply(db, order, tuple(runtime.kinds.values()), document.spec)
        for warning in (*document.warnings, *report.warnings):
            log.warning("configuration file", at=warning.path, message=warning.message)
        problems = report.errors
        if not problems:
            log.info("configuration applied", file=str(path), summary=report.summary())
    for problem in problems:
        log.error("configuration not applied", file=str(path), at=problem.path, message=problem.message)
    return not problems
