"""Secrets over HTTP and in documents: set, listed, replaced and deleted, and never seen again."""

from typing import Any

import httpx2
import pytest
import structlog
from fastapi import FastAPI
from sqlalchemy import Text, cast, literal_column, select, text

from sinas_server.kernel.runtime import Runtime
from tests.config.documents import apply, document, export
from tests.people import Person, make_key, make_person

Json = dict[str, Any]
URL = "/api/v1/secrets"
VALUE = "xoxb-very-secret-4711"


async def put(http: httpx2.AsyncClient, name: str = "TOKEN", value: str = VALUE, **more: object) -> Json:
    answer = await http.post(URL, json={"name": name, "value": value, **more})
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()
    return made


async def stored(runtime: Runtime) -> list[tuple[str, str]]:
    """Name and value of every secret in the database."""
    rows = await runtime.database.rows(text("SELECT name, spec FROM resources WHERE kind = 'secret' ORDER BY scope"))
    return [(row.name, runtime.database.sealer.open(row.spec["value"])) for row in rows]


async def test_a_value_goes_in_and_never_comes_out(admin: Person, runtime: Runtime) -> None:
    http = admin.http
    with structlog.testing.capture_logs() as logs:
        answers = [
            await http.post(URL, json={"name": "TOKEN", "value": VALUE, "description": "for the bot"}),
            await http.post(URL, json={"name": "TOKEN", "value": [VALUE]}),
            await http.post(URL, json={"name": "TOKEN", "value": VALUE, "visibility": VALUE}),
            await http.put(f"{URL}/TOKEN", json={"value": VALUE + "2"}),
            await http.put(f"{URL}/TOKEN", json={"value": {"x": VALUE}}),
            await http.get(URL),
            await http.get(f"{URL}/TOKEN"),
            await http.get("/api/v1/config/export", params={"include_secrets": "true"}),
            await http.get("/api/v1/audit"),
            await http.delete(f"{URL}/TOKEN"),
        ]
    assert [answer.status_code for answer in answers] == [201, 422, 422, 200, 422, 200, 200, 200, 200, 204]
    for answer in answers:
        assert VALUE not in answer.text + str(answer.headers), answer.request.url
    assert VALUE not in str(logs)
    for table in ("resources", "resource_versions", "audit_log"):
        rows = await runtime.database.rows(select(cast(literal_column(table), Text)).select_from(text(table)))
        assert all(VALUE not in row[0] for row in rows), table
    shown = answers[6].json()
    assert "value" not in shown
    assert shown.items() >= {"name": "TOKEN", "description": "for the bot", "visibility": "shared"}.items()
    assert shown["user_id"] == str(admin.id)


async def test_posting_again_replaces_the_value(admin: Person, runtime: Runtime) -> None:
    first = await put(admin.http, description="for the bot")
    again = await put(admin.http, value="another")
    assert (again["id"], again["description"]) == (first["id"], "for the bot"), "what is absent stays"
    assert (await put(admin.http, value="another", description="other"))["description"] == "other"
    assert await stored(runtime) == [("TOKEN", "another")]


async def test_updates_change_what_they_name(admin: Person, runtime: Runtime) -> None:
    made = await put(admin.http, description="for the bot")
    changed = await admin.http.put(f"{URL}/{made['id']}", json={"description": None, "value": None})
    assert (changed.status_code, changed.json()["description"]) == (200, None)
    assert await stored(runtime) == [("TOKEN", VALUE)]
    assert (await admin.http.put(f"{URL}/TOKEN", json={"value": "other"})).status_code == 200
    assert await stored(runtime) == [("TOKEN", "other")]


async def test_what_was_replaced_or_deleted_is_forgotten(admin: Person, runtime: Runtime) -> None:
    await put(admin.http)
    await put(admin.http, value="second")
    rows = await runtime.database.rows(text("SELECT version FROM resource_versions"))
    assert [row.version for row in rows] == [2], "an earlier value may be why it was replaced"
    assert (await admin.http.delete(f"{URL}/TOKEN")).status_code == 204
    for table in ("resources", "resource_versions"):
        assert not await runtime.database.rows(text(f"SELECT 1 FROM {table}")), table  # noqa: S608 - our own tables
    assert (await admin.http.delete(f"{URL}/TOKEN")).status_code == 404


