"""Sending e-mail."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Mail:
    """One message to one person, as plain text, as HTML, or as both."""

    to: str
    subject: str
    text: str | None = None
    html: str | None = None
    from_name: str | None = None
    from_alias: str | None = None
    """The part before the @ of the sender's address."""


class MailError(Exception):
    """The mail server refused or does not answer; the message says which."""


class Mailer(Protocol):
    """Hands mail over for delivery."""

    async def send(self, mail: Mail) -> None:
        """Raises `MailError`."""
        ...
