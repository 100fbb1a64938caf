"""What the user sees of a failure: one line, and a traceback that starts in the user's own file."""

import math
import traceback
from collections.abc import Iterator
from pathlib import Path

from . import missing

GUEST = str(Path(__file__).parent)
MODULE = "function"  # the name under which the user's code is a module; several at once add a colon and their own
MAX_LINE = 2_000
MAX_TRACEBACK = 64_000


def one_line(error: BaseException) -> str:
    """The exception with its message, as Python would name it, on one line."""
    kind = type(error)
    own = kind.__module__ in {"builtins", "__main__"} or kind.__module__.partition(":")[0] == MODULE
    prefix = "" if own else f"{kind.__module__}."
    try:
        message = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - the user's own __str__ runs here
        message = "<the exception cannot be shown as text>"
    message = _readable(message) + missing.advice(error)
    return f"{prefix}{kind.__qualname__}: {message}"[:MAX_LINE] if message else f"{prefix}{kind.__qualname__}"


def _readable(text: str) -> str:
    """Text with what cannot be stored, NUL characters and halves of surrogate pairs, as Python writes it."""
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


def user_traceback(error: BaseException, filename: str) -> str:
    """The traceback without the frames of the sandbox itself."""
    shown = traceback.TracebackException.from_exception(error)
    _strip(shown, filename, set())
    alone = not shown.stack and shown.__cause__ is None and shown.__context__ is None
    text = _readable("".join(shown.format_exception_only() if alone else shown.format()))
    if len(text) > MAX_TRACEBACK:
        half = MAX_TRACEBACK // 2
        text = f"{text[:half]}\n  ... [{len(text) - MAX_TRACEBACK} characters left out] ...\n{text[-half:]}"
    return text


def _strip(shown: traceback.TracebackException, filename: str, seen: set[int]) -> None:
    if id(shown) in seen:
        return
    seen.add(id(shown))
    frames = [frame for frame in shown.stack if not frame.filename.startswith(GUEST)]
    own = next((index for index, frame in enumerate(frames) if frame.filename == filename), 0)
    shown.stack[:] = frames[own:]
    for inner in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        if inner is not None:
            _strip(inner, filename, seen)


def not_json(value: object) -> str | None:
    """Why a result cannot be sent as JSON, naming the place and the type; None when it can."""
    return next(_problems(value, "result", ()), None)


def _problems(value: object, path: str, above: tuple[int, ...]) -> Iterator[str]:
    if isinstance(value, (bool, int)) or value is None:
        return
    if isinstance(value, str):
        yield from _text_problems(value, path)
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{path} is {value}, which JSON cannot hold"
    elif not isinstance(value, (dict, list, tuple)):
        yield f"{path} is of type {type(value).__name__}, which is not JSON"
    elif id(value) in above:
        yield f"{path} contains itself"
    elif len(above) >= 400:
        yield f"{path[:100]}... is nested too deeply"
    else:
        yield from _inner_problems(value, path, (*above, id(value)))


def _inner_problems(
    value: dict[object, object] | list[object] | tuple[object, ...], path: str, above: tuple[int, ...]
) -> Iterator[str]:
    if not isinstance(value, dict):
        for index, item in enumerate(value):
            yield from _problems(item, f"{path}[{index}]", above)
        return
    for key, item in value.items():
        if not isinstance(key, (str, int, float, bool, type(None))):
            yield f"{path} has a key of type {type(key).__name__}; keys must be text"
        elif isinstance(key, str):
            yield from _text_problems(key, f"a key of {path}")
        yield from _problems(item, f"{path}[{key!r}]", above)


def _text_problems(value: str, path: str) -> Iterator[str]:
    if "\x00" in value:
        yield f"{path} holds a NUL character (\\u0000), which cannot be stored"
    elif any("\ud800" <= character <= "\udfff" for character in value):
        yield f"{path} holds half of a surrogate pair, which is not valid text"
