"""What commands print, and how they end when something is wrong."""

import logging
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from sinas_server.settings import Settings


def say(text: str = "") -> None:
    """Print a line of a command's own output."""
    print(text, flush=True)  # noqa: T201 - this is the one place that prints


def note(text: str) -> None:
    """Say something on standard error, beside a command's own output."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the one place that prints


def fail(message: str, code: int = 1) -> NoReturn:
    """Say on standard error what went wrong, and exit."""
    note(message)
    raise typer.Exit(code)


def settings_or_exit(**changes: object) -> "Settings":
    """The settings of this environment with what the command line says instead; exits 2 if they are wrong."""
    from sinas_server.settings import SettingsError, load_settings  # lazy: a fifth of a second

    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return load_settings().model_copy(update=given)
    except SettingsError as error:
        fail(str(error), 2)


def log_to_terminal(*, debug: bool) -> None:
    """One line per event on standard error."""
    import structlog  # lazy: only what runs something logs

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            # Not the rich tracebacks: they print local variables, and so secrets, and take a second each.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
