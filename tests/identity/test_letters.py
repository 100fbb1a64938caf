"""The mails of a login and of a forgotten password: in the words of their templates, and never not at all."""

from pathlib import Path

import httpx2
import pytest
from structlog.testing import capture_logs

from sinas_server.identity.mail import LOGIN_LETTER, RESET_LETTER
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.runtime import Runtime
from sinas_server.templates.bootstrap import bootstrap
from tests.identity.codes import Codes, ask, verify
from tests.mailbox import delivered, part_of
from tests.people import Person

LOGIN = f"/api/v1/templates/default/{LOGIN_LETTER}"
RESET = f"/api/v1/templates/default/{RESET_LETTER}"


@pytest.fixture(autouse=True)
async def templates(runtime: Runtime) -> None:
    await bootstrap(runtime, SYSTEM)


async def test_the_login_mail_is_the_template(client: httpx2.AsyncClient, runtime: Runtime, admin: Person) -> None:
    fields = {
        "title": "Come in, {{ email }}",
        "html_content": "<style>b {color: red}</style><b>{{ otp_code }}</b> for {{ expires_in_minutes }} minutes",
        "text_content": "Your key: {{ otp_code }}",
    }
    assert (await admin.http.patch(LOGIN, json=fields)).status_code == 200
    session_id = await ask(client, "ann@example.com")
    with capture_logs() as logs:
        async with delivered(runtime) as mailbox:
            mail = await mailbox.take("ann@example.com")
    assert mail["Subject"] == "Come in, ann@example.com"
    code = (part_of(mail, "plain") or "").strip().removeprefix("Your key: ")
    assert f'<b style="color: red;">{code}</b> for 10 minutes' in (part_of(mail, "html") or "")
    assert [entry for entry in logs if entry["log_level"] == "warning"] == []
    assert (await verify(client, session_id, code)).status_code == 200


BROKEN = {
    "missing variable": {"html_content": "{{ otp_code }} {{ nickname }}"},
    "schema": {"variable_schema": {"required": ["nickname"]}},
    "schema of the code": {"variable_schema": {"properties": {"otp_code": {"type": "integer"}}}},
    "styles": {"html_content": "<p style='{{ \"{\" * 3 }}'>{{ otp_code }}</p><style>p {color: red}</style>"},
    "never ends": {"html_content": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"},
    "without the code in HTML": {"html_content": "<p>Welcome</p>"},
    "without the code in the text": {"text_content": "Welcome"},
    "inactive": {"is_active": False},
    "deleted": None,
}


@pytest.mark.parametrize("fields", BROKEN.values(), ids=BROKEN)
async def test_nobody_is_locked_out_by_a_template(
    fields: dict[str, object] | None, client: httpx2.AsyncClient, runtime: Runtime, code_for: Codes, admin: Person
) -> None:
    if fields is None:
        assert (await admin.http.delete(LOGIN)).status_code == 204
    else:
        assert (await admin.http.patch(LOGIN, json=fields)).status_code == 200
    with capture_logs() as logs:
        session_id = await ask(client, "ann@example.com")
        code = await code_for("ann@example.com")
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert warning["template"] == LOGIN_LETTER
    assert warning["reason"]
    assert code not in str(warning)
    assert (await verify(client, session_id, code)).status_code == 200


class TestPasswords:
    @pytest.fixture
    def overrides(self) -> dict[str, object]:
        return {"auth_mode": "password"}

    async def test_the_mail_for_a_forgotten_password_is_a_template_too(
        self, client: httpx2.AsyncClient, runtime: Runtime, admin: Person, user: Person
    ) -> None:
        assert (await admin.http.patch(RESET, json={"title": "Forgot it?"})).status_code == 200
        assert (await client.post("/auth/password/forgot", json={"email": user.email})).status_code == 200
        async with delivered(runtime) as mailbox:
            mail = await mailbox.take(user.email)
        assert mail["Subject"] == "Forgot it?"
        assert "Your code to set your password is" in (part_of(mail, "plain") or "")


async def test_they_are_given_once_and_may_be_changed(runtime: Runtime, admin: Person) -> None:
    assert (await admin.http.patch(LOGIN, json={"title": "Mine"})).status_code == 200
    assert (await admin.http.delete(RESET)).status_code == 204
    await bootstrap(runtime, SYSTEM)
    assert (await admin.http.get(LOGIN)).json()["title"] == "Mine"
    assert (await admin.http.get(RESET)).status_code == 404


async def test_only_who_may_changes_them(user: Person, guest: Person) -> None:
    for person in (user, guest):
        assert (await person.http.get(LOGIN)).status_code == 403
        assert (await person.http.patch(LOGIN, json={"title": "Mine"})).status_code == 403
        assert (await person.http.delete(LOGIN)).status_code == 403


async def test_an_unknown_address_gets_nothing_where_signing_up_is_closed(
    client: httpx2.AsyncClient, runtime: Runtime, outbox: Path, user: Person
) -> None:
    closed = runtime.settings.model_copy(update={"signup": "closed"})
    object.__setattr__(runtime, "settings", closed)
    await ask(client, "stranger@example.com")
    await ask(client, user.email)
    async with delivered(runtime) as mailbox:
        await mailbox.take(user.email)
    assert list(outbox.glob("*.eml")) == []
