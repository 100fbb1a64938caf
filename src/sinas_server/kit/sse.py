"""Server-sent events on the wire (WHATWG HTML, section 9.2), as existing clients parse them."""

from collections.abc import Mapping

import orjson
from pydantic import JsonValue

PING = b": ping\n\n"
"""A comment: keeps the connection alive and no client reports it as an event."""


def event(name: str, data: Mapping[str, JsonValue], event_id: str | None = None) -> bytes:
    """One event as one block of bytes: `type` is repeated inside the one-line JSON data."""
    head = f"id: {event_id}\n" if event_id else ""
    payload = orjson.dumps({"type": name, **data}).decode()
    return f"{head}event: {name}\ndata: {payload}\n\n".encode()
