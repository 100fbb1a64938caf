"""The mail that a real worker of the task queue writes to the outbox of a runtime without a mail server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from sinas_server.kernel.job import Worker
from sinas_server.kernel.outbox import TASK_JOB
from sinas_server.kernel.runtime import Runtime


class Mailbox:
    """Whatever was sent, to anyone."""

    def __init__(self, outbox: Path) -> None:
        self.outbox = outbox

    async def take(self, address: str) -> EmailMessage:
        """The newest mail to this address, once it is there; it is removed."""
        while True:
            for path in sorted(self.outbox.glob("*.eml"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
                mail = message_from_bytes(path.read_bytes(), policy=policy.default)
                assert isinstance(mail, EmailMessage)
                if mail["To"] == address:
                    path.unlink()
                    return mail
            await asyncio.sleep(0.02)


@asynccontextmanager
async def delivered(runtime: Runtime) -> AsyncIterator[Mailbox]:
    """Mail is sent while the context is open."""
    worker = asyncio.create_task(Worker(runtime, TASK_JOB, 2).run())
    try:
        yield Mailbox(runtime.settings.sinas_data_dir / "outbox")
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


def part_of(mail: EmailMessage, sort: str) -> str | None:
    """The body of a mail as `plain` text or as `html`, if it has one."""
    part = mail.get_body((sort,))
    return None if part is None else str(part.get_content())
