"""Templates as their users meet them: rendered by name and by id, strict, escaped, and sent as mail."""

from typing import Any, cast
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI

from sinas_server.kernel.runtime import Runtime
from sinas_server.settings import Settings
from tests.config.documents import apply, document
from tests.mailbox import Mailbox, part_of
from tests.people import Person, http_client, make_key

Json = dict[str, Any]
GREETING: Json = {
    "namespace": "support",
    "name": "greeting",
    "title": "For {{ name }} & Co",
    "html_content": "<p>Dear {{ name }}{% if urgent is defined %}!{% endif %}</p>",
    "text_content": "Dear {{ name }} <3",
}
AT = "/templates/support/greeting"


async def make(person: Person, **fields: object) -> Json:
    answer = await person.http.post("/api/v1/templates", json=GREETING | fields)
    assert answer.status_code == 201, answer.text
    return cast(Json, answer.json())


async def test_it_is_rendered_by_name_and_by_id(user: Person) -> None:
    made = await make(user)
    expected = {
        "title": "For <Ann> & Co",
        "html_content": "<p>Dear &lt;Ann&gt;</p>",
        "text_content": "Dear <Ann> <3",
    }
    for path in (f"{AT}/render", f"/templates/{made['id']}/render", f"/api/v1/templates/{made['id']}/render"):
        answer = await user.http.post(path, json={"variables": {"name": "<Ann>"}})
        assert (answer.status_code, answer.json()) == (200, expected), path


async def test_parts_that_it_does_not_have_are_null(user: Person) -> None:
    await make(user, title=None, text_content=None, html_content="<p>Hello</p>")
    answer = await user.http.post(f"{AT}/render", json={})
    assert answer.json() == {"title": None, "html_content": "<p>Hello</p>", "text_content": None}


async def test_it_is_managed_by_id_as_consoles_do(user: Person, admin: Person) -> None:
    made = await make(user)
    assert (made["created_by"], made["updated_by"]) == (str(user.id), str(user.id))
    at = f"/api/v1/templates/{made['id']}"
    assert (await user.http.get(at)).json() == made
    assert (await user.http.get("/api/v1/templates/by-name/support/greeting")).json() == made
    assert (await user.http.get("/api/v1/templates/support/greeting")).json() == made
    changed = await admin.http.patch(at, json={"title": "Other", "name": "renamed"})
    assert (changed.status_code, changed.json()["title"], changed.json()["name"]) == (200, "Other", "renamed")
    assert (changed.json()["created_by"], changed.json()["updated_by"]) == (str(user.id), str(admin.id))
    assert (await user.http.patch(at, json={}, headers={"If-Match": '"1"'})).status_code == 412
    assert (await user.http.delete(at)).status_code == 204
    assert (await user.http.get(at)).status_code == 404
    for method in ("GET", "PATCH", "DELETE"):
        missing = await user.http.request(method, f"/api/v1/templates/{uuid4()}", json={})
        assert missing.status_code == 404, missing.text
        assert (await user.http.request(method, "/api/v1/templates/no-id", json={})).status_code == 422


@pytest.mark.parametrize("name", ["Greeting", "1st", "a b", "a.b", "ä", ""])
async def test_names_are_lower_case(name: str, user: Person) -> None:
    for field in ("namespace", "name"):
        answer = await user.http.post("/api/v1/templates", json=GREETING | {field: name})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", field]


@pytest.mark.parametrize("part", ["title", "html_content", "text_content"])
async def test_a_missing_variable_is_named(part: str, user: Person) -> None:
    await make(user, **{part: "Order {{ order_number }} for {{ name }}"})
    answer = await user.http.post(f"{AT}/render", json={"variables": {"name": "Ann"}})
    assert answer.status_code == 400
    assert part in answer.json()["detail"]
    assert "'order_number' is undefined" in answer.json()["detail"]


