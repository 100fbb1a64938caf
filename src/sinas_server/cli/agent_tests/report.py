"""What a run of scenarios is told as: lines for people, JUnit's XML and JSON for machines."""

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from sinas_server.cli.agent_tests.run import Outcome
from sinas_server.cli.console import fail, say

DONE = {"live": "live", "record": "recorded", "replay": "replayed"}


def tell(outcome: Outcome) -> None:
    """A line for a scenario, and what was not as expected."""
    name, how = outcome.found.scenario.name, DONE[outcome.mode]
    say(f"{'PASS' if outcome.passed else 'FAIL'}  {name} ({how}, {outcome.seconds:.1f} s)")
    for problem in outcome.problems:
        say("      " + problem.replace("\n", "\n        "))
    for note in outcome.notes:
        say(f"      {note}")


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many passed."""
    failed = sum(not outcome.passed for outcome in outcomes)
    return f"{len(outcomes) - failed} passed, {failed} failed"


def write_junit(path: Path, outcomes: Sequence[Outcome]) -> None:
    """JUnit's XML, as CI systems read it."""
    suite = ElementTree.Element(
        "testsuite",
        name="sinas agent test",
        tests=str(len(outcomes)),
        failures=str(sum(not outcome.passed for outcome in outcomes)),
        errors="0",
        skipped="0",
        time=f"{sum(outcome.seconds for outcome in outcomes):.3f}",
    )
    for outcome in outcomes:
        scenario = outcome.found.scenario
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=scenario.agent.replace("/", "."),
            name=scenario.name,
            file=str(outcome.found.file),
            time=f"{outcome.seconds:.3f}",
        )
        if outcome.problems:
            told = "\n".join(outcome.problems)
            ElementTree.SubElement(case, "failure", message=outcome.problems[0].partition("\n")[0]).text = told
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    _write(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n")


def write_json(path: Path, outcomes: Sequence[Outcome]) -> None:
    """The same as JSON."""
    results = [
        {
            "name": outcome.found.scenario.name,
            "agent": outcome.found.scenario.agent,
            "file": str(outcome.found.file),
            "mode": outcome.mode,
            "passed": outcome.passed,
            "seconds": round(outcome.seconds, 3),
            "problems": list(outcome.problems),
        }
        for outcome in outcomes
    ]
    passed = sum(outcome.passed for outcome in outcomes)
    whole = {"passed": passed, "failed": len(outcomes) - passed, "scenarios": results}
    _write(path, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        fail(f"{path} cannot be written: {error}", 2)
