"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import JsonValue

from sinas_server.backends.llm import ProviderError
from sinas_server.kernel.errors import BadRequestError, NotFoundError, SinasError, TooManyRequestsError
from sinas_server.kernel.http import JsonAnswer, Problem

TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Status → type; other client errors are `invalid_request_error`, those of the server `server_error`."""


class ParameterError(BadRequestError):
    """A parameter that is well-formed and cannot be honored; `param` names it."""

    code = "invalid_parameter"

    def __init__(self, param: str, detail: str) -> None:
        super().__init__(detail)
        self.param = param

    def body(self) -> dict[str, JsonValue]:
        """With the parameter."""
        return {**super().body(), "param": self.param}


class UnknownModelError(NotFoundError):
    """There is no such model, or the caller may not know that there is."""

    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model}' does not exist or you may not use it; GET /v1/models lists yours")

    def body(self) -> dict[str, JsonValue]:
        """With the parameter."""
        return {**super().body(), "param": "model"}


class RefusedByProviderError(BadRequestError):
    """The provider does not take the request as it stands."""

    code = "provider_refused"


class ProviderFailedError(SinasError):
    """The provider failed, or does not accept how this installation reaches it."""

    status, code = 502, "provider_error"


def from_provider(error: ProviderError) -> SinasError:
    """What a provider's error is to our caller: his own mistake, a limit, or a failure behind us."""
    text = str(error)
    if error.status == 429:
        return TooManyRequestsError(text, 5)
    # Without a status it is our own finding about the request; 401 and 403 are about the provider's key, not his.
    if not error.retryable and error.status in (None, 400, 404, 413, 422):
        return RefusedByProviderError(text)
    return ProviderFailedError(text)


def error_object(status: int, body: Mapping[str, object]) -> dict[str, JsonValue]:
    """OpenAI's error object for an error body of ours."""
    message, param = _told(body.get("detail"))
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param, code = cast(str | None, body.get("param")) or param, cast(str | None, body.get("code"))
    return {"message": message, "type": kind, "param": param, "code": code}


def _told(detail: object) -> tuple[str, str | None]:
    """The message, and the field it is about."""
    if not isinstance(detail, Sequence) or isinstance(detail, str):
        return str(detail), None
    problems = cast(Sequence[Mapping[str, object]], detail)
    places = [_place(problem) for problem in problems]
    reasons = [str(problem["msg"]).removeprefix("Value error, ") for problem in problems]
    told = (f"{place}: {reason}" if place else reason for place, reason in zip(places, reasons, strict=True))
    return "; ".join(told), next(filter(None, places), None)


def _place(problem: Mapping[str, object]) -> str:
    """The field a problem is about; a body that is no JSON has no fields, only a position."""
    if problem["type"] == "json_invalid":
        return ""
    return ".".join(map(str, cast(Sequence[object], problem["loc"])[1:]))


def openai_form(problem: Problem) -> JsonAnswer:
    """An error as every OpenAI SDK reads it."""
    body = {"error": error_object(problem.status, problem.body)}
    return JsonAnswer(body, problem.status, headers=dict(problem.headers))


def event_of(error: SinasError) -> dict[str, JsonValue]:
    """An error inside a stream that had begun well."""
    return {"error": error_object(error.status, error.body())}
