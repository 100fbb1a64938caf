"""Suppressions: one without a reason cannot be judged by the next reader, so it stays for ever."""

import re
from collections.abc import Iterator

from scripts.lint.source import Problem, Source

NOQA = re.compile(r"#\s*noqa\b(?P<codes>:\s*[A-Z]+\d+(?:\s*,\s*[A-Z]+\d+)*)?(?P<rest>.*)", re.IGNORECASE)
TYPE_IGNORE = re.compile(r"#\s*type:\s*ignore(?P<codes>\[[\w, -]+\])?(?P<rest>.*)")
NO_COVER = re.compile(r"#\s*pragma:\s*no cover(?P<codes>)(?P<rest>.*)")
WORD = re.compile(r"[A-Za-z]{3,}")


def reasons(source: Source) -> Iterator[Problem]:
    """`noqa` and `type: ignore` name the rule and give the reason on their line; `no cover` gives the reason."""
    if not source.is_python:
        return
    for line, comment in source.comments():
        for pattern in (NOQA, TYPE_IGNORE, NO_COVER):
            match = pattern.search(comment)
            if match is None:
                continue
            if match["codes"] is None:
                yield source.problem(line, "suppresses every rule: name the one it means")
            if not WORD.search(match["rest"]):
                yield source.problem(line, "suppression without a reason: say why after it")
