"""Mail over SMTP with STARTTLS or implicit TLS."""

from dataclasses import dataclass

from sinas_server.backends.mail import Mail, MailError
from sinas_server.backends.mail.compose import compose


@dataclass(frozen=True)
class SmtpServer:
    """How to reach the mail server."""

    host: str
    port: int
    user: str | None
    password: str | None
    domain: str


class SmtpMailer:
    """Sends each mail over a connection of its own."""

    def __init__(self, server: SmtpServer) -> None:
        self._server = server

    async def send(self, mail: Mail) -> None:
        """Deliver to the server; it has accepted the mail when this returns."""
        import aiosmtplib  # lazy: most processes never send a mail

        server = self._server
        try:
            await aiosmtplib.send(
                compose(mail, server.domain),
                hostname=server.host,
                port=server.port,
                username=server.user,
                password=server.password,
                use_tls=server.port == 465,
                start_tls=None,
                timeout=30,
            )
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailError(f"the mail server {server.host}:{server.port} did not take the mail: {error}") from error
