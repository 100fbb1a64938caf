"""Applying documents: what is declared comes to be, all of it or nothing."""

import asyncio
import dataclasses

import pytest
import yaml
from sqlalchemy import text

from sinas_server.functions.kind import FUNCTION
from sinas_server.kernel import apply as kernel_apply
from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM, Caller
from sinas_server.kernel.apply import Order
from sinas_server.kernel.kind import Kind, Spec
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Change, Managed, Resource
from sinas_server.kernel.unit import Db
from tests.config.documents import FULL, Json, apply, document, export, validate
from tests.identity.waiting import waits_or_ends
from tests.people import Person

NOTHING: Json = {"created": {}, "updated": {}, "unchanged": {}, "deleted": {}}
ALL = {"llm_provider": 1, "function": 1, "agent": 2}
ECHO = "def handler(input_data, context): return input_data"


async def rows(runtime: Runtime) -> list[object]:
    found = await runtime.database.rows(text("SELECT r::text AS whole FROM resources r ORDER BY id"))
    return [row.whole for row in found]


async def test_create_unchanged_update(admin: Person) -> None:
    first = await apply(admin.http, FULL)
    assert first["success"] is True, first
    assert (first["summary"], first["errors"], first["warnings"]) == ({**NOTHING, "created": ALL}, [], [])
    assert first["changes"][1] == {
        "action": "create",
        "resourceType": "function",
        "resourceName": "support/lookup-order",
        "details": None,
        "changes": None,
    }
    again = await apply(admin.http, FULL)
    assert again["summary"] == {**NOTHING, "unchanged": ALL}
    changed = await apply(admin.http, FULL.replace("timeout: 20", "timeout: 30"))
    assert changed["summary"] == {**NOTHING, "updated": {"function": 1}, "unchanged": {"llm_provider": 1, "agent": 2}}
    assert changed["changes"][1]["changes"] == {"timeout": {"old": 20, "new": 30}}
    assert (await admin.http.get("/api/v1/functions/support/lookup-order")).json()["timeout"] == 30


async def test_what_it_says_arrives(admin: Person) -> None:
    await apply(admin.http, FULL)
    provider = (await admin.http.get("/api/v1/llm-providers/main")).json()
    assert (provider["provider_type"], provider["api_endpoint"]) == ("openai", "https://llm.example/v1")
    function = (await admin.http.get("/api/v1/functions/support/lookup-order")).json()
    assert '"${AMOUNT} ${lower}"' in function["code"]
    assert list(function["input_schema"]["properties"]) == ["orderId", "aFirst"], "free-form keys stay as written"
    agent = (await admin.http.get("/api/v1/agents/support/desk")).json()
    assert agent["llm_provider_id"] == provider["id"]
    assert agent["function_parameters"] == {"support/lookup-order": {"shopId": {"value": "s1", "locked": True}}}
    assert agent["hooks"]["on_user_message"][0]["async"] is True
    assert agent["hooks"]["on_user_message"][0]["on_timeout"] == "block"
    assert agent["enabled_agents"] == ["default/desk"]
    assert agent["system_tools"] == ["codeExecution", {"name": "databaseIntrospection", "connections": ["built-in"]}]
    assert (agent["managed_by"], agent["config_name"]) == ("config", "shop")


async def test_snake_case_is_the_same(admin: Person) -> None:
    snake = document(
        "  llm_providers: [{name: main, provider_type: openai, api_key: sk-first}]\n"
        "  agents: [{name: desk, llm_provider_name: main, max_tokens: 9, is_active: false}]\n"
    )
    camel = document(
        "  llmProviders: [{name: main, type: openai, apiKey: sk-first}]\n"
        "  agents: [{name: desk, llmProviderName: main, maxTokens: 9, isActive: false}]\n"
    )
    assert (await apply(admin.http, snake))["summary"]["created"] == {"llm_provider": 1, "agent": 1}
    assert (await apply(admin.http, camel))["summary"] == {**NOTHING, "unchanged": {"llm_provider": 1, "agent": 1}}
    assert (await admin.http.get("/api/v1/agents/default/desk")).json()["is_active"] is False


