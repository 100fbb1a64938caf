"""A field that is encrypted in the database, absent in every answer and export, and a fingerprint in checksums."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer, SerializationInfo, ValidationInfo, WithJsonSchema

from sinas_server.kit.crypto import Sealer, UndecryptableError

Form = Literal["plain", "sealed", "digest"]


class SecretContext:
    """How secrets are written (or read) in one conversion; passed as pydantic's `context`."""

    def __init__(self, form: Form, sealer: Sealer | None = None) -> None:
        self.form = form
        self.sealer = sealer
        self.unreadable: set[str] = set()
        """Fields whose key is gone: they read `UNREADABLE`."""


PLAIN = SecretContext("plain")
UNREADABLE = "(unreadable)"


def is_stored(info: ValidationInfo) -> bool:
    """Whether what is being read comes from the database, so that it was accepted once."""
    return isinstance(info.context, SecretContext) and info.context.form == "sealed"


def _open(value: object, info: ValidationInfo) -> object:
    context = info.context
    if isinstance(context, SecretContext) and context.form == "sealed" and context.sealer and isinstance(value, str):
        try:
            return context.sealer.open(value)
        except UndecryptableError:
            context.unreadable.add(info.field_name or "a secret")
            return UNREADABLE
    return value


def _close(value: str | None, info: SerializationInfo) -> str | None:
    context = info.context
    if value is None or not isinstance(context, SecretContext):
        return None
    if context.form == "plain":
        return value
    if context.sealer is None:
        return None
    return context.sealer.seal(value) if context.form == "sealed" else context.sealer.digest(value)


class _SecretMark:
    """Marks the field, so that answers leave it out and re-applying keeps what is stored."""


SECRET_MARK = _SecretMark()

Secret = Annotated[
    str,
    BeforeValidator(_open),
    PlainSerializer(_close, return_type=str | None),
    WithJsonSchema({"type": "string", "writeOnly": True}),
    SECRET_MARK,
]
"""A secret string: `api_key: Secret | None = None`."""
