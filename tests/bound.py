"""A bound for each test that nothing lifts: who hangs beyond it shows all stacks, and the process ends.

pytest-timeout lifts its own when a test fails, so that a teardown that hangs afterwards would hang the run for good.
"""

import faulthandler
import os
from collections.abc import Generator

import pytest

TIMES = 3
"""Of what pytest-timeout allows: it comes first wherever it can."""
OUTPUT = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTPUT] = os.dup(2)  # what tests write goes elsewhere later


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[OUTPUT])


def _begin(item: pytest.Item) -> None:
    marker = item.get_closest_marker("timeout")
    seconds = TIMES * float(marker.args[0] if marker is not None else item.config.getini("timeout"))
    if seconds:  # 0 is none
        faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[OUTPUT])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _begin(item)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    _begin(item)  # pytest forgets it when a test fails