async def test_a_dry_run_changes_nothing(admin: Person, runtime: Runtime) -> None:
    await apply(admin.http, document("  functions: [{name: old, code: 'x = 1'}]\n"))
    before = await rows(runtime)
    await runtime.redis.flushdb()
    dry = await apply(admin.http, FULL, dryRun=True)
    assert (dry["success"], dry["summary"]) == (True, {**NOTHING, "created": ALL})
    assert await rows(runtime) == before
    assert not await runtime.redis.keys()
    assert not await runtime.database.rows(text("SELECT 1 FROM audit_log WHERE detail->>'changes' = '4'"))
    assert (await apply(admin.http, FULL))["summary"]["created"] == ALL
    assert (await apply(admin.http, FULL, dryRun=True))["summary"] == {**NOTHING, "unchanged": ALL}


async def test_one_bad_entry_and_nothing_is_written(admin: Person, runtime: Runtime) -> None:
    before = await rows(runtime)
    bad = FULL.replace("timeout: 20", "timeout: -1").replace("maxTokens: 200", "maxTokens: many")
    report = await apply(admin.http, bad)
    assert report["success"] is False
    places = {error.partition(": ")[0] for error in report["errors"]}
    assert places == {"spec.functions[0].timeout", "spec.agents[0].maxTokens"}
    assert await rows(runtime) == before


async def test_errors_name_their_place(admin: Person) -> None:
    report = await validate(
        admin.http,
        document(
            "  llmProviders:\n"
            "    - {name: a, type: abacus}\n"
            "    - {type: openai}\n"
            "    - {name: 'a/b', type: openai}\n"
            "    - {name: 5, type: openai}\n"
            "    - nonsense\n"
            "  functions:\n"
            "    - {name: f, code: 'def ('}\n"
            "    - {name: f2, code: 'x = 1', isActive: perhaps}\n"
            f"    - {{name: {'n' * 256}, code: 'x = 1'}}\n"
            "    - {name: twice, code: 'x = 1'}\n"
            "    - {name: twice, code: 'x = 2'}\n"
            "  agents:\n"
            "    - {name: a, llmProviderName: missing}\n"
            "    - {name: b, enabledFunctions: [missing], enabledAgents: [a b/c/d]}\n"
            "    - {name: c, hooks: {onUserMessage: [{function: f, onTimeout: explode}]}}\n"
            "    - {name: d, enabledFunctions: [elsewhere/missing]}\n"
            "    - {name: e, namespace: 'no way'}\n"
        ),
    )
    assert report["valid"] is False
    assert {(error["path"], error["location"], error["severity"]) for error in report["errors"]} == {
        (path, path, "error")
        for path in (
            "spec.llmProviders[0].type",
            "spec.llmProviders[1].name",
            "spec.llmProviders[2].name",
            "spec.llmProviders[3].name",
            "spec.llmProviders[4]",
            "spec.functions[0].code",
            "spec.functions[1].isActive",
            "spec.functions[2].name",
            "spec.functions[4].name",
            "spec.agents[0].llmProviderName",
            "spec.agents[1].enabledAgents[0]",
            "spec.agents[2].hooks.onUserMessage[0].onTimeout",
            "spec.agents[3].enabledFunctions",
            "spec.agents[4].namespace",
        )
    }
    assert all(error["message"] for error in report["errors"])
    assert (await validate(admin.http, document("  agents: {name: a}\n")))["errors"][0]["path"] == "spec.agents"


async def test_unknown_keys_and_sections_warn_with_their_path(admin: Person) -> None:
    spec = (
        "  variables: [{name: X}]\n  holograms: [{name: a}]\n"
        "  agents:\n    - {name: a, providerOverrides: {x: 1}, hooks: {onUserMessage: [], onDream: []}}\n"
    )
    config = document(spec, "metadata: {name: shop}\npackage: {name: crm}\nextra: 1\n")
    report = await validate(admin.http, config)
    assert (report["valid"], report["errors"]) == (True, [])
    assert {warning["path"] for warning in report["warnings"]} == {
        "extra",
        "spec.variables",
        "spec.holograms",
        "spec.agents[0].providerOverrides",
        "spec.agents[0].hooks.onDream",
    }
    assert {warning["severity"] for warning in report["warnings"]} == {"warning"}
    applied = await apply(admin.http, config)
    assert applied["success"] is True
    assert any("spec.agents[0].providerOverrides" in warning for warning in applied["warnings"])


async def test_a_package_document_names_itself(admin: Person) -> None:
    config = document("  functions: [{name: f, code: 'x = 1'}]\n", "package: {name: crm, version: 1.0.0}\n")
    await apply(admin.http, config.replace("SinasConfig", "SinasPackage"))
    assert (await admin.http.get("/api/v1/functions/default/f")).json()["config_name"] == "crm"


