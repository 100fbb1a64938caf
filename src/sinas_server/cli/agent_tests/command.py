"""The command `sinas agent test`: which scenarios are run, where their models' answers come from, how it ends."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from sinas_server.cli.agent_tests.read import Found, read_all
from sinas_server.cli.agent_tests.report import summary, tell, write_json, write_junit
from sinas_server.cli.agent_tests.run import Mode, run_all
from sinas_server.cli.console import fail, note, say
from sinas_server.cli.remote import Server

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130
"""Exit statuses: a scenario failed; the scenarios or options are no good; Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the command line asks for."""

    path: Path
    mode: Mode | None
    """None: what has a recording is replayed, the rest is live."""
    only: str | None
    """Part of the names of the scenarios to run."""
    at_once: int
    junit: Path | None
    json: Path | None


def chosen(wish: Wish) -> list[tuple[Found, Mode]]:
    """The scenarios to run, and how; exits 2 with every mistake in them."""
    read = read_all(wish.path)
    missing = [found for found in read.scenarios if wish.mode == "replay" and not found.recording.exists()]
    wanted = [
        found for found in read.scenarios if wish.only is None or wish.only.casefold() in found.scenario.name.casefold()
    ]
    for file in read.skipped:
        note(f"skipped {file}: no scenario, since it has no `turns`")
    told = [str(mistake) for mistake in read.mistakes]
    told += [f"{found.file}:1: has no recording; make one with --record" for found in missing if found in wanted]
    if told:
        fail("\n".join(told), UNUSABLE)
    if not wanted:
        what = f"no scenario in {wish.path}" + (f" with '{wish.only}' in its name" if wish.only else "")
        fail(what, UNUSABLE)
    return [(found, wish.mode or ("replay" if found.recording.exists() else "live")) for found in wanted]


def test(server: Server, scenarios: Sequence[tuple[Found, Mode]], wish: Wish) -> None:
    """Run them; exits 1 if one fails."""
    try:
        outcomes = asyncio.run(run_all(server, scenarios, wish.at_once, tell))
    except KeyboardInterrupt:
        fail("canceled; the chats are deleted", INTERRUPTED)
    if wish.junit is not None:
        write_junit(wish.junit, outcomes)
    if wish.json is not None:
        write_json(wish.json, outcomes)
    say(summary(outcomes))
    if not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(FAILED)
