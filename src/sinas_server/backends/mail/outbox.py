"""Mail without a mail server: each message becomes a file that a developer can open."""

import os
from pathlib import Path
from uuid import uuid4

import structlog

from sinas_server.backends.mail import Mail
from sinas_server.backends.mail.compose import compose
from sinas_server.kit.clock import now

log = structlog.get_logger()


class OutboxMailer:
    """Writes `<folder>/<time>-<id>.eml` (0600) and logs the text, so that a first login works without SMTP."""

    def __init__(self, folder: Path, domain: str) -> None:
        self._folder = folder
        self._domain = domain

    async def send(self, mail: Mail) -> None:
        """Write the file; whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{now():%Y%m%dT%H%M%S}-{uuid4().hex[:8]}.eml"
        draft = path.with_suffix(".tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(bytes(compose(mail, self._domain)))
        draft.rename(path)
        log.info(
            "mail written to the outbox",
            to=mail.to,
            subject=mail.subject,
            file=str(path),
            text=(mail.text or mail.html or "").strip(),
        )