async def test_what_it_refers_to_may_come_from_a_later_release(admin: Person) -> None:
    """Stores, queries and the like are sections that this release does not know: a warning, as for the section."""
    report = await apply(admin.http, document("  agents: [{name: a, enabledStores: [notes], enabledQueries: [q]}]\n"))
    assert report["success"] is True, report
    assert any("store default/notes does not exist" in warning for warning in report["warnings"])


async def test_it_leaves_alone_what_others_made(admin: Person, runtime: Runtime) -> None:
    await admin.http.post("/api/v1/functions", json={"name": "mine", "code": ECHO})
    caller = dataclasses.replace(SYSTEM, id=admin.id)
    async with runtime.database.unit() as db:
        spec = store.validated(FUNCTION, {"code": ECHO})
        await store.create(db, caller, FUNCTION, ("default", "packaged"), spec, Change(managed=Managed("pkg:crm")))
    config = document("  functions:\n    - {name: mine, code: 'x = 1'}\n    - {name: packaged, code: 'x = 1'}\n")
    report = await apply(admin.http, config)
    assert report["success"] is True
    assert report["summary"] == {**NOTHING, "unchanged": {"function": 2}}
    assert len(report["warnings"]) == 2
    assert "was not created by a configuration" in report["changes"][0]["details"]
    assert "is managed by pkg:crm" in report["changes"][1]["details"]
    assert (await admin.http.get("/api/v1/functions/default/mine")).json()["code"] == ECHO
    forced = await apply(admin.http, config, force=True)
    assert forced["summary"] == {**NOTHING, "updated": {"function": 2}}
    mine = (await admin.http.get("/api/v1/functions/default/mine")).json()
    assert (mine["code"], mine["managed_by"]) == ("x = 1", "config")
    assert (await apply(admin.http, config))["summary"] == {**NOTHING, "unchanged": {"function": 2}}


PROVIDER = document("  llmProviders: [{name: p, type: openai, endpoint: 'https://llm.example/v1'}]\n")


async def test_two_that_apply_the_same_at_once_both_succeed(admin: Person, runtime: Runtime) -> None:
    """Like the replicas of a deployment, or two of its pipelines."""
    caller = dataclasses.replace(SYSTEM, id=admin.id)
    async with runtime.database.unit() as db:  # the first one, just before its end
        order = Order(caller, Managed("config", None))
        await kernel_apply.apply(db, order, tuple(runtime.kinds.values()), yaml.safe_load(PROVIDER)["spec"])
        second = asyncio.create_task(apply(admin.http, PROVIDER))
        await waits_or_ends(runtime, second)
    assert (await second)["summary"] == {**NOTHING, "unchanged": {"llm_provider": 1}}


