"""The settings of login: wrong ones are explained, and the claim that gives roles is found."""

import re

import pytest

from sinas_server.identity.oidc import claimed
from sinas_server.settings import SettingsError, load_settings


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"OIDC_ISSUER": "https://id.example.com"}, "OIDC_ISSUER needs OIDC_CLIENT_ID"),
        ({"OIDC_ISSUER": "id.example.com", "OIDC_CLIENT_ID": "x"}, "OIDC_ISSUER: must be an http or https URL"),
        ({"OIDC_ISSUER": "https://id.example.com/?x", "OIDC_CLIENT_ID": "x"}, "OIDC_ISSUER: must be"),
        ({"OIDC_SCOPES": "email"}, "OIDC_SCOPES must hold openid"),
        ({"OIDC_ROLE_MAP": "staff=Users"}, "OIDC_ROLE_MAP: not JSON"),
        ({"OIDC_ROLE_MAP": "[]"}, "OIDC_ROLE_MAP: "),
        ({"OIDC_ROLE_MAP": '{"staff": "Users"}'}, "OIDC_ROLE_MAP needs OIDC_ROLE_CLAIM"),
        ({"AUTH_MODE": "none"}, "AUTH_MODE: "),
        ({"PASSWORD_MIN_LENGTH": "4"}, "PASSWORD_MIN_LENGTH: "),
    ],
)
def test_settings_that_do_not_fit_are_explained(
    variables: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{re.escape(reason)}"):
        load_settings()


def test_a_role_map_is_read_from_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OIDC_ROLE_CLAIM", "groups")
    monkeypatch.setenv("OIDC_ROLE_MAP", '{"cn=staff,ou=groups": "Users"}')
    monkeypatch.setenv("OIDC_ISSUER", "https://id.example.com/realm/")
    monkeypatch.setenv("OIDC_CLIENT_ID", "sinas")
    loaded = load_settings()
    assert loaded.oidc_role_map == {"cn=staff,ou=groups": "Users"}
    assert loaded.oidc_issuer == "https://id.example.com/realm/", "compared exactly, so kept exactly"


def test_the_claim_may_lie_deeper() -> None:
    assert claimed({"realm": {"roles": ["staff", 7]}}, "realm.roles") == ["staff"]
    assert claimed({"realm.roles": "staff"}, "realm.roles") == ["staff"]
    assert claimed({"realm": "staff"}, "realm.roles") == []
    assert claimed({}, "realm.roles") == []
