"""Machine paths and private hosts: the repository is public and works from any folder and any package index."""

import re
from collections.abc import Iterator

from scripts.lint.source import Problem, Source

MACHINE_PATH = re.compile(r"(?<![\w.$}*-])/(?:work|root|home/\w+)/")
MARKED = re.compile(r"#\s*path: \S+")
PUBLIC_INDEXES = ("pypi.org", "files.pythonhosted.org", "registry.npmjs.org", "github.com")
INDEXES = {
    "uv.lock": re.compile(r'(?:registry|url) = "https?://([\w.-]+)'),
    "package-lock.json": re.compile(r'"resolved": "https?://([\w.-]+)'),
}
"""How a lock file names the index a package came from."""
SETTING = re.compile(r"(?:index[-_]url|registry|find-links)\s*[=:]\s*\W?https?://([\w.-]+)", re.IGNORECASE)


def machine_paths(source: Source) -> Iterator[Problem]:
    """No path of a developer's machine; a path that is the subject itself carries `# path: <reason>`."""
    for number, line in enumerate(source.lines, start=1):
        if MACHINE_PATH.search(line) and not MARKED.search(line):
            yield source.problem(
                number, "a path of one machine: use one relative to the repository, or `# path: <reason>`"
            )


def registry_hosts(source: Source) -> Iterator[Problem]:
    """Packages come from the public indexes: no other host in a lock file or in an index setting."""
    pattern = INDEXES.get(source.path.name, SETTING)
    for number, line in enumerate(source.lines, start=1):
        for host in pattern.findall(line):
            if host not in PUBLIC_INDEXES:
                yield source.problem(number, f"package index {host}: use the public one")
