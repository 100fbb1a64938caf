"""Errors that carry their own HTTP status; one handler renders them as `{"detail": ...}`."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import JsonValue

Location = tuple[str | int, ...]


class SinasError(Exception):
    """Something the caller should know about; never a bug of ours."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})

    def body(self) -> dict[str, JsonValue]:
        """What is sent to the client."""
        return {"detail": self.detail, "code": self.code}


class BadRequestError(SinasError):
    """The request cannot be carried out as it stands."""

    status, code = 400, "bad_request"


class AlreadyExistsError(BadRequestError):
    """The name is taken (400, as existing clients expect)."""

    code = "already_exists"


class UnauthorizedError(SinasError):
    """The credential is missing, invalid or expired; nothing else is a 401."""

    status, code = 401, "unauthorized"

    def __init__(self, detail: str = "Not authenticated") -> None:
        super().__init__(detail, {"WWW-Authenticate": "Bearer"})


class ForbiddenError(SinasError):
    """The caller is known and may not do this."""

    status, code = 403, "forbidden"


class NotFoundError(SinasError):
    """There is no such thing, or the caller may not know that there is."""

    status, code = 404, "not_found"


class ConflictError(SinasError):
    """The state of something else forbids it."""

    status, code = 409, "conflict"


class KeyMissingError(ConflictError):
    """A stored secret was encrypted with a key that is no longer in `ENCRYPTION_KEY`."""

    code = "key_missing"


class GoneError(SinasError):
    """It existed and has expired."""

    status, code = 410, "gone"


class PreconditionFailedError(SinasError):
    """`If-Match` names another version than the stored one."""

    status, code = 412, "precondition_failed"


class InvalidError(SinasError):
    """The input is well-formed JSON but not acceptable: the fields, with reasons (422, FastAPI's list form)."""

    status, code = 422, "invalid"

    def __init__(self, problems: Sequence[tuple[Location, str]], kind: str = "value_error") -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, loc))}: {message}" for loc, message in problems))
        self.problems = list(problems)
        self.kind = kind

    def body(self) -> dict[str, JsonValue]:
        """FastAPI's list of `{loc, msg, type}`."""
        return {
            "detail": [{"loc": list(loc), "msg": message, "type": self.kind} for loc, message in self.problems],
            "code": self.code,
        }


class TooLargeError(InvalidError):
    """Something of the input is larger than is allowed: which field, in the same form as for `InvalidError`."""

    status, code = 413, "too_large"


class TooManyRequestsError(SinasError):
    """A rate limit was hit; `Retry-After` says for how many seconds."""

    status, code = 429, "too_many_requests"

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        super().__init__(detail, {"Retry-After": str(max(1, retry_after_seconds))})


class UnavailableError(SinasError):
    """Something the request needs does not answer now; trying again may help."""

    status, code = 503, "unavailable"