async def test_a_secret_that_is_changed_meanwhile_is_kept(
    admin: Person, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document leaves it out; it was changed after the old one had been looked at."""
    await apply(admin.http, document("  llmProviders: [{name: p, type: openai, apiKey: sk-one}]\n"))
    changed = asyncio.Event()

    read = store.read

    async def then_it_is_changed(db: Db, caller: Caller, kind: Kind[Spec], namespace: str, name: str) -> Resource[Spec]:
        found = await read(db, caller, kind, namespace, name)
        if not changed.is_set():
            changed.set()
            answer = await admin.http.put("/api/v1/llm-providers/p", json={"api_key": "sk-two"})
            assert answer.status_code == 200, answer.text
        return found

    monkeypatch.setattr(store, "read", then_it_is_changed)
    report = await apply(admin.http, PROVIDER)
    assert report["summary"] == {**NOTHING, "updated": {"llm_provider": 1}}, report
    [row] = await runtime.database.rows(text("SELECT spec FROM resources WHERE name = 'p'"))
    assert runtime.database.sealer.open(row.spec["api_key"]) == "sk-two"
    assert row.spec["api_endpoint"] == "https://llm.example/v1"


async def test_drift_is_put_right(admin: Person) -> None:
    config = document("  functions: [{name: f, code: 'x = 1', timeout: 5}]\n")
    await apply(admin.http, config)
    await admin.http.put("/api/v1/functions/default/f", json={"timeout": 50})
    report = await apply(admin.http, config)
    assert report["changes"][0]["changes"] == {"timeout": {"old": 50, "new": 5}}
    await admin.http.put("/api/v1/functions/default/f", json={"is_active": False})
    assert (await apply(admin.http, config))["changes"][0]["changes"] == {"is_active": {"old": False, "new": True}}


async def test_absent_fields_go_back_to_their_defaults(admin: Person) -> None:
    await apply(admin.http, document("  functions: [{name: f, code: 'x = 1', timeout: 5, description: d}]\n"))
    await apply(admin.http, document("  functions: [{name: f, code: 'x = 1'}]\n"))
    found = (await admin.http.get("/api/v1/functions/default/f")).json()
    assert (found["timeout"], found["description"]) == (None, None)


async def test_secrets_are_kept_when_left_out(admin: Person, runtime: Runtime) -> None:
    async def key() -> str | None:
        row = (await runtime.database.rows(text("SELECT spec FROM resources WHERE name = 'p'")))[0]
        return None if row.spec["api_key"] is None else runtime.database.sealer.open(row.spec["api_key"])

    without = document("  llmProviders: [{name: p, type: openai}]\n")
    with_key = document("  llmProviders: [{name: p, type: openai, apiKey: sk-one}]\n")
    await apply(admin.http, with_key)
    assert (await apply(admin.http, without))["summary"] == {**NOTHING, "unchanged": {"llm_provider": 1}}
    assert await key() == "sk-one"
    changed = await apply(admin.http, with_key.replace("sk-one", "sk-two"))
    assert changed["changes"][0]["changes"] == {"api_key": {"old": "(secret)", "new": "(secret)"}}
    assert "sk-" not in str(changed)
    assert await key() == "sk-two"
    await apply(admin.http, with_key.replace("sk-one", "null"))
    assert await key() is None


async def test_a_round_trip_to_an_empty_installation(admin: Person, runtime: Runtime) -> None:
    awkward = "  tabs\tand  \n trailing \n\n# no comment: 'x' \"y\" \\ é 漢 🎉 \u2028 ${lower} $5 $$ yes\r\n"
    agent = {"name": "odd", "system_prompt": awkward, "description": "2024-01-01", "input_schema": {"on": {"404": {}}}}
    assert (await admin.http.post("/api/v1/agents", json=agent)).status_code == 201
    literal = {"name": "l", "code": "x = '${HOME} $${HOME} $$${HOME} ${a} $$'", "is_active": False}
    assert (await admin.http.post("/api/v1/functions", json=literal)).status_code == 201
    await apply(admin.http, FULL)
    exported = await export(admin.http)
    assert "sk-first" not in exported

    await runtime.database.rows(text("DELETE FROM resources"))
    report = await apply(admin.http, exported)
    assert (report["success"], report["warnings"]) == (True, []), report
    assert report["summary"]["created"] == {"llm_provider": 1, "function": 2, "agent": 3}
    assert await export(admin.http) == exported
    assert (await apply(admin.http, exported))["summary"]["unchanged"] == {"llm_provider": 1, "function": 2, "agent": 3}
    odd = (await admin.http.get("/api/v1/agents/default/odd")).json()
    assert odd.items() >= agent.items()
    found = (await admin.http.get("/api/v1/functions/default/l")).json()
    assert (found["code"], found["is_active"]) == (literal["code"], False)


async def test_export_chooses(admin: Person) -> None:
    await apply(admin.http, FULL)
    await admin.http.post("/api/v1/llm-providers", json={"name": "9 My.Own", "provider_type": "openai", "api_key": "k"})
    managed = yaml.safe_load(await export(admin.http, managed_only="true"))
    assert [entry["name"] for entry in managed["spec"]["llmProviders"]] == ["main"]
    everything = await export(admin.http, include_secrets="true")
    assert everything.startswith("# Secrets are never exported")
    keys = {entry["name"]: entry["apiKey"] for entry in yaml.safe_load(everything)["spec"]["llmProviders"]}
    assert keys == {"main": "${MAIN_API_KEY}", "9 My.Own": "${_MY_OWN_API_KEY}"}


async def test_only_administrators(user: Person, admin: Person) -> None:
    for method, path in (("POST", "apply"), ("POST", "validate"), ("GET", "export")):
        json = {"config": FULL} if method == "POST" else None
        answer = await user.http.request(method, f"/api/v1/config/{path}", json=json)
        assert answer.status_code == 403
        assert (await admin.http.request(method, f"/api/v1/config/{path}", json=json)).status_code == 200


async def test_an_apply_is_audited(admin: Person, runtime: Runtime) -> None:
    await apply(admin.http, FULL)
    query = text("SELECT actor, target, detail FROM audit_log WHERE action = 'config.apply'")
    assert [tuple(row) for row in await runtime.database.rows(query)] == [(admin.email, "shop", {"changes": 4})]
