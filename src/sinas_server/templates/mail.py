"""Templates as mail: sent to someone, or the words of the platform's own mails."""

import structlog
from pydantic import JsonValue

from sinas_server.backends.mail import Mail
from sinas_server.identity.mail import Letter, open_letter
from sinas_server.kernel import lookup
from sinas_server.kernel.errors import SinasError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.templates.kind import TEMPLATE, TemplateSpec
from sinas_server.templates.render import Variables, render

log = structlog.get_logger()
MAX_SUBJECT = 255


async def write_mail(
    runtime: Runtime, template: Resource[TemplateSpec], variables: Variables, to: str, subject: str
) -> Mail:
    """The template as a mail; `subject` is for templates without a title. Raises what `render` raises."""
    rendered = await render(runtime.renderer, template, variables, for_mail=True)
    title = "".join(letter for letter in " ".join((rendered.title or "").split()) if letter.isprintable())
    return Mail(to=to, subject=title[:MAX_SUBJECT] or subject, text=rendered.text, html=rendered.html)


async def send_letter(runtime: Runtime, payload: dict[str, JsonValue]) -> None:
    """The handler of `mail.letter`. Raises `MailError`, which has the task tried again later."""
    posted = open_letter(runtime, payload)
    if posted.deliver:
        await runtime.mailer.send(await _worded(runtime, posted.letter))


async def _worded(runtime: Runtime, letter: Letter) -> Mail:
    """The mail in the words of its template; in its own if there is none that works, so that nobody is locked out."""
    template = await lookup.find(runtime.database, TEMPLATE, "default", letter.template)
    if template is None or not template.is_active:
        reason = "it is not there, or not active"
    else:
        try:
            plain = letter.plain
            mail = await write_mail(runtime, template, letter.variables, plain.to, plain.subject)
        except SinasError as error:
            reason = str(error).replace(letter.essential, "***")  # a schema's complaint shows what it complains of
        else:
            if all(letter.essential in part for part in (mail.text, mail.html) if part is not None):
                return mail
            reason = "it leaves out what the mail is for"
    log.warning("a mail goes out in built-in words instead of its template's", template=letter.template, reason=reason)
    return letter.plain