async def test_shared_and_private_stand_side_by_side(admin: Person, user: Person, runtime: Runtime) -> None:
    shared = await put(admin.http, value="shared")
    mine = await put(user.http, value="mine", visibility="private")
    his = await put(admin.http, value="his", visibility="private")
    assert len({shared["id"], mine["id"], his["id"]}) == 3
    assert [item["id"] for item in (await user.http.get(URL)).json()] == [mine["id"]]
    assert {item["id"] for item in (await admin.http.get(URL)).json()} == {shared["id"], his["id"]}
    assert (await admin.http.get(f"{URL}/TOKEN?visibility=private")).json()["id"] == his["id"]
    assert (await admin.http.get(f"{URL}/TOKEN?visibility=shared")).json()["id"] == shared["id"]
    assert (await admin.http.get(f"{URL}/{mine['id']}")).status_code == 404, "another's private one"
    assert (await admin.http.put(f"{URL}/TOKEN?visibility=shared", json={"value": "new"})).status_code == 200
    assert {value for _, value in await stored(runtime)} == {"new", "mine", "his"}
    assert (await user.http.delete(f"{URL}/TOKEN?visibility=private")).status_code == 204
    assert (await admin.http.delete(f"{URL}/TOKEN?visibility=shared")).status_code == 204
    assert [item["id"] for item in (await admin.http.get(URL)).json()] == [his["id"]]


async def test_without_visibility_all_mean_the_same_one(admin: Person, user: Person, runtime: Runtime) -> None:
    """The shared one for those who may do it, the private one for those who have no other."""
    shared = await put(admin.http, value="shared")
    mine = await put(user.http, value="mine", visibility="private")
    his = await put(admin.http, value="his", visibility="private")
    for person, secret, rest in ((user, mine, {"shared", "his"}), (admin, shared, {"his"})):
        assert (await person.http.get(f"{URL}/TOKEN")).json()["id"] == secret["id"]
        assert (await person.http.put(f"{URL}/TOKEN", json={"value": "new"})).json()["id"] == secret["id"]
        assert {value for _, value in await stored(runtime)} == rest | {"new"}
        assert (await person.http.delete(f"{URL}/TOKEN")).status_code == 204
        assert {value for _, value in await stored(runtime)} == rest
    assert (await admin.http.get(f"{URL}/TOKEN")).json()["id"] == his["id"]
    assert (await admin.http.delete(f"{URL}/TOKEN")).status_code == 204
    assert (await admin.http.delete(f"{URL}/TOKEN")).status_code == 404
    await put(admin.http, value="shared")
    for refused in (
        await user.http.put(f"{URL}/TOKEN", json={"value": "x"}),
        await user.http.delete(f"{URL}/TOKEN"),
        await user.http.delete(f"{URL}/TOKEN?visibility=shared"),
    ):
        assert refused.status_code == 403
    assert {value for _, value in await stored(runtime)} == {"shared"}


async def test_a_shared_one_is_changed_by_those_who_may_for_all(
    admin: Person, user: Person, runtime: Runtime, app: FastAPI
) -> None:
    refused = await user.http.post(URL, json={"name": "MINE", "value": "x"})
    assert (refused.status_code, refused.json()["detail"]) == (
        403,
        "Not authorized: this needs sinas.secrets/MINE.create:all",
    )
    await put(admin.http)
    former = await make_person(runtime, app, ["Users"])
    async with former.http:
        await runtime.database.rows(text(f"UPDATE resources SET owner_id = '{former.id}'"))  # noqa: S608 - our own id
        for answer in (
            await former.http.put(f"{URL}/TOKEN", json={"value": "x"}),
            await former.http.post(URL, json={"name": "TOKEN", "value": "x"}),
            await former.http.delete(f"{URL}/TOKEN"),
        ):
            assert answer.status_code == 403, "owning it is not enough"
    assert await stored(runtime) == [("TOKEN", VALUE)]
    key = {"X-API-Key": await make_key(runtime, admin.id, "sinas.secrets/CRM_*.create:all")}
    assert (await user.http.post(URL, json={"name": "OTHER", "value": "x"}, headers=key)).status_code == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "1ST"}, "name"),
        ({"name": "A-B"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "A" * 256}, "name"),
        ({"value": ""}, "value"),
        ({"value": None}, "value"),
        ({"value": "x" * 65_537}, "value"),
        ({"visibility": "secret"}, "visibility"),
    ],
)
async def test_what_is_wrong_is_named(admin: Person, runtime: Runtime, body: Json, field: str) -> None:
    answer = await admin.http.post(URL, json={"name": "TOKEN", "value": VALUE, **body})
    assert answer.status_code == 422
    assert [problem["loc"] for problem in answer.json()["detail"]] == [["body", field]]
    assert not await stored(runtime)


