"""Every setting of the server: its environment variable, type, default, unit and effect.

`docs/reference/settings.md` is generated from these classes, and `scripts/lint` fails on a field that no code reads.
A field is named as its variable, in lower case; it stands in the file of what it is about.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AliasChoices, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsConfigDict

from sinas_server.settings.agents import AgentSettings
from sinas_server.settings.functions import FunctionSettings
from sinas_server.settings.people import PeopleSettings
from sinas_server.settings.servers import ServerSettings
from sinas_server.settings.work import WorkSettings

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

SQLALCHEMY_DRIVER = "postgresql+psycopg"


class SettingsError(Exception):
    """The environment holds values the server cannot start with; the message has one line for each variable."""


class Settings(WorkSettings, AgentSettings, FunctionSettings, PeopleSettings, ServerSettings):
    """All settings. Read once at start with `load_settings()` and passed on; never changed afterwards."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        if self.sandbox_min_size > self.sandbox_max_size:
            raise ValueError("SANDBOX_MIN_SIZE must not be greater than SANDBOX_MAX_SIZE")
        if self.sandbox_min_idle > self.sandbox_max_size:
            raise ValueError("SANDBOX_MIN_IDLE must not be greater than SANDBOX_MAX_SIZE")
        if self.auto_apply_config and self.config_file is None:
            raise ValueError("AUTO_APPLY_CONFIG needs CONFIG_FILE")
        if self.callback_allowed_hosts and self.callback_secret is None:
            raise ValueError("CALLBACK_ALLOWED_HOSTS needs CALLBACK_SECRET")
        if 0 < self.usage_retention_days <= 31:
            raise ValueError("USAGE_RETENTION_DAYS must be 0, or cover a month, which budgets count: at least 32")
        if self.oidc_issuer and not self.oidc_client_id:
            raise ValueError("OIDC_ISSUER needs OIDC_CLIENT_ID")
        if "openid" not in self.oidc_scopes.split():
            raise ValueError("OIDC_SCOPES must hold openid")
        if self.oidc_role_map and not self.oidc_role_claim:
            raise ValueError("OIDC_ROLE_MAP needs OIDC_ROLE_CLAIM")
        return self

    @property
    def embedded(self) -> bool:
        """Whether this process belongs to a `sinas up`."""
        return self.sinas_mode == "embedded"

    @property
    def has_mail(self) -> bool:
        """Whether mail gets anywhere: to a mail server, or to the data directory of whoever tries this out."""
        return self.smtp_host is not None or self.embedded

    @property
    def database_given(self) -> bool:
        """Whether the environment names a PostgreSQL server, so that none has to be started."""
        return self.database_url is not None or "database_host" in self.model_fields_set

    @property
    def redis_given(self) -> bool:
        """Whether the environment names a Redis server, so that none has to be started."""
        return "redis_url" in self.model_fields_set

    @property
    def sqlalchemy_url(self) -> "URL":
        """The database for SQLAlchemy with psycopg; its `str()` hides the password."""
        from sqlalchemy.engine import URL, make_url  # lazy: commands that only talk to a server need no SQLAlchemy

        if self.database_url is not None:
            given = self.database_url.get_secret_value()
            return make_url(given).set(drivername=SQLALCHEMY_DRIVER)
        password = self.database_password
        return URL.create(
            SQLALCHEMY_DRIVER,
            username=self.database_user,
            password=password.get_secret_value() if password else None,
            host=self.database_host,
            port=self.database_port,
            database=self.database_name,
        )

    @property
    def blobs_directory(self) -> Path:
        """Where blobs are kept."""
        return self.blobs_dir or self.sinas_data_dir / "blobs"

    @property
    def bind_host(self) -> str:
        """The address to listen on."""
        return self.sinas_host or ("127.0.0.1" if self.embedded else "0.0.0.0")  # noqa: S104 - a container's only door

    @property
    def public_url(self) -> str:
        """Where users reach this platform, without a trailing slash."""
        return f"https://{self.domain}" if self.domain else f"http://localhost:{self.port}"

    @property
    def api_processes(self) -> int:
        """How many API processes to run."""
        return self.uvicorn_workers or (1 if self.embedded else 4)

    @property
    def function_worker_processes(self) -> int:
        """How many function worker processes to run."""
        return self.queue_worker_replicas or (1 if self.embedded else 2)

    @property
    def agent_worker_processes(self) -> int:
        """How many agent worker processes to run."""
        return self.queue_agent_replicas or (1 if self.embedded else 2)

    @property
    def signing_key(self) -> str:
        """The key that signs tokens. Raises `SettingsError` if there is none."""
        if self.secret_key is None:
            raise SettingsError("SECRET_KEY: missing; set it to at least 32 random characters")
        return self.secret_key.get_secret_value()

    @property
    def encryption_keys(self) -> tuple[str, ...]:
        """The Fernet keys, the one to encrypt with first. Raises `SettingsError` if there is none."""
        if self.encryption_key is None:
            raise SettingsError("ENCRYPTION_KEY: missing; set it to what Fernet.generate_key() gives")
        return tuple(key.strip() for key in self.encryption_key.get_secret_value().split(","))


def variables(field: str) -> tuple[str, ...]:
    """The environment variables that set a field, the preferred one first."""
    alias = Settings.model_fields[field].validation_alias
    return tuple(str(choice) for choice in alias.choices) if isinstance(alias, AliasChoices) else (field.upper(),)


def load_settings() -> Settings:
    """Read the environment and `.env` of the working directory. Raises `SettingsError` naming each wrong variable."""
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(item) for item in error.errors(include_url=False))) from None


def _explain(error: ErrorDetails) -> str:
    reason = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return reason  # concerns several variables and names them
    name = str(error["loc"][0])
    spellings = next((names for names in map(variables, Settings.model_fields) if name.upper() in names), (name,))
    return f"{' / '.join(spellings)}: {reason}"
