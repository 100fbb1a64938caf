"""Write every generated page, or with `--check` name those that are not what the code says."""

import sys
from collections.abc import Callable
from pathlib import Path

from scripts.docs import permissions, scenarios, settings

PAGES: tuple[tuple[Path, Callable[[], str]], ...] = (
    (settings.PAGE, settings.page),
    (permissions.PAGE, permissions.page),
    (scenarios.PAGE, scenarios.page),
)


def stale() -> list[Path]:
    """The pages that differ from what would be generated now."""
    return [path for path, generate in PAGES if not path.exists() or path.read_text() != generate()]


def main(arguments: list[str]) -> int:
    """Write the pages; with `--check` write nothing, and the exit status is 1 if one is stale."""
    if "--check" in arguments:
        for path in stale():
            print(f"{path} is not what the code says: run `make docs`")
        return 1 if stale() else 0
    for path, generate in PAGES:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(generate())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
