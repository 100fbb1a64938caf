"""Every OpenAPI document is a reference that people can use."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openapi_spec_validator import validate

from sinas_server.app import create_app
from sinas_server.roles import open_runtime
from sinas_server.settings import Settings
from tests.documents import documents

Json = dict[str, Any]
SETTINGS = Settings(_env_file=None)
prefixes = pytest.mark.parametrize("prefix", documents(create_app(SETTINGS, lambda: open_runtime(SETTINGS, "test"))))


@pytest.fixture
async def document(prefix: str, client: httpx2.AsyncClient) -> Json:
    answer: Json = (await client.get(f"{prefix}/openapi.json")).json()
    return answer


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


@prefixes
async def test_it_is_valid(document: Json) -> None:
    validate(document)


@prefixes
async def test_operations_are_named_and_summarized(document: Json) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert sorted(ids) == sorted(set(ids))
    for place, operation in operations(document):
        assert operation["summary"][0].isupper() and not operation["summary"].endswith("."), place
        assert operation["tags"], place


@prefixes
async def test_every_answer_has_a_schema(document: Json) -> None:
    for place, operation in operations(document):
        successes = {code: answer for code, answer in operation["responses"].items() if code.startswith("2")}
        assert successes, place
        for code, answer in successes.items():
            if code == "204":
                assert "content" not in answer, place
                continue
            assert answer.get("content"), place
            for media, content in answer["content"].items():
                assert "schema" in content, f"{place} {code} {media}"


@prefixes
async def test_every_parameter_and_field_is_described(document: Json) -> None:
    undescribed = [
        f"{place} {parameter['name']}"
        for place, operation in operations(document)
        for parameter in operation.get("parameters", ())
        if not parameter.get("description")
    ]
    for name, schema in document["components"]["schemas"].items():
        if name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own
            continue
        undescribed += [
            f"{name}.{field}"
            for field, content in schema.get("properties", {}).items()
            if not content.get("description")
        ]
    assert undescribed == []


@prefixes
async def test_answers_always_hold_every_field(document: Json) -> None:
    """Defaults of what is declared must not make fields of answers optional."""
    for name, schema in document["components"]["schemas"].items():
        if name in ("AgentResponse", "FunctionResponse", "ProviderResponse"):
            assert set(schema["required"]) == set(schema["properties"]), name


@prefixes
async def test_no_answer_holds_a_secret(document: Json) -> None:
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Response"):
            assert not any(field.get("writeOnly") for field in schema.get("properties", {}).values()), name


@prefixes
async def test_operations_say_which_credentials_they_take(document: Json) -> None:
    assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    open_doors = {
        path for path, item in document["paths"].items() for operation in item.values() if "security" not in operation
    }
    assert "/auth/me" not in open_doors
    assert all(path.startswith(("/auth/", "/health", "/info")) for path in open_doors)