async def test_variables_must_meet_the_schema(user: Person) -> None:
    items = {"type": "array", "items": {"type": "object", "properties": {"price": {"type": "number"}}}}
    schema = {"type": "object", "properties": {"items": items}, "required": ["name"]}
    await make(user, variable_schema=schema)
    wrong = await user.http.post(f"{AT}/render", json={"variables": {"name": "Ann", "items": [{"price": "free"}]}})
    assert wrong.status_code == 422
    assert wrong.json()["detail"][0]["loc"] == ["body", "variables", "items", 0, "price"]
    missing = await user.http.post(f"{AT}/email", json={"to": "ann@example.com", "variables": {}})
    assert missing.status_code == 403, "sending is not among the default rights"
    answer = await user.http.post(f"{AT}/render", json={"variables": {"name": "Ann", "items": [{"price": 1}]}})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ name.__class__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ 'x'|attr('format') }}{{ ('{0.__class__}'|attr('format'))(name) }}",
        "{{ '{0.__class__.__mro__}'.format(name) }}",
        "{% set _ = items.append(1) %}",
        "{{ 1 / 0 }}",
        "{{ name.missing }}",
        "{{ [][5] }}",
        "{{ name() }}",
        r"{{ '\ud800' }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% include 'other' %}",
        "{% extends 'other' %}",
    ],
)
async def test_what_a_template_may_not_do_is_a_400(source: str, user: Person) -> None:
    made = await user.http.post("/api/v1/templates", json=GREETING | {"html_content": source})
    assert made.status_code == 201, made.text
    answer = await user.http.post(f"{AT}/render", json={"variables": {"name": "Ann", "items": []}})
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"].startswith("html_content cannot be rendered: ")


async def test_the_list_shows_what_may_be_rendered(user: Person, admin: Person, runtime: Runtime, app: FastAPI) -> None:
    await make(user)
    await make(admin, name="theirs")
    for path in ("/templates", "/discovery/templates"):
        assert [found["name"] for found in (await user.http.get(path)).json()] == ["greeting"]
        assert [found["name"] for found in (await admin.http.get(path)).json()] == ["greeting", "theirs"]
    key = await make_key(runtime, admin.id, "sinas.templates/support/theirs.render:all")
    async with http_client(app, {"X-API-Key": key}) as one:
        assert [found["name"] for found in (await one.get("/templates")).json()] == ["theirs"]
        filled = {"variables": {"name": "Ann"}}
        assert (await one.post("/templates/support/theirs/render", json=filled)).status_code == 200
        assert (await one.post(f"{AT}/render", json=filled)).status_code == 403
        sending = {"to": "ann@example.com", **filled}
        assert (await one.post("/templates/support/theirs/email", json=sending)).status_code == 403
    assert (await admin.http.patch("/api/v1/templates/support/theirs", json={"is_active": False})).status_code == 200
    assert (await admin.http.post("/templates/support/theirs/render", json=filled)).status_code == 404


STYLED = """<html><head><style>p { color: red } @media (max-width: 9px) { p { color: blue } }</style>
<link rel="stylesheet" href="http://127.0.0.1:9/steal.css"><link rel="stylesheet" href="file:///etc/passwd"></head>
<body><p>Dear {{ name }}</p></body></html>"""


@pytest.mark.parametrize("door", ["by name: email", "by name: send", "by id: send"])
async def test_it_is_sent_as_mail(door: str, admin: Person, mailbox: Mailbox) -> None:
    made = await make(admin, html_content=STYLED, title="For {{ name }},\n  with love")
    path = f"/templates/{made['id']}/send" if door == "by id: send" else f"{AT}/{door.rpartition(' ')[2]}"
    body = {"to": "ann@example.com", "variables": {"name": "Ann"}, "from_alias": "shop.team", "from_name": "The Shöp"}
    answer = await admin.http.post(path, json=body)
    assert (answer.status_code, set(answer.json())) == (200, {"message", "to"}), answer.text
    assert answer.json()["to"] == "ann@example.com"
    mail = await mailbox.take("ann@example.com")
    assert (mail["Subject"], mail["From"]) == ("For Ann, with love", "The Shöp <shop.team@sinas.localhost>")
    assert part_of(mail, "plain") == "Dear Ann <3\n"
    html = part_of(mail, "html") or ""
    assert 'style="color: red' in html
    assert "@media" in html
    assert "link" not in html


