"""Which models there are, for whom, and under which names."""

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import Declare
from tests.openai_adapter.conftest import URL, Connect, Provide
from tests.people import Person, make_key


async def names(client: AsyncOpenAI) -> list[str]:
    return [model.id async for model in client.models.list()]


async def test_agents_and_provider_models_are_listed(
    declare: Declare, provide: Provide, admin_sdk: AsyncOpenAI
) -> None:
    await declare("helper")
    await provide("main", default_model="fake-large", models=["fake-small", "org/name:7b"])
    found = await names(admin_sdk)
    assert found == [
        "agent:default/helper",
        "for-helper/scripted",
        *("main/fake-large", "main/fake-small", "main/org/name:7b"),
    ]
    for name in found:
        model = await admin_sdk.models.retrieve(name)
        assert (model.id, model.object) == (name, "model")


async def test_a_user_sees_agents_and_no_provider_models(declare: Declare, provide: Provide, sdk: AsyncOpenAI) -> None:
    await declare("helper")
    await provide("main")
    assert await names(sdk) == ["agent:default/helper"]
    for name in ("main/fake-large", "fake-large", "main/other", "agent:default/none", "nothing/here", "none"):
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.models.retrieve(name)
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"


async def test_a_permission_opens_one_model(
    declare: Declare, provide: Provide, admin: Person, runtime: Runtime, connect: Connect
) -> None:
    await declare("helper")
    await provide("main", models=["fake-large", "fake-small"])
    key = await make_key(runtime, admin.id, "sinas.models/main/fake-small.use:all")
    client = connect(key)
    assert await names(client) == ["main/fake-small"]
    assert (await client.models.retrieve("fake-small")).id == "main/fake-small"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("main/fake-large")


async def test_a_bare_name_must_be_of_one_provider(provide: Provide, admin_sdk: AsyncOpenAI) -> None:
    await provide("main", models=["fake-large"])
    await provide("other", models=["fake-large", "fake-small"], is_default=True)
    assert (await admin_sdk.models.retrieve("fake-small")).id == "other/fake-small"
    with pytest.raises(openai.BadRequestError, match="main/fake-large or other/fake-large"):
        await admin_sdk.models.retrieve("fake-large")


async def test_the_default_provider_takes_any_name_unless_it_lists_its_models(
    provide: Provide, admin: Person, admin_sdk: AsyncOpenAI
) -> None:
    await provide("main", is_default=True)
    assert (await admin_sdk.models.retrieve("brand-new")).id == "main/brand-new"
    assert (await admin.http.patch("/api/v1/llm-providers/main", json={"models": ["fake-large"]})).status_code == 200
    for name in ("brand-new", "main/brand-new"):
        with pytest.raises(openai.NotFoundError):
            await admin_sdk.models.retrieve(name)


async def test_nobody_can_put_an_agent_in_a_models_place(
    provide: Provide, user: Person, connect: Connect, admin_sdk: AsyncOpenAI
) -> None:
    await provide("main")
    body = {"namespace": "main", "name": "fake-large"}
    assert (await user.http.post("/api/v1/agents", json=body)).status_code == 201
    assert (await admin_sdk.models.retrieve("main/fake-large")).owned_by == "main"
    assert (await admin_sdk.models.retrieve("agent:main/fake-large")).owned_by == "sinas"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/models", 401, "authentication_error"),
        ("POST", "/chat/completions", 401, "authentication_error"),
        ("GET", "/nothing", 404, "invalid_request_error"),
        ("DELETE", "/models", 405, "invalid_request_error"),
        ("GET", "/models/%00", 422, "invalid_request_error"),
    ],
)
async def test_every_error_has_openais_shape(
    client: httpx2.AsyncClient, method: str, path: str, status: int, kind: str
) -> None:
    answer = await client.request(method, f"{URL}{path}", json={"messages": []})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == kind
    assert error["message"]
