"""The schemas of functions that the platform calls: offered, documented, typed, and checked."""

from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import JsonValue

from sinas_server.functions import execute
from sinas_server.functions.execute import Order
from sinas_server.functions.kind import FUNCTION
from sinas_server.functions.presets import PRESETS, Preset, Shape
from sinas_server.functions.tables import Trigger
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel import lookup
from sinas_server.kernel.errors import InvalidError
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.schema import check_schema, violations
from tests.functions.conftest import Declare, run
from tests.people import Person
from tests.stubs import typed_fields

HOOK: dict[str, JsonValue] = {
    "message": {"role": "user", "content": "hello"},
    "chat_id": "c",
    "agent": {"namespace": "default", "name": "a"},
    "session_key": None,
    "user_id": "u",
}
STUB = (files("sinas_server.functions") / "stubs" / "sinas_types.pyi").read_text()


def properties(preset: Preset) -> set[str]:
    return set(cast(dict[str, JsonValue], preset.input_schema["properties"]))


async def test_they_are_served_and_accepted_by_functions(user: Person, declare: Declare) -> None:
    presets = (await user.http.get("/api/v1/functions/presets")).json()
    assert [each["name"] for each in presets] == ["pre_upload_filter", "post_upload", "cdc", "message_hook"]
    for each in presets:
        check_schema(each["input_schema"])
        check_schema(each["output_schema"])
        await declare(each["name"], input_schema=each["input_schema"], output_schema=each["output_schema"])


@pytest.mark.parametrize("preset", PRESETS.values(), ids=str)
def test_they_are_documented_and_typed(preset: Preset) -> None:
    page = Path("docs/functions.md").read_text()
    for name in properties(preset):
        assert f"`{name}`" in page, f"docs/functions.md does not say that a {preset.title} gets {name}"
    class_name = "".join(part.capitalize() for part in preset.name.split("_")) + "Input"
    typed = typed_fields(STUB, class_name)
    assert typed == properties(preset)


@pytest.mark.parametrize(
    ("result", "fits"),
    [
        (None, True),
        ({}, True),
        ({"content": "x"}, True),
        ({"block": True, "reply": "no"}, True),
        ({"block": "yes"}, False),
        ("x", False),
    ],
)
def test_what_a_hook_may_return(result: JsonValue, fits: bool) -> None:
    assert (not violations(PRESETS[Shape.MESSAGE_HOOK].output_schema, result)) is fits


async def test_what_the_platform_passes_on_is_checked(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("hook")
    caller = await act_for(runtime, Principal(user.id), "session")
    function = await lookup.use(runtime.database, caller, FUNCTION, ("default", "hook"), "execute")
    order = Order(trigger=Trigger.HOOK, input=HOOK, waits=False)
    assert await execute.start_now(runtime, caller, function, order)
    broken = Order(trigger=Trigger.HOOK, input={**HOOK, "message": "hello"}, waits=False)
    with pytest.raises(InvalidError) as refused:
        await execute.start_now(runtime, caller, function, broken)
    assert refused.value.problems[0][0] == ("body", "input", "message")
    upload = Order(trigger=Trigger.API, input={"file_id": "f"}, waits=False, shape=Shape.POST_UPLOAD)
    with pytest.raises(InvalidError):
        await execute.start_now(runtime, caller, function, upload)


async def test_the_context_is_what_the_types_say(user: Person, declare: Declare, worker: Worker[Any]) -> None:
    await declare("keys", "def handler(input_data, context): return sorted(context)")
    assert set((await run(user, "keys"))["result"]) == typed_fields(STUB, "Context")
