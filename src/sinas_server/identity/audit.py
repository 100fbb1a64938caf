"""Reading the audit log: who changed what, newest first, or all of it as JSON lines. Nothing here writes."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated
from uuid import UUID

import orjson
from fastapi import Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, JsonValue
from sqlalchemy import ColumnElement, select

from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow
from sinas_server.kit.clock import Time

audit_router = new_router("/audit", "audit")
LINES = "application/x-ndjson"
BATCH = 1000
"""How many lines of an export are in memory at once."""


class AuditEntry(BaseModel):
    """One change."""

    id: int = Field(description="Grows with every entry.")
    at: datetime = Field(description="When it happened.")
    actor_id: UUID | None = Field(description="The user who did it; null for the platform itself.")
    actor: str = Field(description="The user's e-mail address at that time.")
    via: str = Field(description="How: `session`, `api_key`, `function` or `system`.")
    action: str = Field(description="What was done, like `set_permission`.")
    target_kind: str = Field(description="To what sort of thing, like `role`.")
    target: str = Field(description="Its name, or its id.")
    detail: dict[str, JsonValue] | None = Field(description="What was changed; never a secret.")


class AuditFilter(BaseModel):
    """Which entries are asked for."""

    actor: str | None = Field(None, max_length=320, description="The e-mail address or id of the user who did it.")
    action: str | None = Field(None, max_length=64, description="What was done.")
    target_kind: str | None = Field(None, max_length=64, description="To what sort of thing.")
    target: str | None = Field(None, max_length=1024, description="Its name, or its id.")
    since: Time | None = Field(None, description="Not before this time.")
    until: Time | None = Field(None, description="Before this time.")

    def terms(self) -> list[ColumnElement[bool]]:
        """The filter as conditions."""
        found = [
            column == value
            for column, value in (
                (AuditRow.action, self.action),
                (AuditRow.target_kind, self.target_kind),
                (AuditRow.target, self.target),
            )
            if value is not None
        ]
        if self.actor is not None:
            found.append(_by(self.actor))
        if self.since is not None:
            found.append(AuditRow.at >= self.since)
        if self.until is not None:
            found.append(AuditRow.at < self.until)
        return found


class AuditPage(AuditFilter):
    """Which entries are asked for, and which of them are shown."""

    skip: int = Field(0, ge=0, le=MAX_INT, description="How many to leave out.")
    limit: int = Field(100, ge=1, le=1000, description="How many at most.")


def _by(actor: str) -> ColumnElement[bool]:
    try:
        return AuditRow.actor_id == UUID(actor)
    except ValueError:
        return AuditRow.actor == actor.lower()


def _entry(row: AuditRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in AuditEntry.model_fields}


@audit_router.get("", response_model=list[AuditEntry], summary="List who changed what")
async def list_entries(db: CurrentDb, caller: CurrentCaller, only: Annotated[AuditPage, Query()]) -> Response:
    """The newest first."""
    caller.require("audit", "read", None)
    query = select(AuditRow).where(*only.terms()).order_by(AuditRow.id.desc()).offset(only.skip).limit(only.limit)
    return JsonAnswer([_entry(row) for row in await db.scalars(query)])


@audit_router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {LINES: {"schema": {"type": "string"}}}, "description": "An entry per line."}},
    summary="Export who changed what as JSON lines",
)
async def export(runtime: Run, caller: CurrentCaller, only: Annotated[AuditFilter, Query()]) -> StreamingResponse:
    """All of them, the oldest first."""
    caller.require("audit", "read", None)
    headers = {"Content-Disposition": 'attachment; filename="audit.jsonl"'}
    return StreamingResponse(_lines(runtime, only.terms()), media_type=LINES, headers=headers)


async def _lines(runtime: Runtime, terms: list[ColumnElement[bool]]) -> AsyncIterator[bytes]:
    """A transaction per batch: a slow reader holds none open."""
    last = 0
    while True:
        async with runtime.database.unit() as db:
            query = select(AuditRow).where(AuditRow.id > last, *terms).order_by(AuditRow.id).limit(BATCH)
            rows = (await db.scalars(query)).all()
        if rows:
            last = rows[-1].id
            yield b"".join(orjson.dumps(_entry(row), option=orjson.OPT_UTC_Z) + b"\n" for row in rows)
        if len(rows) < BATCH:
            return
