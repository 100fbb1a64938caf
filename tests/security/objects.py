"""Objects for the authorization fuzzer: whatever a route's path names, made anew and owned by whoever shall own it."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from sqlalchemy import insert, update

from sinas_server.functions.tables import ExecutionRow
from sinas_server.identity.tables import RefreshTokenRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.clock import now
from sinas_server.kit.crypto import hash_token
from tests.media import PNG, data_url
from tests.people import Person

Json = dict[str, Any]
Places = dict[str, str]
CODE = "def handler(input_data, context):\n    return 1\n"


@dataclass
class Objects:
    """Makes objects of `owner`; what only administrators can make is made by `admin`."""

    runtime: Runtime
    admin: Person
    owner: Person
    stranger: Person
    """Someone that is put into roles."""
    busy: list[tuple[Person, str]] = field(default_factory=list)
    """Chats with a turn that does not end: one at a time in a test, as each takes a slot of the worker."""
    talking: dict[UUID, Places] = field(default_factory=dict)
    """Owner → the agent of all his chats, which no route under test is given."""

    def name(self) -> str:
        return f"x{uuid4().hex[:12]}"

    async def _post(self, by: Person, url: str, body: Json) -> Json:
        answer = await by.http.post(url, json=body, timeout=60)
        assert answer.is_success, f"{url}: {answer.text}"
        return cast(Json, answer.json()) if answer.headers["content-type"].startswith("application/json") else {}

    async def function(self) -> Places:
        name = self.name()
        body = {"name": name, "code": CODE, "requires_approval": True}
        await self._post(self.owner, "/api/v1/functions", body)
        return {"namespace": "default", "name": name, "version": "1"}

    async def skill(self) -> Places:
        name = self.name()
        await self._post(self.owner, "/api/v1/skills", {"name": name, "description": "Helps.", "content": "Do."})
        return {"namespace": "default", "name": name, "version": "1"}

    async def dependency(self) -> Places:
        made = await self._post(self.admin, "/api/v1/dependencies", {"package_name": self.name()})
        return {"dependency_id": made["id"]}

    async def provider(self, default: str = "Hello.", **config: object) -> Places:
        name = self.name()
        rules = [{"when": {"contains": "danger"}, "call": [{"tool": f"default/{name}"}]}]
        body = {"name": name, "provider_type": "scripted", "config": {"rules": rules, "default": default, **config}}
        made = await self._post(self.admin, "/api/v1/llm-providers", body)
        return {"name": name, "version": "1", "id": made["id"]}

    async def template(self) -> Places:
        body = {"name": self.name(), "html_content": "<p>Hello</p>"}
        made = await self._post(self.owner, "/api/v1/templates", body)
        return {"template_id": made["id"], "namespace": "default", "name": body["name"], "version": "1"}

    async def budget(self) -> Places:
        name = self.name()
        body = {"name": name, "applies_to": "role", "subject": "GuestUsers", "max_tokens": 10**9}
        await self._post(self.admin, "/api/v1/budgets", body)
        return {"name": name, "version": "1"}

    async def default_agent(self) -> Places:
        await self._post(self.owner, "/api/v1/agents", {"name": self.name(), "is_default": True})
        return {}

    async def agent(self) -> Places:
        provider = await self.provider()
        name = provider["name"]
        await self._post(self.owner, "/api/v1/functions", {"name": name, "code": CODE, "requires_approval": True})
        body = {"name": name, "llm_provider_id": provider["id"], "enabled_functions": [f"default/{name}"]}
        await self._post(self.owner, "/api/v1/agents", body)
        return {"namespace": "default", "name": name, "agent_name": name, "version": "1"}

    async def model(self) -> Places:
        """An agent as a model of the adapter."""
        agent = await self.agent()
        return {**agent, "model_id": f"agent:default/{agent['name']}"}

    async def response(self) -> Places:
        """An agent's response, stored for its owner."""
        model = (await self.model())["model_id"]
        made = await self._post(self.owner, "/adapters/openai/v1/responses", {"model": model, "input": "hello"})
        return {"response_id": made["id"]}

    async def chat(self, content: str = "hello") -> Places:
        agent = self.talking[self.owner.id] = self.talking.get(self.owner.id) or await self.agent()
        made = await self._post(self.owner, f"/agents/default/{agent['name']}/chats", {})
        said = await self._post(self.owner, f"/chats/{made['id']}/messages", {"content": content})
        return {"chat_id": made["id"], "channel_id": said["channel_id"]}

    async def said(self) -> Places:
        """What a chat's user said."""
        places = await self.chat()
        messages = (await self.owner.http.get(f"/chats/{places['chat_id']}/messages")).json()
        return {**places, "message_id": messages[0]["id"]}

    async def tested_chat(self) -> Places:
        made = await self.provider('{"passed": true, "reason": "It is."}')
        await self._post(self.owner, "/api/v1/agents", {"name": made["name"], "llm_provider_id": made["id"]})
        return {"chat_id": (await self._post(self.owner, f"/agents/default/{made['name']}/test-chats", {}))["id"]}

    async def stopped_chat(self) -> Places:
        places = await self.chat("danger")
        await self._post(self.owner, f"/chats/{places['chat_id']}/stop", {})
        return places

    async def attachment(self) -> Places:
        """A chat with an image."""
        agent = await self.agent()
        chat = await self._post(self.owner, f"/agents/default/{agent['name']}/chats", {})
        image: Json = {"type": "image", "image": data_url("image/png", PNG)}
        await self._post(self.owner, f"/chats/{chat['id']}/messages", {"content": [image]})
        shown = (await self.owner.http.get(f"/chats/{chat['id']}")).json()["messages"][0]["content"]
        address = json.loads(shown)[0]["image"].partition("?")[0]
        return {"chat_id": chat["id"], "attachment_id": address.rpartition("/")[2]}

    async def waiting_chat(self) -> Places:
        places = await self.chat("danger")
        chat = (await self.owner.http.get(f"/chats/{places['chat_id']}")).json()
        return {**places, "tool_call_id": chat["pending_approvals"][0]["tool_call_id"]}

    async def queued_message(self) -> Places:
        """A message that waits behind a turn that does not end."""
        while self.busy:
            owner, before = self.busy.pop()
            await owner.http.post(f"{before}/stop?withdraw=true")
        made = await self.provider("so " * 4000, delay_ms=1000)
        name = made["name"]
        await self._post(self.owner, "/api/v1/agents", {"name": name, "llm_provider_id": made["id"]})
        begun = await self._post(self.owner, f"/agents/default/{name}/chats/batch", {"inputs": [{"message": "go"}]})
        url = f"/chats/{begun['chat_ids'][0]}"
        self.busy.append((self.owner, url))
        sending = asyncio.create_task(self.owner.http.post(f"{url}/messages", json={"content": "and?"}, timeout=60))
        while not (queued := (await self.owner.http.get(url)).json()["queued"]):
            await asyncio.sleep(0.01)
        sending.cancel()
        return {"chat_id": begun["chat_ids"][0], "message_id": queued[0]["id"]}

    async def asking_chat(self) -> Places:
        """A chat whose agent has asked its user something."""
        made = await self.provider(rules=[{"call": [{"tool": "askUser", "arguments": {"question": "Well?"}}]}])
        body = {"name": made["name"], "llm_provider_id": made["id"], "system_tools": ["askUser"]}
        await self._post(self.owner, "/api/v1/agents", body)
        chat = await self._post(self.owner, f"/agents/default/{made['name']}/chats", {})
        said = await self._post(self.owner, f"/chats/{chat['id']}/messages", {"content": "go"})
        return {"chat_id": chat["id"], "tool_call_id": said["pending_inputs"][0]["tool_call_id"]}

    async def execution(self) -> Places:
        function = await self.function()
        made = await self._post(self.owner, f"/functions/default/{function['name']}/execute", {"input": {}})
        return {"execution_id": made["execution_id"], "job_id": made["execution_id"]}

    async def queued_execution(self) -> Places:
        function = await self.function()
        later = {"input": {}, "delay_seconds": 3600}
        made = await self._post(self.owner, f"/functions/default/{function['name']}/execute/async", later)
        return {"execution_id": made["execution_id"], "job_id": made["execution_id"]}

    async def batch(self) -> Places:
        function = await self.function()
        later = {"inputs": [{}], "delay_seconds": 3600}
        made = await self._post(self.owner, f"/functions/default/{function['name']}/execute/batch", later)
        return {"batch_id": made["batch_id"]}

    async def dead_letter(self) -> Places:
        places = await self.execution()
        dead = update(ExecutionRow).where(ExecutionRow.id == UUID(places["job_id"]))
        await self.runtime.database.rows(dead.values(status="FAILED", dead_at=now()))
        return places

    async def secret(self) -> Places:
        """A private secret of an ordinary user; of an administrator also the shared one of that name."""
        name = self.name()
        for visibility in ("private", "shared") if self.owner is self.admin else ("private",):
            body = {"name": name, "value": "x", "visibility": visibility}
            await self._post(self.owner, "/api/v1/secrets", body)
        return {"name": name}

    async def role(self) -> Places:
        """A role with its owner and a stranger in it; what it holds is switched off, so that it gives nothing."""
        name = self.name()
        await self._post(self.admin, "/api/v1/roles", {"name": name})
        for member in (self.owner, self.stranger):
            await self._post(self.admin, f"/api/v1/roles/{name}/members", {"user_id": str(member.id)})
        off = {"permission_key": OFF, "permission_value": False}
        await self._post(self.admin, f"/api/v1/roles/{name}/permissions", off)
        return {"name": name, "user_id": str(self.stranger.id)}

    async def profile(self) -> Places:
        return {"user_id": str(self.owner.id)}

    async def user(self) -> Places:
        """Someone who may go; of a user's only himself."""
        if self.owner is not self.admin:
            return await self.profile()
        made = await self._post(self.admin, "/api/v1/users", {"email": f"{self.name()}@example.com"})
        return {"user_id": made["id"]}

    async def key(self) -> Places:
        made = await self._post(self.owner, "/api/v1/api-keys", {"name": self.name()})
        return {"key_id": made["id"]}

    async def session(self) -> Places:
        plain = uuid4().hex
        async with self.runtime.database.unit() as db:
            hashed = hash_token(self.runtime.settings.signing_key, plain)
            until = now() + timedelta(days=365)
            new = insert(RefreshTokenRow).values(user_id=self.owner.id, token_hash=hashed, expires_at=until)
            row = await db.execute(new.returning(RefreshTokenRow.id))
        session_id = str(row.scalar_one())
        return {"refresh_token": plain, "session_id": session_id, "user_id": str(self.owner.id)}

    async def deleted(self, make: Callable[[], Awaitable[Places]], collection: str) -> Places:
        places = await make()
        where = "/".join(places[key] for key in ("namespace", "name") if key in places)
        gone = await self.admin.http.delete(f"/api/v1/{collection}/{where}")
        assert gone.status_code == 204, gone.text
        return places

    async def nothing(self) -> Places:
        return {}

    async def process(self) -> Places:
        return {"container_name": "postgres"}


