"""Reading documents: variables, YAML's surprises, and what must not be read."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from sinas_server.config.document import DocumentError, api_lookup, parse
from sinas_server.config.startup import apply_file, file_lookup
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel.runtime import Runtime
from tests.config.documents import FULL, apply, document, validate
from tests.people import Person


def unset(name: str) -> str | None:
    """Nothing is set."""
    return None


def one(value: str, variables: Mapping[str, str] = MappingProxyType({})) -> object:
    """What a document holds whose only value is this."""

    def lookup(name: str) -> str | None:
        return variables.get(name)

    return parse(document(f"  x: {value}\n"), lookup).spec["x"]


def problems(text: str) -> list[str]:
    with pytest.raises(DocumentError) as raised:
        parse(text, unset)
    return [str(problem) for problem in raised.value.problems]


def test_variables() -> None:
    lookup = {"A": "1", "B_2": "two ${A}", "EMPTY": ""}
    assert one("'${A}-${B_2}'", lookup) == "1-two ${A}", "values are not read again"
    assert one("'$${A} ${a} $A {A} ${A-x} ${1A} $$$${A}'", lookup) == "${A} ${a} $A {A} ${A-x} ${1A} $$${A}"
    assert one("'[${EMPTY}]'", lookup) == "[]"
    assert one("{'${A}': [{y: '${A}'}]}", lookup) == {"${A}": [{"y": "1"}]}, "keys are not filled in"
    assert problems(document("  x: ['a', {y: '${A} ${B}'}]\n")) == [
        "spec.x[1].y: variable ${A} is not set",
        "spec.x[1].y: variable ${B} is not set",
    ]


async def test_the_api_reads_only_its_own_variables(admin: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINAS_VAR_CODE", "x = 7")
    monkeypatch.setenv("HOME_SECRET", "x = 8")
    good = document("  functions: [{name: f, code: '${SINAS_VAR_CODE}'}]\n")
    assert (await apply(admin.http, good))["success"] is True
    assert (await admin.http.get("/api/v1/functions/default/f")).json()["code"] == "x = 7"
    for name in ("HOME_SECRET", "SECRET_KEY", "PATH"):
        report = await apply(admin.http, good.replace("SINAS_VAR_CODE", name))
        assert report["success"] is False
        assert "SINAS_VAR_" in report["errors"][0]
        assert report["errors"][0].startswith("spec.functions[0].code")
        assert "x = 8" not in str(report)
        assert (await validate(admin.http, good.replace("SINAS_VAR_CODE", name)))["errors"][0]["path"]
    assert api_lookup({"SINAS_VAR_X": "1"})("SINAS_VAR_X") == "1"


def test_a_file_reads_all_but_the_platforms_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECRET_KEY", "ENCRYPTION_KEY", "DATABASE_PASSWORD", "DATABASE_URL", "REDIS_URL", "SMTP_PASSWORD"):
        monkeypatch.setenv(name, "secret")
        assert file_lookup()(name) is None
    monkeypatch.setenv("ANYTHING", "x")
    assert file_lookup()("ANYTHING") == "x"


def test_values_are_what_they_look_like() -> None:
    assert one("2024-01-01") == "2024-01-01"
    assert one("2024-01-01T10:00:00Z") == "2024-01-01T10:00:00Z"
    assert one("{on: 1, 404: 2, null: 3, 1.50: 4, 2024-01-01: 5}") == {
        "on": 1,
        "404": 2,
        "null": 3,
        "1.50": 4,
        "2024-01-01": 5,
    }
    assert one("[1, 1.5, true, ~, 0x10]") == [1, 1.5, True, None, 16]
    assert one("{<<: {a: 1, b: 2}, b: 3}") == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (".nan", "spec.x"),
        ("[.inf]", "spec.x[0]"),
        (str(10**30), "spec.x"),
        ("!!binary aGk=", "spec.x"),
        ("!!set {a}", "spec.x"),
        ('"\\0"', "spec.x"),
        ('"\\ud800"', "$"),
        ("!!python/object/apply:os.system ['true']", "$"),
        ("{[a]: 1}", "$"),
        ("*nowhere", "$"),
        ("[", "$"),
        ("!file /etc/passwd", "$"),
    ],
)
def test_values_that_cannot_be(value: str, place: str) -> None:
    assert [problem.partition(":")[0] for problem in problems(document(f"  x: {value}\n"))] == [place]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "just text",
        "apiVersion: v1\nkind: SinasConfig\nspec: {}",
        "apiVersion: sinas.co/v1\nkind: Pod\nspec: {}",
        "apiVersion: sinas.co/v1\nkind: SinasConfig\nspec: [a]",
        "\ud800",
        "a: b\n---\nc: d",
        "\x00",
        "%YAML 9.9\n---\n",
    ],
)
async def test_documents_that_are_none(text: str, admin: Person) -> None:
    assert problems(text)
    if text.isprintable():
        assert (await validate(admin.http, text))["valid"] is False


def test_an_empty_spec_is_fine() -> None:
    assert parse("apiVersion: sinas.co/v1\nkind: SinasConfig\nspec:\n", unset).spec == {}
    assert parse("apiVersion: sinas.co/v1\nkind: SinasConfig\n", unset).name is None


def test_bombs() -> None:
    """Small texts that grow, or nest: refused before they take memory or the stack."""
    laughs = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10))
    assert "too large" in problems(f"l0: &l0 lol\n{laughs}\napiVersion: sinas.co/v1\nkind: SinasConfig\n")[0]
    merges = "\n".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}], k{n}: 1}}" for n in range(1, 10))
    assert "merged" in problems(f"m0: &m0 {{k0: 1}}\n{merges}\n")[0]
    for deep in ("[" * 100_000 + "]" * 100_000, "{a: " * 100_000 + "}" * 100_000, "- " * 100_000 + "x"):
        assert "nested" in problems(f"x:\n  {deep}\n")[0]
    assert "nested" in problems("a: &a [*a]\n" + "x: " + "[" * 61 + "]" * 61)[0]
    assert problems("apiVersion: sinas.co/v1\nkind: SinasConfig\nspec: &s {x: *s}\n")


async def test_too_large_a_document_is_422(admin: Person) -> None:
    answer = await admin.http.post("/api/v1/config/apply", json={"config": "x" * 5_000_001})
    assert answer.status_code == 422


async def test_a_file_at_the_start(
    runtime: Runtime, admin: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_ENVIRONMENT", "x = 3")
    caller = await act_for(runtime, Principal(admin.id), "system")
    path = tmp_path / "config.yaml"
    assert await apply_file(runtime, caller, path) is False, "it is not there"
    path.write_bytes(b"\xff\xfe\x00")
    assert await apply_file(runtime, caller, path) is False
    path.write_text("nonsense: [")
    assert await apply_file(runtime, caller, path) is False
    path.write_text(document("  functions: [{name: f, code: 'def ('}]\n"))
    assert await apply_file(runtime, caller, path) is False
    path.write_text(document("  functions: [{name: f, code: '${FROM_ENVIRONMENT}', odd: 1}]\n"))
    assert await apply_file(runtime, caller, path) is True
    assert (await admin.http.get("/api/v1/functions/default/f")).json()["code"] == "x = 3"
    path.write_text(FULL)
    assert await apply_file(runtime, caller, path) is True
    assert await apply_file(runtime, caller, path) is True
    found = (await admin.http.get("/api/v1/agents/support/desk")).json()
    assert (found["version"], found["user_id"], found["managed_by"]) == (1, str(admin.id), "config")
    assert "FROM_ENVIRONMENT" in os.environ
