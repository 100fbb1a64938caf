"""The templates of the platform's own mails, which every installation starts with and administrators edit."""

from sinas_server.identity.mail import LOGIN_LETTER, RESET_LETTER
from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.seed import seed
from sinas_server.templates.kind import TEMPLATE, TemplateSpec

HTML = """<!doctype html>
<html>
<head>
<style>
  body { font-family: sans-serif; color: #1f2937; }
  .code { font-size: 28px; font-weight: bold; letter-spacing: 4px; }
  .small { font-size: 13px; color: #6b7280; }
</style>
</head>
<body>
  <p>Your %(what)s is</p>
  <p class="code">{{ otp_code }}</p>
  <p class="small">
    It works once and for {{ expires_in_minutes }} minutes. If you did not ask for it, ignore this mail.
  </p>
</body>
</html>
"""
TEXT = """Your %(what)s is {{ otp_code }}

It works once and for {{ expires_in_minutes }} minutes. If you did not ask for it, ignore this mail.
"""
VARIABLES = {
    "type": "object",
    "properties": {
        "otp_code": {"type": "string", "description": "The code. A mail without it is not sent in these words."},
        "email": {"type": "string", "description": "Who gets the mail."},
        "expires_in_minutes": {"type": "integer", "description": "How long the code works."},
    },
    "required": ["otp_code"],
}


def _code_mail(what: str, description: str) -> TemplateSpec:
    fields = {
        "description": description,
        "title": f"Your {what}",
        "html_content": HTML % {"what": what},
        "text_content": TEXT % {"what": what},
        "variable_schema": VARIABLES,
    }
    return store.validated(TEMPLATE, fields)


async def bootstrap(runtime: Runtime, admin: Caller) -> None:
    """Create the two templates of mails with a code, once."""
    login = _code_mail("login code", "The mail with the code of a login.")
    reset = _code_mail("code to set your password", "The mail with the code that sets a password.")
    async with runtime.database.unit() as db:
        await seed(db, admin, TEMPLATE, ("default", LOGIN_LETTER), login)
        await seed(db, admin, TEMPLATE, ("default", RESET_LETTER), reset)
