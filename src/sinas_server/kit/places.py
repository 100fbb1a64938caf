"""Where in what somebody gave a value stands that pydantic refuses."""

import re
from collections.abc import Mapping, Sequence

KEY = "[key]"
"""What pydantic adds to the place of an object's key."""
_TYPE = re.compile(r"str|int|float|bool|none|.*\W.*")


def place_in(given: object, loc: Sequence[str | int], *, missing: bool = False) -> tuple[str | int, ...]:
    """The `loc` of pydantic without the names of types by which it tells apart what a union may be.

    `missing`: whether the last one is a field that is not there.
    """
    found, at = list[str | int](), given
    for left, step in zip(range(len(loc) - 1, -1, -1), loc, strict=True):
        inside = _items(at)
        if step in inside:
            at = inside[step]
        elif left or not (missing or step == KEY or not _TYPE.fullmatch(str(step))):
            continue
        found.append(step)
    return tuple(found)


def _items(value: object) -> Mapping[str | int, object]:
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    return value if isinstance(value, dict) else {}
