"""What a function may be declared as."""

from typing import Any

import pytest

from tests.functions.conftest import ECHO, Declare
from tests.people import Person

PLAIN = {"name": "f", "input_schema": {}, "output_schema": {}}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def handler(input_data, context)\n    return 1\n", "line 1"),
        ("x = 1\n\ndef handler(:\n", "line 3"),
        ("return 'nul \x00'", "NUL"),
        ("(" * 10_000 + ")" * 10_000, "nest"),
        ("-" * 100_000 + "1", "nest"),
        ("x = " + "+".join("1" * 50_000), "nest"),
        ("'\\ud800'\nx = '\ud800'", "surrogate"),
    ],
)
async def test_code_that_python_cannot_parse_is_refused(user: Person, code: str, said: str) -> None:
    import json

    body = json.dumps({**PLAIN, "code": code})
    answer = await user.http.post("/api/v1/functions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    [problem] = answer.json()["detail"]
    assert said in problem["msg"] or problem["type"] == "json_invalid"
    if problem["type"] != "json_invalid":
        assert "code" in problem["loc"]


async def test_an_update_is_held_to_the_same_rules(user: Person, declare: Declare) -> None:
    await declare("f")
    answer = await user.http.put("/api/v1/functions/default/f", json={"code": "def ("})
    assert answer.status_code == 422
    assert "code" in answer.json()["detail"][0]["loc"]


async def test_code_is_never_run_when_it_is_saved(user: Person, declare: Declare) -> None:
    made = await declare("f", "raise SystemExit('imported')\nimport does_not_exist\n")
    assert made["version"] == 1


async def test_a_warning_of_the_parser_is_no_error(declare: Declare) -> None:
    await declare("f", "def handler(input_data, context):\n    return '\\d' is 1\n")


@pytest.mark.parametrize("field", ["input_schema", "output_schema"])
@pytest.mark.parametrize("schema", [{"type": "no such type"}, {"$ref": "http://127.0.0.1/x.json"}, {"required": 1}])
async def test_a_schema_must_be_one(user: Person, field: str, schema: dict[str, Any]) -> None:
    answer = await user.http.post("/api/v1/functions", json={**PLAIN, "code": ECHO, field: schema})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"][-1] == field


@pytest.mark.parametrize(
    "change",
    [
        {"code": ""},
        {"code": "x" * 1_000_001},
        {"name": "a b"},
        {"name": ""},
        {"namespace": "9x"},
        {"name": "a/b"},
        {"timeout": 0},
        {"timeout": 86401},
        {"input_schema": []},
        {"shared_pool": "perhaps"},
        {"egress": "everything"},
    ],
)
async def test_other_bad_fields_are_refused(user: Person, change: dict[str, Any]) -> None:
    answer = await user.http.post("/api/v1/functions", json={**PLAIN, "code": ECHO, **change})
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("name", ["lookup-customer", "_private", "a1_b-2"])
async def test_names_have_letters_digits_dashes_and_underscores(declare: Declare, name: str) -> None:
    assert (await declare(name))["name"] == name


async def test_schemas_may_be_left_out_and_versions_are_kept(user: Person) -> None:
    answer = await user.http.post("/api/v1/functions", json={"name": "f", "code": ECHO})
    assert answer.status_code == 201
    made = answer.json()
    assert (made["input_schema"], made["output_schema"], made["namespace"]) == ({}, {}, "default")
    await user.http.put("/api/v1/functions/default/f", json={"code": ECHO + "# two\n"})
    versions = (await user.http.get("/api/v1/functions/default/f/versions")).json()
    assert [(item["version"], item["code"]) for item in versions] == [(2, ECHO + "# two\n"), (1, ECHO)]
    assert {item["function_id"] for item in versions} == {made["id"]}


async def test_the_shared_pool_is_for_those_who_may(user: Person, admin: Person, declare: Declare) -> None:
    body = {**PLAIN, "code": ECHO, "shared_pool": True}
    assert (await user.http.post("/api/v1/functions", json=body)).status_code == 403
    await declare("mine")
    assert (await user.http.put("/api/v1/functions/default/mine", json={"shared_pool": True})).status_code == 403
    assert (await admin.http.put("/api/v1/functions/default/mine", json={"shared_pool": True})).status_code == 200
    changed = await user.http.put("/api/v1/functions/default/mine", json={"code": ECHO + "# else\n"})
    assert changed.status_code == 403  # or its owner could slip code into what an administrator trusted
    assert (await user.http.put("/api/v1/functions/default/mine", json={"shared_pool": False})).status_code == 200


async def test_lists_show_what_one_can_see(user: Person, guest: Person, declare: Declare) -> None:
    await declare("seen")
    await declare("off", is_active=False)
    for path in ("/functions", "/discovery/functions"):
        assert [item["name"] for item in (await user.http.get(path)).json()] == ["seen"]
        assert (await guest.http.get(path)).json() == []
