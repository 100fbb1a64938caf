"""Validate, apply and export over HTTP."""

import asyncio
import os
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, JsonValue

from sinas_server.config.document import API_PREFIX, DocumentError, api_lookup, dump, parse
from sinas_server.kernel.access import Caller
from sinas_server.kernel.apply import Order, Problem, Report, apply
from sinas_server.kernel.export import export
from sinas_server.kernel.http import CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Filter, Managed
from sinas_server.kernel.unit import Db

MAX_CONFIG = 5_000_000
Yaml = Annotated[str, Field(max_length=MAX_CONFIG, description="The document, as YAML.")]
HINT = f" (documents sent through the API may only read variables that begin with {API_PREFIX})"


class ValidateRequest(BaseModel):
    """A document to check."""

    config: Yaml


class ApplyRequest(BaseModel):
    """A document to apply."""

    config: Yaml
    dryRun: bool = Field(default=False, description="Only say what would change.")  # noqa: N815 - the wire's name
    force: bool = Field(default=False, description="Take over resources that were not created by a configuration.")


class ConfigProblem(BaseModel):
    """Something wrong in the document."""

    path: str = Field(description="Where.")
    location: str = Field(description="The same, under its other name.")
    message: str = Field(description="What.")
    severity: str = Field(description="`error` or `warning`.")


class ValidateResponse(BaseModel):
    """Whether the document could be applied."""

    valid: bool = Field(description="Whether there are no errors.")
    errors: list[ConfigProblem] = Field(default=[], description="What has to be mended.")
    warnings: list[ConfigProblem] = Field(default=[], description="What was ignored.")


class ApplySummary(BaseModel):
    """Counts by kind."""

    created: dict[str, int] = Field(default={}, description="Created, by kind.")
    updated: dict[str, int] = Field(default={}, description="Updated, by kind.")
    unchanged: dict[str, int] = Field(default={}, description="Left alone, by kind.")
    deleted: dict[str, int] = Field(default={}, description="Deleted, by kind.")


class AppliedChange(BaseModel):
    """What happened to one resource."""

    action: str = Field(description="`create`, `update`, `unchanged` or `delete`.")
    resourceType: str = Field(description="Its kind.")  # noqa: N815 - the wire's name
    resourceName: str = Field(description="Its name.")  # noqa: N815 - the wire's name
    details: str | None = Field(default=None, description="Why, where it is not plain.")
    changes: dict[str, JsonValue] | None = Field(default=None, description="Field → old and new.")


class ApplyResponse(BaseModel):
    """What an apply did, or would do."""

    success: bool = Field(description="Whether it was applied; with any error nothing was.")
    summary: ApplySummary = Field(description="Counts.")
    changes: list[AppliedChange] = Field(description="Each resource of the document.")
    errors: list[str] = Field(default=[], description="Why nothing was applied.")
    warnings: list[str] = Field(default=[], description="What was ignored.")


async def apply_text(db: Db, runtime: Runtime, request: ApplyRequest, caller: Caller) -> Report:
    """Apply a document sent through the API. Raises `DocumentError`."""
    document = await asyncio.to_thread(parse, request.config, api_lookup(os.environ), HINT)
    order = Order(caller, Managed("config", document.name), request.force)
    kinds = tuple(runtime.kinds.values())
    report = await apply(db, order, kinds, document.spec, dry_run=request.dryRun)
    report.warnings[:0] = document.warnings
    if not request.dryRun and not report.errors:
        await audit(db, caller, "config.apply", ("config", document.name or ""), {"changes": len(report.changes)})
    return report


def _problems(problems: list[Problem], severity: str) -> list[dict[str, str]]:
    return [
        {"path": item.path, "location": item.path, "message": item.message, "severity": severity} for item in problems
    ]


def _applied(report: Report) -> Response:
    changes = [
        {
            "action": change.action,
            "resourceType": change.kind,
            "resourceName": change.name,
            "details": change.details,
            "changes": change.changes,
        }
        for change in report.changes
    ]
    return JsonAnswer(
        {
            "success": not report.errors,
            "summary": report.summary(),
            "changes": changes,
            "errors": [str(error) for error in report.errors],
            "warnings": [str(warning) for warning in report.warnings],
        }
    )


def _router() -> APIRouter:
    router = new_router("/config", "config")

    @router.post("/validate", response_model=ValidateResponse, summary="Check a configuration document")
    async def validate(body: ValidateRequest, db: CurrentDb, runtime: Run, caller: CurrentCaller) -> Response:
        caller.require("config", "read", None)
        try:
            report = await apply_text(db, runtime, ApplyRequest(config=body.config, dryRun=True), caller)
        except DocumentError as error:
            report = Report(errors=error.problems)
        errors, warnings = _problems(report.errors, "error"), _problems(report.warnings, "warning")
        return JsonAnswer({"valid": not errors, "errors": errors, "warnings": warnings})

    @router.post("/apply", response_model=ApplyResponse, summary="Apply a configuration document")
    async def apply_config(body: ApplyRequest, db: CurrentDb, runtime: Run, caller: CurrentCaller) -> Response:
        caller.require("config", "update", None)
        try:
            return _applied(await apply_text(db, runtime, body, caller))
        except DocumentError as error:
            return _applied(Report(errors=error.problems))

    @router.get(
        "/export",
        response_class=Response,
        summary="Export the configuration as YAML",
        responses={200: {"content": {"application/yaml": {"schema": {"type": "string"}}}}},
    )
    async def export_config(
        db: CurrentDb,
        runtime: Run,
        caller: CurrentCaller,
        include_secrets: Annotated[
            bool, Query(description="Write `${NAME}` where there is a secret; secrets themselves never leave.")
        ] = False,
        managed_only: Annotated[bool, Query(description="Only what a configuration or package keeps.")] = False,
    ) -> Response:
        caller.require("config", "read", None)
        only = Filter(managed_only=managed_only)
        spec = await export(db, caller, tuple(runtime.kinds.values()), only, placeholders=include_secrets)
        note = "# Secrets are never exported: set the variables named below.\n" if include_secrets else ""
        return Response(note + dump(spec), media_type="application/yaml")

    return router


router = _router()
