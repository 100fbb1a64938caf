"""A mock LLM server that nobody here wrote: npm `@copilotkit/aimock`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.npm import Package, UnavailableError, install, serving

__all__ = ["UnavailableError", "aimock"]
PACKAGE = Package("@copilotkit/aimock", "1.43.0", "dist/cli.js")


@contextmanager
def aimock(folder: Path, fixtures: Sequence[Mapping[str, object]], chunk_size: int = 5) -> Iterator[str]:
    """The address of a server that answers with these fixtures. Raises `UnavailableError`."""
    program = install(PACKAGE)
    (folder / "fixtures.json").write_text(json.dumps({"fixtures": list(fixtures)}))
    options = ["-p", "0", "-f", str(folder / "fixtures.json"), "-c", str(chunk_size), "--strict"]
    with serving([str(program), *options], folder / "aimock.log") as address:
        yield address
