"""Trying out providers: what they offer, and why they cannot be used, without telling the key."""

import pytest

from tests.fakes.llm_server import FakeLLM, Provider
from tests.people import Person
from tests.providers.conftest import Json, Provide

PATH = "/api/v1/llm-providers"


async def _test(admin: Person, reference: str) -> Json:
    answer = await admin.http.post(f"{PATH}/{reference}/test")
    assert answer.status_code == 200, answer.text
    assert "sk-provider-key" not in answer.text
    tried: Json = answer.json()
    assert set(tried) == {"success", "message", "latency_ms"}
    assert tried["latency_ms"] >= 0
    return tried


@pytest.mark.parametrize("kind", ["openai", "anthropic", "mistral", "ollama"])
async def test_a_provider_says_what_it_offers(admin: Person, provide: Provide, kind: Provider) -> None:
    provider_id = await provide("main", kind)
    for reference in ("main", provider_id):
        listed = await admin.http.get(f"{PATH}/{reference}/models")
        assert listed.status_code == 200, listed.text
        models = listed.json()["models"]
        assert models == sorted(models)
        assert models
        tried = await _test(admin, reference)
        assert (tried["success"], f"offers {len(models)} model" in tried["message"]) == (True, True)


async def test_a_default_model_that_is_not_offered_is_named(admin: Person, provide: Provide) -> None:
    await provide("main", default_model="no-such-model")
    tried = await _test(admin, "main")
    assert (tried["success"], "'no-such-model'" in tried["message"]) == (True, True)


async def test_a_provider_that_does_not_answer(admin: Person, provide: Provide, fake: FakeLLM) -> None:
    await provide("main", api_endpoint="http://127.0.0.1:9")
    tried = await _test(admin, "main")
    assert tried["success"] is False
    assert "cannot be reached" in tried["message"]
    listed = await admin.http.get(f"{PATH}/main/models")
    assert (listed.status_code, listed.json()["code"]) == (424, "provider_error")
    assert "sk-provider-key" not in listed.text


async def test_one_without_a_key_says_so(admin: Person) -> None:
    made = await admin.http.post(PATH, json={"name": "bare", "provider_type": "anthropic"})
    assert made.status_code == 201, made.text
    tried = await _test(admin, "bare")
    assert tried["success"] is False
    assert "key" in tried["message"]


async def test_the_offline_model_can_be_tried(admin: Person) -> None:
    made = await admin.http.post(PATH, json={"name": "offline", "provider_type": "scripted"})
    assert made.status_code == 201, made.text
    assert (await _test(admin, "offline"))["success"] is True
    assert (await admin.http.get(f"{PATH}/offline/models")).json()["models"] == ["scripted"]


async def test_only_who_may_see_a_provider_may_try_it(admin: Person, user: Person, provide: Provide) -> None:
    await provide("main")
    assert (await user.http.post(f"{PATH}/main/test")).status_code == 403
    assert (await user.http.get(f"{PATH}/main/models")).status_code == 403
    assert (await admin.http.post(f"{PATH}/nowhere/test")).status_code == 404


async def test_ollama_needs_an_endpoint_however_it_is_declared(admin: Person, provide: Provide) -> None:
    await provide("main", api_endpoint=None)
    changed = await admin.http.patch(f"{PATH}/main", json={"provider_type": "ollama"})
    assert changed.status_code == 422
    assert "api_endpoint" in changed.json()["detail"][0]["loc"]
    document = """
apiVersion: sinas.co/v1
kind: SinasConfig
metadata: {name: test}
spec:
  llmProviders: [{name: local, type: ollama}]
"""
    checked = await admin.http.post("/api/v1/config/validate", json={"config": document})
    assert checked.status_code == 200, checked.text
    assert checked.json()["valid"] is False
    assert "endpoint" in checked.text
