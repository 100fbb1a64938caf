"""Messages to servers outside: who may be told, and the queued task that tells them, again until it works."""

import orjson
import structlog
from pydantic import JsonValue

from sinas_server.backends.delivery import DeliveryError, Message, RefusedDeliveryError, deliver
from sinas_server.kernel.errors import InvalidError, Location
from sinas_server.kernel.outbox import TryLaterError, enqueue
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

log = structlog.get_logger()
DELIVERY_TASK = "delivery.send"


def check_receiver(runtime: Runtime, url: str | None, location: Location) -> str | None:
    """The URL itself if messages may be sent there, None for none. Raises `InvalidError` with the reason."""
    if not url:
        return None
    if not runtime.settings.callback_allowed_hosts:
        raise InvalidError([(location, "callbacks are switched off here: CALLBACK_ALLOWED_HOSTS lists no host")])
    problem = runtime.receivers.problem(url)
    if problem is not None:
        raise InvalidError([(location, problem)])
    return url


async def send(db: Db, runtime: Runtime, url: str, message_id: str, content: dict[str, JsonValue]) -> None:
    """Have `content` sent to a checked URL after this transaction, with retries over some hours."""
    await enqueue(db, runtime, DELIVERY_TASK, {"url": url, "id": message_id, "content": content})


async def deliver_task(runtime: Runtime, payload: dict[str, JsonValue]) -> None:
    """Send one message (a `TaskHandler`). Raises `TryLaterError`."""
    message = Message(str(payload["id"]), orjson.dumps(payload["content"]))
    secret = runtime.settings.callback_secret
    secrets = [part.strip() for part in secret.get_secret_value().split(",")] if secret else []
    try:
        await deliver(runtime.receivers, secrets, str(payload["url"]), message)
    except RefusedDeliveryError as error:
        log.warning("callback given up", id=message.id, reason=str(error))
    except DeliveryError as error:
        raise TryLaterError(str(error)) from error
