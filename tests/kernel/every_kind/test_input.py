"""Input that nobody should send: an answer in 4xx, never 500, and nothing stored."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import orjson
import pytest

from tests.kernel.every_kind.examples import SCHEMA, Example
from tests.people import Person

JSON = {"Content-Type": "application/json"}
DEEP = b'{"a":' * 5000 + b"1" + b"}" * 5000
BODIES = {
    "NUL": rb'"a\u0000b"',
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "minus infinity": b"-Infinity",
    "number out of range": b"1e400",
    "lone surrogate": rb'"\ud800"',
    "deep nesting": DEEP,
    "deep arrays": b"[" * 100_000 + b"]" * 100_000,
    "broken UTF-8": b'"\xff\xfe"',
    "unfinished": b'"abc',
    "comment": b"1 /* one */",
}


def bodies(example: Example, raw: bytes) -> Iterator[bytes]:
    """The value in each place of a body."""
    fields: dict[str, Any] = {"name": "bad", **example.spec}
    for field in (example.free_form or "", "name", *example.spec, "unknown"):
        marked = orjson.dumps({**fields, field: "@here@"})
        yield marked.replace(b'"@here@"', raw)
        yield marked.replace(b'"@here@"', b'{"key":[' + raw + b"]}")
        if raw.startswith(b'"'):
            yield marked.replace(b'"@here@"', b"{" + raw + b":1}")
    yield raw


@pytest.mark.parametrize("raw", BODIES.values(), ids=BODIES)
async def test_bodies_that_cannot_be_stored(raw: bytes, example: Example, admin: Person) -> None:
    await example.make(admin.http)
    for body in bodies(example, raw):
        for method, at in (("POST", example.collection), ("PUT", example.item("first"))):
            answer = await admin.http.request(method, at, content=body, headers=JSON)
            assert answer.status_code == 422, (method, body[:200], answer.text)
            assert isinstance(answer.json()["detail"], list)
    assert [found["version"] for found in (await admin.http.get(example.collection)).json()] == [1]


async def test_bodies_that_are_no_object(example: Example, admin: Person) -> None:
    for raw in (b"", b"null", b"[]", b"1", b'"x"', b"true", b"not json", b"<a/>", b"\x00"):
        for kind in ("application/json", "text/plain", "application/octet-stream", None):
            headers = {"Content-Type": kind} if kind else {}
            answer = await admin.http.post(example.collection, content=raw, headers=headers)
            assert answer.status_code == 422, (raw, kind, answer.text)
            assert isinstance(answer.json()["detail"], list)


async def test_huge_numbers(example: Example, admin: Person) -> None:
    """A field with rules refuses them; a free one keeps them as a number that JSON can hold."""
    limited = [name for name, value in example.invalid.items() if isinstance(value, (int, float))]
    free = example.free_form if example.free_form not in example.schemas else None
    for index, number in enumerate((2**31, 2**53 + 1, 2**63, 2**64 - 1, 2**64, 10**30, -(10**30), 1.5e300)):
        for name in limited:
            answer = await admin.http.post(example.collection, json=example.body("x", **{name: number}))
            assert answer.status_code == 422, answer.text
        if free:
            made = await example.make(admin.http, f"x{index}", **{free: {"key": {"inner": number}}})
            assert float(made[free]["key"]["inner"]) == float(number)
            assert (await admin.http.get(example.item(f"x{index}"))).json() == made


async def test_malformed_names_in_paths(example: Example, admin: Person) -> None:
    strange = (
        "%00",
        "a%00b",
        "%ff",
        "%F0%9F%98%80",
        "..%2f..",
        "a" * 5000,
        str(uuid4()),
        "%20",
        "null",
        "'\"--",
        "%25",
        "{x}",
    )
    for name in strange:
        for suffix in ("", "/versions", "/versions/1/restore", "/undelete"):
            at = example.item(name) + suffix
            method = "POST" if suffix.endswith(("restore", "undelete")) else "GET"
            answer = await admin.http.request(method, at)
            assert answer.status_code in (404, 422), (at[:200], answer.text)
            assert answer.json()["detail"]
        assert (await admin.http.put(example.item(name), json={})).status_code in (404, 422)
        assert (await admin.http.delete(example.item(name))).status_code in (404, 422)


async def test_the_order_of_properties_is_kept(example: Example, admin: Person) -> None:
    for field in example.schemas:
        made = await example.make(admin.http, f"x-{field.replace('_', '-')}", **{field: SCHEMA})
        at = example.item(made["name"])
        for shown in (made, (await admin.http.get(at)).json(), (await admin.http.get(f"{at}/versions")).json()[0]):
            assert list(shown[field]["properties"]) == ["zulu", "alpha", "mike"]


async def test_a_kind_without_namespaces_is_found_by_id_too(example: Example, admin: Person) -> None:
    if example.kind.namespaced:
        return
    made = await example.make(admin.http)
    at = f"{example.collection}/{made['id']}"
    assert (await admin.http.get(at)).json() == made
    changed = await admin.http.patch(at, json=example.change)
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
    assert (await admin.http.delete(at)).status_code == 204
