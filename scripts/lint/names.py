"""Module names: a name says what a module owns; `utils` owns everything and so nothing."""

from collections.abc import Iterator

from scripts.lint.source import Problem, Source

EMPTY_WORDS = frozenset({"service", "util", "helper", "manager", "base", "common", "misc"})


def module_names(source: Source) -> Iterator[Problem]:
    """No module or folder of Python code has a word such as `utils` or `service` in its name."""
    if not source.is_python:
        return
    for part in source.path.with_suffix("").parts:
        for word in part.lower().split("_"):
            if word in EMPTY_WORDS or word.removesuffix("s") in EMPTY_WORDS:
                yield source.problem(1, f"`{part}` does not say what it owns: name it by its noun or verb")
