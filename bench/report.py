"""A run's result: one line per bar, as a table and as JSON."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """One bar: what is measured on both sides, and what their ratio must be."""

    name: str
    ours: float
    reference: float
    unit: str
    bar: float
    at_least: bool = False
    """Whether the ratio must be at least `bar`; otherwise at most."""
    holds: bool = True
    """What else must be true, such as that no call failed."""
    note: str = ""
    load: float = field(default_factory=lambda: os.getloadavg()[0])

    @property
    def ratio(self) -> float:
        """Ours in proportion to the reference."""
        return self.ours / self.reference

    @property
    def passed(self) -> bool:
        """Whether the bar is met."""
        return self.holds and (self.ratio >= self.bar if self.at_least else self.ratio <= self.bar)


HEAD = ("", "ours", "reference", "ratio", "bar", "", "load")


def _cells(line: Line) -> tuple[str, ...]:
    sign = ">=" if line.at_least else "<="
    return (
        line.name,
        f"{line.ours:.4g} {line.unit}",
        f"{line.reference:.4g} {line.unit}",
        f"{line.ratio:.2f}",
        f"{sign} {line.bar:g}",
        "pass" if line.passed else "FAIL",
        f"{line.load:.1f}",
    )


def table(lines: Sequence[Line]) -> str:
    """The lines for a terminal, notes below."""
    rows = [HEAD, *map(_cells, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    shown = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"  {line.name}: {line.note}" for line in lines if line.note]
    return "\n".join([*shown, "", *notes])


def write_json(path: Path, lines: Sequence[Line], facts: dict[str, object]) -> None:
    """The same for programs."""
    found = [asdict(line) | {"ratio": line.ratio, "passed": line.passed} for line in lines]
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    path.write_text(json.dumps({"bars": found, "facts": facts, "machine": machine}, indent=1) + "\n")
