"""The token inside a function: its caller's rights within its owner's, less what no code may reach."""

from dataclasses import dataclass

import httpx2
import pytest
from fastapi import FastAPI

from sinas_server import catalog
from sinas_server.identity.resolve import FUNCTION_BARRED, Principal
from sinas_server.kernel.runtime import Runtime
from tests.people import Person, execution_token, http_client, make_person
from tests.security.cast import ROWS, Attempt, Cast
from tests.security.objects import Objects

BARRED = {
    "identity": ("users", "roles", "permissions", "api_keys", "audit"),
    "configuration": ("config",),
    "packages": ("packages",),
    "dependencies": ("dependencies",),
    "secrets": ("secrets",),
    "connections": ("database_connections",),
    "providers": ("llm_providers", "budgets"),
    "the installation": ("system", "workers", "containers", "queue", "request_logs"),
    "approvals": ("tool_approvals", "pending_inputs"),
    "code that is trusted with more": ("functions.shared_pool",),
}
"""What the token never reaches, whatever caller and owner may do."""
DECISIONS = ("/approve-tool/", "/pending-input", "/approvals", "/continue")
"""Routes that answer for the user, or show what waits for his answer."""


def test_the_list_of_what_is_out_of_reach() -> None:
    assert {name for names in BARRED.values() for name in names} == FUNCTION_BARRED


def test_what_is_for_administrators_is_out_of_reach() -> None:
    """Of every kind and resource, so that a new one is not forgotten."""
    guarded = {kind.plural for kind in catalog.KINDS if kind.admin_only}
    guarded |= {resource.name for resource in catalog.RESOURCES if resource.admin_only}
    assert guarded <= FUNCTION_BARRED


def _is_barred(route: str) -> bool:
    resources = {key.partition(":")[0].split(".")[1] for key in ROWS[route]["needs"].split()}
    return not FUNCTION_BARRED.isdisjoint(resources) or any(part in route for part in DECISIONS)


WITH_CREDENTIAL = sorted(route for route, row in ROWS.items() if row["none"] == "401")


@pytest.mark.timeout(600)
async def test_every_route_with_the_token_of_an_administrators_function(everyone: Cast) -> None:
    """An administrator calls a function of his: the widest rights a token can have."""
    runtime, admin = everyone.runtime, everyone.admin
    token = await execution_token(runtime, Principal(admin.id, None, (admin.id,)), seconds=600)
    wrong: list[str] = []
    async with http_client(everyone.app) as http:
        for route in WITH_CREDENTIAL:
            answer = await Attempt(route, http, everyone.objects(admin)).call({"Authorization": f"Bearer {token}"})
            if _is_barred(route):
                is_right = answer.is_client_error or (route.startswith("GET ") and answer.json() == [])
            else:
                is_right = answer.status_code == int(ROWS[route]["admin"])
            if not is_right:
                wrong.append(f"{route}: {answer.status_code} {answer.text[:200]}")
    assert not wrong, "\n".join(wrong)


@dataclass(frozen=True)
class Inside:
    """Code of `owner`, called by `caller`."""

    caller: Person
    owner: Person
    http: httpx2.AsyncClient
    objects: Objects
    """Of the caller."""


async def _inside(runtime: Runtime, app: FastAPI, caller: Person, owner: Person, admin: Person) -> Inside:
    token = await execution_token(runtime, Principal(caller.id, None, (owner.id,)))
    http = http_client(app, {"Authorization": f"Bearer {token}"})
    return Inside(caller, owner, http, Objects(runtime, admin, caller, admin))


