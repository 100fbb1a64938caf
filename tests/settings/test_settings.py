"""Settings are read from the environment under the names of the contract, and wrong ones stop the start."""

import os
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import ValidationError

from sinas_server.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory without `.env` and an environment without any of our variables."""
    for name in [name for name in os.environ if name not in ("PATH", "HOME", "TMPDIR")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_start_without_any_variable(tmp_path: Path) -> None:
    settings = load_settings()
    assert (settings.port, settings.function_timeout, settings.max_tool_iterations) == (8000, 300, 25)
    assert settings.sinas_data_dir == tmp_path / ".sinas"
    assert str(settings.sqlalchemy_url) == "postgresql+psycopg://postgres@postgres:5432/sinas"
    assert not settings.database_given
    assert not settings.redis_given


@pytest.mark.parametrize("name", ["MIN_SIZE", "MAX_SIZE", "MIN_IDLE"])
def test_both_spellings_of_the_pool_name_one_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"POOL_{name}", "5")
    assert getattr(load_settings(), f"sandbox_{name.lower()}") == 5
    monkeypatch.setenv(f"SANDBOX_{name}", "6")
    assert getattr(load_settings(), f"sandbox_{name.lower()}") == 6


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://b.example,")
    assert load_settings().cors_origins == ("https://a.example", "https://b.example")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "")
    assert load_settings().port == 8000


def test_the_environment_wins_over_the_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("PORT=9000\nDOMAIN=sinas.example.com\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("PORT", "9001")
    settings = load_settings()
    assert (settings.port, settings.public_url) == (9001, "https://sinas.example.com")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg"])
def test_a_database_url_of_any_driver_becomes_ours(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://ada:p%40ss@db:6543/app")
    settings = load_settings()
    url = settings.sqlalchemy_url
    assert (url.drivername, url.host, url.port, url.database) == ("postgresql+psycopg", "db", 6543, "app")
    assert (url.username, url.password) == ("ada", "p@ss")
    assert settings.database_given
    assert "p@ss" not in f"{url}{settings!r}"


def test_the_parts_of_the_database_build_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "db", "PORT": "6543", "USER": "ada", "PASSWORD": "p@:/ss", "NAME": "app"}.items():
        monkeypatch.setenv(f"DATABASE_{name}", value)
    settings = load_settings()
    rendered = settings.sqlalchemy_url.render_as_string(hide_password=False)
    assert rendered == "postgresql+psycopg://ada:p%40%3A%2Fss@db:6543/app"
    assert settings.database_given


def test_what_a_mode_decides_can_be_overridden() -> None:
    embedded = Settings(sinas_mode="embedded")
    clustered = Settings(sinas_mode="clustered")
    assert (embedded.api_processes, embedded.function_worker_processes, embedded.agent_worker_processes) == (1, 1, 1)
    assert (clustered.api_processes, clustered.function_worker_processes, clustered.agent_worker_processes) == (4, 2, 2)
    assert (embedded.bind_host, clustered.bind_host) == ("127.0.0.1", "0.0.0.0")
    chosen = Settings(uvicorn_workers=3, queue_worker_replicas=5, queue_agent_replicas=6, sinas_host="::1")
    assert (chosen.api_processes, chosen.function_worker_processes, chosen.agent_worker_processes) == (3, 5, 6)
    assert chosen.bind_host == "::1"


def test_keys_are_asked_for_when_used() -> None:
    first, second = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    assert Settings(encryption_key=f"{first}, {second}").encryption_keys == (first, second)
    assert Settings(secret_key="s" * 32).signing_key == "s" * 32
    with pytest.raises(SettingsError, match="SECRET_KEY: missing"):
        _ = Settings().signing_key
    with pytest.raises(SettingsError, match="ENCRYPTION_KEY: missing"):
        _ = Settings().encryption_keys


def test_ollama_is_given_as_ollama_itself_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "gpu:11434")
    assert load_settings().ollama_host == "http://gpu:11434"


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("PORT", "http", "valid integer"),
        ("PORT", "70000", "less than or equal to 65535"),
        ("SECRET_KEY", "short", "at least 32"),
        ("ENCRYPTION_KEY", "not-a-key", "32 bytes"),
        ("DATABASE_URL", "mysql://db/app", "PostgreSQL is the only database"),
        ("DATABASE_URL", "db", "not a URL"),
        ("REDIS_URL", "http://redis", "must start with redis://"),
        ("SUPERADMIN_EMAIL", "admin@localhost", "not a valid email address"),
        ("FUNCTION_EGRESS", "all", "'public', 'list' or 'none'"),
        ("POOL_MIN_SIZE", "0", "greater than or equal to 1"),
        ("SANDBOX_MIN_SIZE", "21", "must not be greater than SANDBOX_MAX_SIZE"),
        ("SANDBOX_MIN_IDLE", "21", "must not be greater than SANDBOX_MAX_SIZE"),
        ("USAGE_RETENTION_DAYS", "31", "must be 0, or cover a month"),
        ("AUTO_APPLY_CONFIG", "true", "needs CONFIG_FILE"),
        ("CALLBACK_ALLOWED_HOSTS", "a.example, b.example:http", "'b.example:http' names no port"),
        ("CALLBACK_ALLOWED_HOSTS", "https://a.example", "'https://a.example' names no port"),
        ("CALLBACK_ALLOWED_HOSTS", "10.0.0.0/33", "'10.0.0.0/33' is no host name, address or network"),
        ("SINAS_ALLOWED_HOSTS", "a b", "'a b' is no host name"),
    ],
)
def test_a_wrong_value_stops_the_start_by_name(
    variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    [line] = str(raised.value).splitlines()
    assert variable in line
    assert reason in line


def test_every_wrong_value_is_named_at_once_and_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "http")
    monkeypatch.setenv("ENCRYPTION_KEY", "hunter2")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["PORT", "ENCRYPTION_KEY"]
    assert "hunter2" not in str(raised.value)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]  # what must not work
