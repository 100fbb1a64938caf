"""Types of fields that several kinds declare, checked when they are written and not again when they are read."""

from typing import Annotated

from pydantic import AfterValidator, JsonValue, ValidationInfo

from sinas_server.kernel.secret import SecretContext
from sinas_server.kit import jinja
from sinas_server.kit.schema import check_schema


def is_stored(info: ValidationInfo) -> bool:
    """Whether a value comes from the database, where only checked ones are."""
    return isinstance(info.context, SecretContext) and info.context.form == "sealed"


def _check_schema(schema: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
    if not is_stored(info):
        check_schema(schema)
    return schema


def _check_template(source: str, info: ValidationInfo) -> str:
    if not is_stored(info):
        jinja.check(source)
    return source


JsonSchema = Annotated[dict[str, JsonValue], AfterValidator(_check_schema)]
"""A valid JSON Schema (draft 2020-12)."""

JinjaSource = Annotated[str, AfterValidator(_check_template)]
"""A Jinja2 template without syntax errors."""