async def test_a_template_without_text_or_title_can_be_sent(admin: Person, mailbox: Mailbox) -> None:
    await make(admin, title=None, text_content=None)
    body = {"to": "ann@example.com", "variables": {"name": "Ann"}}
    assert (await admin.http.post(f"{AT}/email", json=body)).status_code == 200
    mail = await mailbox.take("ann@example.com")
    assert mail["Subject"] == "greeting"
    assert part_of(mail, "plain") is None
    assert "Dear Ann" in (part_of(mail, "html") or "")


async def test_a_title_is_made_a_subject(admin: Person, mailbox: Mailbox) -> None:
    await make(admin, title="{{ name }}")
    body = {"to": "ann@example.com", "variables": {"name": "a\u2028b\u0007" + "é" * 5000}}
    assert (await admin.http.post(f"{AT}/email", json=body)).status_code == 200
    assert (await mailbox.take("ann@example.com"))["Subject"] == "a b" + "é" * 252


async def test_styles_that_cannot_be_read_are_a_400(admin: Person) -> None:
    await make(admin, html_content="<p style='{{ name }}'>x</p><style>p {color: red}</style>")
    body = {"to": "ann@example.com", "variables": {"name": "{{{"}}
    assert (await admin.http.post(f"{AT}/render", json=body)).status_code == 200
    answer = await admin.http.post(f"{AT}/email", json=body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("html_content cannot be rendered: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("to", "nobody"),
        ("to", "a@example.com\r\nBcc: b@example.com"),
        ("to", ["a@example.com", "b@example.com"]),
        ("from_alias", "a@b"),
        ("from_alias", "a\r\nBcc: b"),
        ("from_alias", "a..b"),
        ("from_name", "Ann\r\nBcc: b@example.com"),
        ("from_name", "a\u2028b"),
        ("variables", []),
    ],
)
async def test_headers_cannot_be_slipped_in(field: str, value: object, admin: Person) -> None:
    await make(admin)
    body = {"to": "ann@example.com", "variables": {"name": "Ann"}, field: value}
    answer = await admin.http.post(f"{AT}/email", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", field]


async def test_without_a_mail_server_sending_is_a_503(
    settings: Settings, runtime: Runtime, app: FastAPI, admin: Person
) -> None:
    await make(admin)
    clustered = settings.model_copy(update={"sinas_mode": "clustered"})
    object.__setattr__(runtime, "settings", clustered)
    body = {"to": "ann@example.com", "variables": {"name": "Ann"}}
    answer = await admin.http.post(f"{AT}/email", json=body)
    assert answer.status_code == 503
    assert "SMTP_HOST" in answer.json()["detail"]


async def test_nothing_of_the_request_takes_the_place_of_the_template(user: Person, client: httpx2.AsyncClient) -> None:
    await make(user)
    body = {"variables": {"name": "{{ 7 * 7 }}"}, "html_content": "other", "template": "other", "title": "other"}
    answer = (await user.http.post(f"{AT}/render", json=body)).json()
    assert answer["html_content"] == "<p>Dear {{ 7 * 7 }}</p>"
    assert (await client.post(f"{AT}/render", json=body)).status_code == 401


YAML = """
  templates:
    - name: welcome
      namespace: support
      description: For new people.
      title: Welcome, {{ customer }}
      htmlContent: <p>Hello {{ customer }}</p>
      textContent: Hello {{ customer }}
      variableSchema: {type: object, required: [customer]}
"""


async def test_it_can_be_declared_in_yaml(admin: Person) -> None:
    assert (await apply(admin.http, document(YAML)))["summary"]["created"] == {"template": 1}
    exported = (await admin.http.get("/api/v1/config/export")).text
    for part in ("htmlContent", "textContent", "variableSchema"):
        assert part in exported
    assert (await apply(admin.http, document(YAML)))["summary"]["unchanged"] == {"template": 1}
    answer = await admin.http.post("/templates/support/welcome/render", json={"variables": {"customer": "Ann"}})
    assert answer.json()["title"] == "Welcome, Ann"
