"""The function kind: what a user declares, and the rules its code and schemas must meet."""

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from sinas_server.backends.sandbox import Egress
from sinas_server.functions.source import syntax_problem
from sinas_server.kernel.errors import ForbiddenError
from sinas_server.kernel.fields import JsonSchema, is_stored
from sinas_server.kernel.kind import Kind, Spec
from sinas_server.kernel.store import Resource
from sinas_server.kernel.unit import Db

MAX_CODE = 1_000_000
"""The most characters of code a function may have."""
SHARED_POOL = "sinas.functions.shared_pool:all"
"""The permission to have functions run as trusted code in the shared pool."""


def _check_code(code: str, info: ValidationInfo) -> str:
    problem = None if is_stored(info) else syntax_problem(code)  # what is stored was checked when it was written
    if problem:
        raise ValueError(problem)
    return code


Code = Annotated[str, AfterValidator(_check_code)]


class FunctionSpec(Spec):
    """A Python function that runs in a sandbox."""

    description: str | None = Field(default=None, description="What it does; shown to the model that may call it.")
    code: Code = Field(
        min_length=1,
        max_length=MAX_CODE,
        description="Python source. It defines `handler(input_data, context)`, or, as older functions do, a function "
        "of its own name with `-` as `_`.",
    )
    input_schema: JsonSchema = Field(default={}, description="JSON Schema its input must meet; `{}` accepts any.")
    output_schema: JsonSchema = Field(default={}, description="JSON Schema its result must meet; `{}` accepts any.")
    icon: str | None = Field(default=None, description="`url:<address>` or `collection:<namespace>/<name>/<file>`.")
    shared_pool: bool = Field(
        default=False,
        description=f"Run as trusted code in a long-lived shared worker; needs the permission `{SHARED_POOL}`. "
        "Its globals stay warm between executions, `context['secrets']` holds secrets, and `input()` pauses it. "
        "It has the worker's network: `egress` cannot be set.",
    )
    requires_approval: bool = Field(default=False, description="Ask the user before an agent's call of it runs.")
    timeout: int | None = Field(
        default=None, ge=1, le=86400, description="Its own time limit in seconds, instead of `FUNCTION_TIMEOUT`."
    )
    egress: Egress | None = Field(
        default=None,
        description="What it may reach: `public` addresses, only those on the `list` (SINAS_ALLOWED_HOSTS), or `none`. "
        "It can be stricter than `FUNCTION_EGRESS`, never laxer; null means the same.",
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="How many of its executions may run at a time, over all workers; the others wait. Null: no limit. "
        "One that waits for a person's input does not count, and goes on at once when it gets it. "
        "One that waits for another of the same function can use up the limit, and then ends by its time limit.",
    )
    idempotent: bool = Field(
        default=False,
        description="Running it twice does no harm: a call by an agent is repeated when its worker is lost, instead "
        "of ending with an unknown outcome.",
    )

    @model_validator(mode="after")
    def _egress_is_of_the_sandbox(self, info: ValidationInfo) -> "FunctionSpec":
        if self.shared_pool and self.egress is not None and not is_stored(info):
            raise ValueError("egress cannot be set with shared_pool: executions there share the network of a worker")
        return self


async def _on_change(db: Db, old: Resource[FunctionSpec] | None, new: Resource[FunctionSpec] | None) -> None:
    """Trusted code is written by those who may: any write that leaves `shared_pool` on needs the permission."""
    if new is not None and new.spec.shared_pool and db.actor is not None and not db.actor.has(SHARED_POOL):
        raise ForbiddenError(f"Not authorized: a function with shared_pool needs {SHARED_POOL}")


FUNCTION = Kind(
    name="function",
    plural="functions",
    spec=FunctionSpec,
    name_pattern=r"^[a-zA-Z_][a-zA-Z0-9_-]*$",
    namespace_pattern=r"^[a-zA-Z_][a-zA-Z0-9_-]*$",
    on_change=_on_change,
    actions=("create", "read", "update", "delete", "execute"),
    discover="read",
    description="Python functions that run in a sandbox, called by users, agents, webhooks and schedules.",
)
