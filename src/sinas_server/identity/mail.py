"""Mail that leaves after its transaction: kept sealed in the queue, since it may hold a login code."""

from typing import TypedDict, cast

import orjson
from pydantic import JsonValue

from sinas_server.backends.mail import Mail
from sinas_server.kernel.outbox import enqueue
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

MAIL_TASK = "mail.send"


class _Sealed(TypedDict):
    to: str
    subject: str
    text: str
    deliver: int


async def post(db: Db, runtime: Runtime, mail: Mail, *, deliver: bool = True) -> None:
    """Send a mail once this transaction is committed.

    Without `deliver` the same work is done up to the mail server, so that its absence cannot be told by the time.
    """
    content: _Sealed = {"to": mail.to, "subject": mail.subject, "text": mail.text, "deliver": int(deliver)}
    await enqueue(db, runtime, MAIL_TASK, {"sealed": db.sealer.seal(orjson.dumps(content).decode())})


async def send_mail(runtime: Runtime, payload: dict[str, JsonValue]) -> None:
    """The handler of `mail.send`. Raises `MailError`, which has the task tried again later."""
    content = cast(_Sealed, orjson.loads(runtime.database.sealer.open(str(payload["sealed"]))))
    if content["deliver"]:
        await runtime.mailer.send(Mail(to=content["to"], subject=content["subject"], text=content["text"]))


def code_mail(to: str, code: str, minutes: int, *, resets: bool) -> Mail:
    """The mail with a code, for a login or for setting a password."""
    what = "code to set your password" if resets else "login code"
    text = (
        f"Your {what} is {code}\n\n"
        f"It works once and for {minutes} minutes. If you did not ask for it, ignore this mail.\n"
    )
    return Mail(to=to, subject=f"Your {what}", text=text)