async def test_changes_are_audited_without_the_value(admin: Person) -> None:
    await put(admin.http)
    await admin.http.put(f"{URL}/TOKEN", json={"value": "other"})
    await admin.http.delete(f"{URL}/TOKEN")
    entries = (await admin.http.get("/api/v1/audit", params={"target_kind": "secret"})).json()
    assert [(entry["action"], entry["target"], entry["actor"]) for entry in entries] == [
        (action, "TOKEN", admin.email) for action in ("delete", "update", "create")
    ]


DECLARED = """
  secrets:
    - name: SLACK_BOT_TOKEN
      value: xoxb-very-secret-4711
      description: Slack bot OAuth token
"""


async def test_documents_declare_shared_secrets(admin: Person, runtime: Runtime) -> None:
    first = await apply(admin.http, document(DECLARED))
    assert (first["success"], first["summary"]["created"]) == (True, {"secret": 1})
    assert await stored(runtime) == [("SLACK_BOT_TOKEN", VALUE)]
    again = await apply(admin.http, document(DECLARED))
    assert again["summary"]["unchanged"] == {"secret": 1}
    changed = await apply(admin.http, document(DECLARED.replace("4711", "4712")))
    assert changed["summary"]["updated"] == {"secret": 1}
    assert "xoxb" not in str(changed)
    for absent in ("", "      value:\n"):
        omitted = DECLARED.replace("      value: xoxb-very-secret-4711\n", absent).replace("OAuth", f"no {len(absent)}")
        assert (await apply(admin.http, document(omitted)))["summary"]["updated"] == {"secret": 1}
        assert await stored(runtime) == [("SLACK_BOT_TOKEN", "xoxb-very-secret-4712")], "kept where it is omitted"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{name: NEW}", "spec.secrets[0].value"),
        ("{name: NEW, value: x, visibility: private}", "spec.secrets[0].visibility"),
        ("{name: a-b, value: x}", "spec.secrets[0].name"),
    ],
)
async def test_what_documents_cannot_declare(admin: Person, runtime: Runtime, entry: str, problem: str) -> None:
    done = await apply(admin.http, document(f"  secrets:\n    - {entry}\n"))
    assert not done["success"]
    assert done["errors"][0].startswith(f"{problem}: "), done["errors"]
    assert not await stored(runtime)


async def test_exports_name_a_variable_and_leave_private_ones_out(admin: Person, runtime: Runtime) -> None:
    await put(admin.http, "SLACK_BOT_TOKEN", description="for the bot")
    await put(admin.http, "MINE", visibility="private")
    plain = await export(admin.http)
    assert "SLACK_BOT_TOKEN" in plain
    assert "value" not in plain
    assert "MINE" not in plain
    assert "value: ${SLACK_BOT_TOKEN}" in await export(admin.http, include_secrets="true")


async def test_private_secrets_go_with_their_user(admin: Person, user: Person, runtime: Runtime) -> None:
    await put(user.http, visibility="private")
    await put(admin.http, value="shared")
    assert (await admin.http.delete(f"/api/v1/users/{user.id}")).status_code == 204
    assert await stored(runtime) == [("TOKEN", "shared")]
