"""What functions are given and give back where the platform calls them: one schema for each such place.

The same schemas are the presets that editors offer, and the check of what the platform passes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue

from sinas_server.functions.tables import Trigger

Schema = dict[str, JsonValue]


class Shape(StrEnum):
    """A place from which the platform calls functions with an input of its own making."""

    PRE_UPLOAD_FILTER = "pre_upload_filter"
    POST_UPLOAD = "post_upload"
    CDC = "cdc"
    MESSAGE_HOOK = "message_hook"


@dataclass(frozen=True)
class Preset:
    """The schemas of functions for one place."""

    name: Shape
    title: str
    description: str
    input_schema: Schema
    output_schema: Schema


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _object(properties: Mapping[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    """An object that has these properties, and others only where a later release adds some."""
    required: list[JsonValue] = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
    }


_FILE = {
    "namespace": _text("Namespace of the collection."),
    "collection": _text("Name of the collection."),
    "filename": _text("Name of the file."),
}
_USER = {"user_id": _text("Who did it.")}

PRESETS: Mapping[Shape, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            Shape.PRE_UPLOAD_FILTER,
            "Pre-upload filter",
            "Decides about a file before it is stored: approves it, rejects it, or changes it.",
            _object(
                {
                    "content_base64": _text("The file, in base64."),
                    **_FILE,
                    "content_type": _text("Its media type, as it was given."),
                    "size_bytes": {"type": "integer", "minimum": 0, "description": "Its size."},
                    "user_metadata": {"type": "object", "description": "The metadata that came with it."},
                    **_USER,
                }
            ),
            _object(
                {
                    "approved": {"type": "boolean", "description": "Whether it may be stored."},
                    "reason": {"type": ["string", "null"], "description": "Why not; shown to who uploads it."},
                    "content_base64": {
                        "type": ["string", "null"],
                        "description": "What to store in its place, in base64; null stores it as it is.",
                    },
                    "metadata": {"type": ["object", "null"], "description": "Metadata to store in place of the given."},
                },
                optional=("reason", "content_base64", "metadata"),
            ),
        ),
        Preset(
            Shape.POST_UPLOAD,
            "Post-upload",
            "Works on a file after it was stored. What it returns is recorded and changes nothing.",
            _object(
                {
                    "file_id": _text("Id of the file."),
                    **_FILE,
                    "version": {"type": "integer", "minimum": 1, "description": "Its version, counted from 1."},
                    "file_path": _text("Where it is read: `<namespace>/<collection>/<filename>`."),
                    **_USER,
                    "metadata": {"type": "object", "description": "Its metadata."},
                }
            ),
            {},
        ),
        Preset(
            Shape.CDC,
            "Change data capture",
            "Works on rows of a database that were added or changed. What it returns is recorded.",
            _object(
                {
                    "table": _text("`schema.table`."),
                    "operation": _text("`CHANGE` where inserts and updates cannot be told apart."),
                    "rows": {"type": "array", "items": {"type": "object"}, "description": "The rows, column → value."},
                    "poll_column": _text("The column by which changes are found."),
                    "count": {"type": "integer", "minimum": 0, "description": "How many rows there are."},
                    "timestamp": {"type": "string", "format": "date-time", "description": "When they were read."},
                }
            ),
            {},
        ),
        Preset(
            Shape.MESSAGE_HOOK,
            "Message hook",
            "Sees each message of a chat: passes it on, changes it, or blocks it with a reply of its own.",
            _object(
                {
                    "message": _object(
                        {
                            "role": {"enum": ["user", "assistant"], "description": "Whose message it is."},
                            "content": {
                                "type": ["string", "array"],
                                "description": "The message; an array of parts where it holds more than text.",
                            },
                        }
                    ),
                    "chat_id": _text("Id of the chat."),
                    "agent": _object({"namespace": _text("Its namespace."), "name": _text("Its name.")}),
                    "session_key": {
                        "type": ["string", "null"],
                        "description": "The chat's session key, if it has one.",
                    },
                    "user_id": _text("Whose chat it is."),
                }
            ),
            {
                "type": ["object", "null"],
                "description": "Nothing or `{}` passes the message on unchanged.",
                "properties": {
                    "content": _text("The message in place of the one there is."),
                    "block": {"type": "boolean", "description": "Go no further; only where the hook is waited for."},
                    "reply": _text("What the user gets if it is blocked."),
                },
            },
        ),
    )
}

_OF_TRIGGER = {Trigger.CDC: Shape.CDC, Trigger.HOOK: Shape.MESSAGE_HOOK}


def given_schema(trigger: Trigger, shape: Shape | None) -> Schema:
    """What the input must look like by what starts the function; `{}` where the caller is free.

    Agents, the API, people and schedules give what the function's own schema asks for; a webhook gives its default
    values with the request's body and query.
    """
    at = shape or _OF_TRIGGER.get(trigger)
    return PRESETS[at].input_schema if at else {}
