"""The pages of the repository lead where they say."""

import ast
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
DECISIONS = Path("docs/architecture/decisions")


def pages() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return sorted(path for path in map(Path, listed.stdout.splitlines()) if path.exists())


def anchors(page: Path) -> set[str]:
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=str)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(linked), f"{page} links to {target}, which has no such heading"


def test_every_decision_is_numbered_listed_and_complete() -> None:
    listed = (DECISIONS / "README.md").read_text()
    written = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
    assert [int(path.name[:4]) for path in written] == list(range(1, len(written) + 1))
    for path in written:
        text = path.read_text()
        assert f"]({path.name})" in listed
        assert text.startswith(f"# {path.name[:4]} ")
        for part in ("Context", "Decision", "Consequences", "Alternatives"):
            assert f"**{part}" in text, f"{path} has no part {part}"


def test_make_targets_named_in_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", Path("Makefile").read_text(), re.MULTILINE))
    for page in (Path("README.md"), Path("CONTRIBUTING.md")):
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, f"{page} names targets that the Makefile lacks: {named - targets}"


def test_tests_named_in_the_coverage_page_exist() -> None:
    named = re.findall(r"`(tests/[^`]+)`", Path("docs/coverage.md").read_text())
    assert named
    for reference in named:
        path, _, name = reference.partition("::")
        assert Path(path).exists(), f"docs/coverage.md names {path}"
        assert not name or f"def {name}(" in Path(path).read_text(), f"docs/coverage.md names {reference}"


def test_nothing_is_done_without_a_check() -> None:
    rows = [line.strip("| ").split(" | ") for line in Path("docs/coverage.md").read_text().splitlines() if "| " in line]
    for row in rows:
        assert len(row) == 3, row
        assert row[2] != "done" or row[1] != "-", f"{row[0]}: done, but nothing shows it"


def first_words(part: object) -> str:
    return str(part)[:30]


def fenced(language: str) -> list[tuple[Path, str]]:
    pattern = re.compile(rf"^( *)```{language}\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    return [(page, textwrap.dedent(code)) for page in pages() for _, code in pattern.findall(page.read_text())]


@pytest.mark.parametrize(("page", "code"), fenced("python"), ids=first_words)
def test_python_in_the_pages_is_python(page: Path, code: str) -> None:
    ast.parse(code)


@pytest.mark.parametrize(("page", "code"), fenced("bash"), ids=first_words)
def test_commands_in_the_pages_are_well_formed(page: Path, code: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, f"{page}: {checked.stderr}"
