"""What lists of executions can be asked for."""

from enum import StrEnum
from typing import TypeVar
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement

from sinas_server.functions.tables import ExecutionRow, Status, Trigger
from sinas_server.kernel.errors import InvalidError
from sinas_server.kernel.http import MAX_INT
from sinas_server.kernel.routes import MAX_LIST
from sinas_server.kit.clock import Time

E = TypeVar("E", bound=StrEnum)


def member_of(enum: type[E], text: str | None, parameter: str) -> E | None:
    """A word of a query parameter in either case. Raises `InvalidError` naming the words there are."""
    if text is None:
        return None
    try:
        return enum(text.upper())
    except ValueError as error:
        known = ", ".join(enum)
        raise InvalidError([(("query", parameter), f"must be one of {known}")]) from error


def _of_function(function_name: str) -> ColumnElement[bool]:
    """Rows of the function called `namespace/name`, or of any namespace's function called `name`."""
    namespace, slash, name = function_name.rpartition("/")
    named = ExecutionRow.name == name
    return named & (ExecutionRow.namespace == namespace) if slash else named


class ExecutionPage(BaseModel):
    """Which executions are asked for, and which of them are shown."""

    function_name: str | None = Field(None, description="`namespace/name`, or the name alone.")
    status: str | None = Field(None, description="One of the states, in either case.")
    trigger_type: str | None = Field(None, description="One of the triggers, in either case.")
    trigger_id: str | None = Field(None, max_length=255, description="Only those that the starter calls so.")
    chat_id: UUID | None = Field(None, description="Only those called in this chat.")
    tool_call_id: str | None = Field(None, max_length=1024, description="Only those of this tool call of an agent.")
    batch_id: UUID | None = Field(None, description="Only those of this batch.")
    since: Time | None = Field(None, description="Only those asked for at this time or later.")
    until: Time | None = Field(None, description="Only those asked for before this time.")
    skip: int = Field(0, ge=0, le=MAX_INT, description="How many to leave out.")
    limit: int = Field(100, ge=1, le=MAX_LIST, description="The most to return.")

    def terms(self) -> list[ColumnElement[bool]]:
        """The filter as conditions. Raises `InvalidError` for an unknown state or trigger."""
        terms = [
            column == value
            for column, value in (
                (ExecutionRow.status, member_of(Status, self.status, "status")),
                (ExecutionRow.trigger_type, member_of(Trigger, self.trigger_type, "trigger_type")),
                (ExecutionRow.trigger_id, self.trigger_id),
                (ExecutionRow.chat_id, self.chat_id),
                (ExecutionRow.tool_call_id, self.tool_call_id),
                (ExecutionRow.batch_id, self.batch_id),
            )
            if value is not None
        ]
        if self.function_name is not None:
            terms.append(_of_function(self.function_name))
        if self.since is not None:
            terms.append(ExecutionRow.created_at >= self.since)
        if self.until is not None:
            terms.append(ExecutionRow.created_at < self.until)
        return terms
