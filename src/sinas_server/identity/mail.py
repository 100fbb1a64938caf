"""Mail that leaves after its transaction: kept sealed in the queue, since it may hold a login code."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import orjson
from pydantic import JsonValue, TypeAdapter

from sinas_server.backends.mail import Mail
from sinas_server.kernel.outbox import enqueue
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

MAIL_TASK = "mail.send"
LETTER_TASK = "mail.letter"
"""Handled by the slice of templates, which is above this one."""
LOGIN_LETTER, RESET_LETTER = "otp_email", "password_reset_email"
"""The templates, in the namespace `default`, of the two mails with a code."""


@dataclass(frozen=True)
class Letter:
    """A mail of the platform itself, whose words an administrator may change.

    `template` is its name in the namespace `default`, `plain` what is sent where that does not work, and `essential`
    what no wording may leave out.
    """

    template: str
    variables: Mapping[str, JsonValue]
    plain: Mail
    essential: str


@dataclass(frozen=True)
class PostedLetter:
    """A letter in the queue; without `deliver` it goes nowhere."""

    letter: Letter
    deliver: bool


_MAIL = TypeAdapter(Mail)
_POSTED = TypeAdapter(PostedLetter)


async def post(db: Db, runtime: Runtime, mail: Mail) -> None:
    """Send a mail once this transaction is committed."""
    await _enqueue(db, runtime, MAIL_TASK, asdict(mail))


async def post_letter(db: Db, runtime: Runtime, letter: Letter, *, deliver: bool) -> None:
    """The same for a letter.

    Without `deliver` the same work is done up to the mail server, so that its absence cannot be told by the time.
    """
    await _enqueue(db, runtime, LETTER_TASK, asdict(PostedLetter(letter, deliver)))


async def _enqueue(db: Db, runtime: Runtime, task: str, content: Mapping[str, object]) -> None:
    await enqueue(db, runtime, task, {"sealed": db.sealer.seal(orjson.dumps(content).decode())})


def _opened(runtime: Runtime, payload: Mapping[str, JsonValue]) -> object:
    return orjson.loads(runtime.database.sealer.open(str(payload["sealed"])))


async def send_mail(runtime: Runtime, payload: dict[str, JsonValue]) -> None:
    """The handler of `mail.send`. Raises `MailError`, which has the task tried again later."""
    await runtime.mailer.send(_MAIL.validate_python(_opened(runtime, payload)))


def open_letter(runtime: Runtime, payload: Mapping[str, JsonValue]) -> PostedLetter:
    """The letter of a `mail.letter` task."""
    return _POSTED.validate_python(_opened(runtime, payload))


def code_letter(to: str, code: str, minutes: int, *, resets: bool) -> Letter:
    """The mail with a code, for a login or for setting a password."""
    what = "code to set your password" if resets else "login code"
    text = (
        f"Your {what} is {code}\n\n"
        f"It works once and for {minutes} minutes. If you did not ask for it, ignore this mail.\n"
    )
    return Letter(
        template=RESET_LETTER if resets else LOGIN_LETTER,
        variables={"otp_code": code, "email": to, "expires_in_minutes": minutes},
        plain=Mail(to=to, subject=f"Your {what}", text=text),
        essential=code,
    )
