"""Every test of this folder that asks for `example` runs once for every kind."""

import pytest

from tests.kernel.every_kind.examples import EXAMPLES, Example


@pytest.fixture(params=EXAMPLES, ids=lambda example: example.kind.name)
def example(request: pytest.FixtureRequest) -> Example:
    """A kind, by an example of it."""
    made: Example = request.param
    return made