async def _statuses(inside: Inside) -> dict[str, int]:
    """What the code gets of its caller's, of its owner's, and of what it makes in its caller's name."""
    said = await inside.objects.said()
    chat = said["chat_id"]
    agent = inside.objects.talking[inside.caller.id]["name"]
    theirs = await Objects(inside.objects.runtime, inside.objects.admin, inside.owner, inside.owner).function()
    function = await inside.objects.function()
    execution = (await inside.objects.execution())["execution_id"]
    held = await inside.objects.attachment()
    attachment = f"/chats/{held['chat_id']}/attachments/{held['attachment_id']}"
    image = {"type": "image", "image": f"{inside.objects.runtime.settings.public_url}{attachment}"}
    body = {"message": "hello", "session_key": "mine"}
    assert (await inside.caller.http.post(f"/agents/default/{agent}/invoke", json=body)).status_code == 200
    asked: dict[str, tuple[str, str, object]] = {
        "read its caller's function": ("GET", f"/api/v1/functions/default/{function['name']}", None),
        "change its caller's function": ("PUT", f"/api/v1/functions/default/{function['name']}", {"timeout": 9}),
        "read its owner's function": ("GET", f"/api/v1/functions/default/{theirs['name']}", None),
        "read its caller's chat": ("GET", f"/chats/{chat}", None),
        "read an attachment of its caller's chat": ("GET", attachment, None),
        "send an attachment of its caller's chat": ("POST", f"/agents/default/{agent}/invoke", {"message": [image]}),
        "list its caller's chats": ("GET", "/chats", None),
        "talk in its caller's chat": ("POST", f"/chats/{chat}/messages", {"content": "hello"}),
        "stream in its caller's chat": ("POST", f"/chats/{chat}/messages/stream", {"content": "hello"}),
        "have its caller answered again": ("POST", f"/chats/{chat}/messages/{said['message_id']}/regenerate", None),
        "go on with its caller's session": ("POST", f"/agents/default/{agent}/invoke", body),
        "ask an agent": ("POST", f"/agents/default/{agent}/invoke", {"message": "hello"}),
        "read its caller's execution": ("GET", f"/executions/{execution}", None),
        "make a function in its caller's name": (
            "POST", "/api/v1/functions", {"name": inside.objects.name(), "code": "def handler(i, c):\n    return 1\n"},
        ),
    }  # fmt: skip
    found = {}
    for what, (method, path, sent) in asked.items():
        found[what] = (await inside.http.request(method, path, json=sent, timeout=60)).status_code
    await inside.http.aclose()
    return found


async def test_code_of_another_user_cannot_use_what_is_its_callers(
    runtime: Runtime, app: FastAPI, admin: Person, user: Person, workers: None
) -> None:
    """Whoever gets somebody to call his function gets nothing that he could not have alone."""
    author = await make_person(runtime, app, ["Users"])
    async with author.http:
        found = await _statuses(await _inside(runtime, app, user, author, admin))
    assert found == {
        "read its caller's function": 403,
        "change its caller's function": 403,
        "read its owner's function": 403,
        "read its caller's chat": 403,
        "read an attachment of its caller's chat": 403,
        "send an attachment of its caller's chat": 422,
        "list its caller's chats": 403,
        "talk in its caller's chat": 404,
        "stream in its caller's chat": 404,
        "have its caller answered again": 404,
        "go on with its caller's session": 403,
        "ask an agent": 200,
        "read its caller's execution": 403,
        "make a function in its caller's name": 403,
    }


async def test_code_of_an_administrator_works_for_its_caller(
    runtime: Runtime, app: FastAPI, admin: Person, user: Person, workers: None
) -> None:
    """He may do all of it anyway; what the caller may not is still out of reach."""
    found = await _statuses(await _inside(runtime, app, user, admin, admin))
    assert found == {
        "read its caller's function": 200,
        "change its caller's function": 200,
        "read its owner's function": 403,
        "read its caller's chat": 200,
        "read an attachment of its caller's chat": 200,
        "send an attachment of its caller's chat": 200,
        "list its caller's chats": 200,
        "talk in its caller's chat": 200,
        "stream in its caller's chat": 200,
        "have its caller answered again": 200,
        "go on with its caller's session": 200,
        "ask an agent": 200,
        "read its caller's execution": 200,
        "make a function in its caller's name": 201,
    }
