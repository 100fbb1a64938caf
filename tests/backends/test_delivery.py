"""Where messages may be sent, and how they are signed."""

import base64
import hashlib
import hmac

import pytest

from sinas_server.backends import transport
from sinas_server.backends.delivery import (
    DeliveryError,
    Message,
    Receivers,
    RefusedDeliveryError,
    deliver,
    secret_bytes,
    signed_headers,
)
from sinas_server.backends.net import literal
from sinas_server.kit.hosts import Address
from tests.functions.receiver import receiving

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
MESSAGE = Message("execution_1", b'{"type":"execution.completed"}')


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def test_the_signature_is_that_of_the_standard() -> None:
    """The example of the specification's reference implementation."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = signed_headers([secret], Message("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}'), 1614265330)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330")


def test_each_secret_signs() -> None:
    one, two = signed_headers([SECRET, OTHER], MESSAGE, 5)["webhook-signature"].split(" ")
    content = b"execution_1.5." + MESSAGE.body
    for secret, signature in ((b"k" * 32, one), (b"o" * 32, two)):
        expected = base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode()
        assert signature == f"v1,{expected}"


@pytest.mark.parametrize("secret", ["abc", "whsec_!", "whsec_YWJj", "whsec_" + base64.b64encode(b"k" * 65).decode()])
def test_a_secret_is_no_password(secret: str) -> None:
    with pytest.raises(ValueError):
        secret_bytes(secret)


@pytest.mark.parametrize(
    ("allowed", "url", "reason"),
    [
        ((), "https://example.com/x", "does not list it"),
        (("example.com",), "https://example.com/x", None),
        (("example.com",), "https://EXAMPLE.com.:8443/x", None),
        (("example.com:443",), "https://example.com:8443/x", "does not list it"),
        (("example.com",), "https://example.com.evil.org/", "does not list it"),
        (("example.com",), "https://example.org/?example.com", "does not list it"),
        (("*.example.com",), "https://a.b.example.com/", None),
        (("*.example.com",), "https://example.com/", "does not list it"),
        (("*",), "https://anything.org/", None),
        (("*",), "http://127.0.0.1/", "not a public address"),
        (("*",), "http://[::1]/", "not a public address"),
        (("*",), "http://[::ffff:10.0.0.1]/", "not a public address"),
        (("*",), "http://10.0.0.1/", "not a public address"),
        (("10.0.0.0/8",), "http://10.0.0.1/", None),
        (("10.0.0.0/8",), "http://11.0.0.1/", "does not list it"),
        (("*", "169.254.169.254"), "http://169.254.169.254/latest", "metadata"),
        (("*", "metadata.google.internal"), "http://metadata.google.internal/", "metadata"),
        (("*",), "ftp://example.com/", "http:// or https://"),
        (("*",), "https:///path", "name a host"),
        (("*",), "https://user:secret@example.com/", "user name or password"),
        (("*",), "https://example.com:99999/", "Port out of range"),
        (("*",), "https://[::1/", "no URL"),
        (("*",), "https://example.com/a b", "no blanks"),
        (("*",), "https://example.com/\n", "no blanks"),
        (("*",), "https://exämple.com/", "ASCII"),
        (("*",), "https://example.com/" + "x" * 2048, "at most 2048"),
        (("*",), "", "http:// or https://"),
    ],
)
def test_where_messages_may_go(allowed: tuple[str, ...], url: str, reason: str | None) -> None:
    problem = Receivers(allowed).problem(url)
    assert (problem is None) == (reason is None), problem
    assert reason is None or reason in (problem or "")


async def test_a_message_arrives_signed() -> None:
    async with receiving() as receiver:
        await deliver(Receivers(["127.0.0.1"]), [SECRET], receiver.url, MESSAGE)
        [(headers, body)] = receiver.got
    assert body == MESSAGE.body
    assert headers["content-type"] == "application/json"
    signed = signed_headers([SECRET], MESSAGE, int(headers["webhook-timestamp"]))
    assert headers.items() >= signed.items()


@pytest.mark.parametrize(("status", "error"), [(302, DeliveryError), (500, DeliveryError), (410, RefusedDeliveryError)])
async def test_only_a_2xx_counts_and_redirects_are_not_followed(status: int, error: type[DeliveryError]) -> None:
    async with receiving() as receiver:
        receiver.answers = [status]
        with pytest.raises(error, match=str(status)):
            await deliver(Receivers(["127.0.0.1"]), [SECRET], receiver.url, MESSAGE)
        assert len(receiver.got) == 1


async def test_a_name_may_not_lead_to_a_private_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name means is looked up at each delivery, and the connection goes to the address that was checked."""

    async def private(host: str, port: int) -> list[Address]:
        found = literal("127.0.0.1")
        assert found is not None
        return [found]

    monkeypatch.setattr(transport, "resolve", private)
    async with receiving() as receiver:
        url = receiver.url.replace("127.0.0.1", "hooks.example.com")
        with pytest.raises(DeliveryError, match="not a public address"):
            await deliver(Receivers(["*"]), [SECRET], url, MESSAGE)
        assert receiver.got == []
        await deliver(Receivers(["hooks.example.com"]), [SECRET], url, MESSAGE)
        assert len(receiver.got) == 1


async def test_nobody_there() -> None:
    with pytest.raises(DeliveryError):
        await deliver(Receivers(["127.0.0.1"]), [SECRET], "http://127.0.0.1:1/", MESSAGE)
    with pytest.raises(RefusedDeliveryError):
        await deliver(Receivers([]), [SECRET], "http://127.0.0.1:1/", MESSAGE)
