"""Turning a `Mail` into the message that goes on the wire (RFC 5322)."""

from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from sinas_server.backends.mail import Mail


def compose(mail: Mail, domain: str) -> EmailMessage:
    """The message, from `noreply@<domain>` unless the mail says otherwise."""
    message = EmailMessage()
    message["From"] = Address(mail.from_name or "Sinas", mail.from_alias or "noreply", domain)
    message["To"] = mail.to
    message["Subject"] = mail.subject
    message["Date"] = formatdate(localtime=False)
    message["Message-ID"] = make_msgid(domain=domain)
    if mail.text is not None or mail.html is None:
        message.set_content(mail.text or "")
    if mail.html is not None:
        message.add_alternative(mail.html, subtype="html")
    return message