OFF = "sinas.agents.read:own"

MAKERS: tuple[tuple[str, Callable[[Objects], Awaitable[Places]]], ...] = (
    ("/functions/.*/undelete$", lambda make: make.deleted(make.function, "functions")),
    ("/skills/.*/undelete$", lambda make: make.deleted(make.skill, "skills")),
    ("/agents/.*/undelete$", lambda make: make.deleted(make.agent, "agents")),
    ("/budgets/.*/undelete$", lambda make: make.deleted(make.budget, "budgets")),
    ("/budgets/{", Objects.budget),
    ("/llm-providers/.*/undelete$", lambda make: make.deleted(make.provider, "llm-providers")),
    ("/templates/.*/undelete$", lambda make: make.deleted(make.template, "templates")),
    ("/templates/(by-name/)?{", Objects.template),
    ("/functions/{", Objects.function),
    ("/skills/{", Objects.skill),
    ("/dependencies/{", Objects.dependency),
    ("/agents/{", Objects.agent),
    ("/agents/default$", Objects.default_agent),
    ("/adapters/openai/v1/(models/{|chat/|responses$)", Objects.model),
    ("/adapters/openai/v1/responses/{", Objects.response),
    ("/adapters/openai/v1/embeddings$", Objects.provider),
    ("/llm-providers/{", Objects.provider),
    ("/approve-tool/|/approvals/{", Objects.waiting_chat),
    ("/pending-input/", Objects.asking_chat),
    ("/messages/{", Objects.said),
    ("/chats/{chat_id}/retry", Objects.stopped_chat),
    ("/attachments/{", Objects.attachment),
    ("/queued/{", Objects.queued_message),
    ("/chats/{chat_id}/(recording|judge)", Objects.tested_chat),
    ("/chats/{", Objects.chat),
    ("/(executions|jobs)/.*/cancel$", Objects.queued_execution),
    ("/dlq/{", Objects.dead_letter),
    ("/batches/{", Objects.batch),
    ("/(executions|jobs)/{", Objects.execution),
    ("/secrets/{", Objects.secret),
    ("/roles/{", Objects.role),
    ("/auth/sessions/{", Objects.session),
    ("^DELETE .*/users/{user_id}/sessions/{", Objects.session),
    ("^(DELETE|PUT) .*/users/{", Objects.user),
    ("/users/{", Objects.profile),
    ("/containers/{", Objects.process),
    ("/api-keys/{", Objects.key),
    ("/auth/(refresh|logout)$", Objects.session),
    ("", Objects.nothing),
)
"""What the path of a route needs: the first that matches."""


