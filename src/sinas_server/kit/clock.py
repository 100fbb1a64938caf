"""The time, always aware and in UTC."""

from datetime import UTC, datetime
from typing import Annotated, TypeAlias

from pydantic import AfterValidator


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def in_utc(given: datetime) -> datetime:
    """A time that somebody gives; without a zone it is meant in UTC. Raises `ValueError` for one too far from now."""
    try:
        moment = given.astimezone(UTC) if given.tzinfo else given.replace(tzinfo=UTC)
    except OverflowError:
        moment = datetime.min.replace(tzinfo=UTC)
    if moment.year < EARLIEST:
        raise ValueError(f"must lie in the years {EARLIEST} to 9999 of UTC")
    return moment


EARLIEST = 1970
Time: TypeAlias = Annotated[datetime, AfterValidator(in_utc)]
"""A time as users give it."""
