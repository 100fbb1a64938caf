"""What schemathesis does before each call of `test_openapi_fuzzing.py`."""

from typing import Any

import schemathesis
from schemathesis import Case, HookContext


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, object]) -> None:
    """A valid number of workers becomes a small one: 64 processes slow down everything that is called afterwards."""
    if case.operation.path == "/workers/scale" and isinstance(case.body, dict):
        wanted = case.body.get("target_count")
        if isinstance(wanted, int) and 2 < wanted <= 64:
            case.body["target_count"] = 2