async def make_places(make: Objects, route: str) -> Places:
    """The values of a route's (`METHOD /path`) parameters, for objects made just now."""
    maker = next(maker for pattern, maker in MAKERS if re.search(pattern, route))
    places = await maker(make)
    missing = set(re.findall(r"{(\w+)}", route)) - set(places)
    assert not missing, f"tests/security/objects.py does not say what to put for {missing} of {route}"
    return places


def body_of(operation: str, make: Objects, places: Mapping[str, str]) -> Json | None:
    """A body that the route accepts; None for a route without one."""
    found = BODIES.get(operation)
    return None if found is None else found(make, places)


Body = Callable[[Objects, Mapping[str, str]], Json]
BODIES: dict[str, Body] = {
    "auth_login": lambda make, at: {"email": f"{make.name()}@example.com"},
    "auth_verify_otp": lambda make, at: {"session_id": str(uuid4()), "otp_code": "000000"},
    "auth_refresh": lambda make, at: {"refresh_token": at["refresh_token"]},
    "auth_logout": lambda make, at: {"refresh_token": at["refresh_token"]},
    "auth_change_password": lambda make, at: {"old_password": PASSWORD, "new_password": PASSWORD},
    "auth_forgot_password": lambda make, at: {"email": f"{make.name()}@example.com"},
    "auth_reset_password": lambda make, at: {
        "session_id": str(uuid4()),
        "otp_code": "000000",
        "new_password": PASSWORD,
    },
    "users_set_password": lambda make, at: {"new_password": PASSWORD},
    "auth_external_auth": lambda make, at: {"token": "x.y.z"},
    "auth_finish": lambda make, at: {"code": "x", "state": "x"},
    "auth_check_permissions": lambda make, at: {"permissions": ["sinas.agents.read:own"]},
    "access_explain_permission": lambda make, at: {"permission": "sinas.agents.read:own"},
    "functions_execute": lambda make, at: {"input": {}},
    "functions_execute_async": lambda make, at: {"input": {}, "delay_seconds": 3600},
    "functions_execute_batch": lambda make, at: {"inputs": [{}], "delay_seconds": 3600},
    "executions_resume": lambda make, at: {"input": "yes"},
    "openai_complete": lambda make, at: {"model": at["model_id"], "messages": [{"role": "user", "content": "hello"}]},
    "openai_respond": lambda make, at: {"model": at["model_id"], "input": "hello"},
    "openai_embed": lambda make, at: {"model": f"{at['name']}/scripted", "input": "hello"},
    "chats_create": lambda make, at: {},
    "chats_create_batch": lambda make, at: {"inputs": [{"message": "hello"}]},
    "chats_update": lambda make, at: {"title": "other"},
    "chats_send": lambda make, at: {"content": "hello"},
    "chats_stream": lambda make, at: {"content": "hello"},
    "chats_edit": lambda make, at: {"content": "hello"},
    "chats_edit_stream": lambda make, at: {"content": "hello"},
    "branches_choose": lambda make, at: {"branch": 0},
    "chats_approve": lambda make, at: {"approved": False},
    "approvals_decide": lambda make, at: {"approved": False},
    "pending_input_answer": lambda make, at: {"answer": "so"},
    "agent_tests_create": lambda make, at: {},
    "agent_tests_judge": lambda make, at: {"rubric": "It is friendly."},
    "invoke_agent": lambda make, at: {"message": "hello"},
    "api_keys_create": lambda make, at: {"name": "k"},
    "roles_create": lambda make, at: {"name": make.name()},
    "roles_change": lambda make, at: {"description": "other"},
    "roles_add_member": lambda make, at: {"user_id": str(make.stranger.id)},
    "roles_set_permission": lambda make, at: {"permission_key": OFF, "permission_value": False},
    "users_create": lambda make, at: {"email": f"{make.name()}@example.com"},
    "users_change": lambda make, at: {"custom_fields": {"color": "red"}},
    "functions_create": lambda make, at: {"name": make.name(), "code": CODE},
    "functions_update_put": lambda make, at: {"description": make.name()},
    "functions_update_patch": lambda make, at: {"description": make.name()},
    "skills_create": lambda make, at: {"name": make.name(), "description": "Helps.", "content": "Do."},
    "skills_update_put": lambda make, at: {"description": make.name()},
    "skills_update_patch": lambda make, at: {"description": make.name()},
    "dependencies_approve": lambda make, at: {"package_name": make.name()},
    "agents_create": lambda make, at: {"name": make.name()},
    "agents_update_put": lambda make, at: {"description": make.name()},
    "agents_update_patch": lambda make, at: {"description": make.name()},
    "budgets_create": lambda make, at: {
        "name": make.name(),
        "applies_to": "role",
        "subject": "GuestUsers",
        "max_tokens": 10**9,
    },
    "budgets_update_put": lambda make, at: {"max_usd": 10**6},
    "budgets_update_patch": lambda make, at: {"max_usd": 10**6},
    "llm_providers_create": lambda make, at: {"name": make.name(), "provider_type": "scripted"},
    "llm_providers_update_put": lambda make, at: {"default_model": make.name()},
    "llm_providers_update_patch": lambda make, at: {"default_model": make.name()},
    "containers_scale": lambda make, at: {"target": 2},
    "workers_scale": lambda make, at: {"target_count": 2},
    "secrets_create": lambda make, at: {"name": make.name(), "value": "x", "visibility": "private"},
    "secrets_update": lambda make, at: {"value": make.name()},
    "templates_create": lambda make, at: {"name": make.name(), "html_content": "<p>Hello</p>"},
    "templates_update_put": lambda make, at: {"description": make.name()},
    "templates_update_patch": lambda make, at: {"description": make.name()},
    "templates_update_by_id": lambda make, at: {"description": make.name()},
    "templates_render": lambda make, at: {"variables": {}},
    "templates_render_by_id": lambda make, at: {"variables": {}},
    "templates_email": lambda make, at: {"to": "someone@example.com", "variables": {}},
    "templates_send": lambda make, at: {"to": "someone@example.com", "variables": {}},
    "templates_send_by_id": lambda make, at: {"to": "someone@example.com", "variables": {}},
    "config_validate": lambda make, at: {"config": DOCUMENT},
    "config_apply_config": lambda make, at: {"config": DOCUMENT},
}
"""Operation → a valid body."""

PASSWORD = "correct horse battery staple"
DOCUMENT = "apiVersion: sinas.co/v1\nkind: SinasConfig\nmetadata: {name: fuzzed}\nspec: {}\n"

QUERIES: Mapping[str, Mapping[str, str]] = {
    "roles_remove_permission": {"permission_key": OFF},
    "access_list_objects": {"kind": "agent", "action": "chat"},
}
"""Operation → the query it cannot do without."""
