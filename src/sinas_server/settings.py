"""Every setting of the server: its environment variable, type, default, unit and effect.

`docs/reference/settings.md` is generated from this class, and `scripts/lint` fails on a field that no code reads.
A field is named as its variable, in lower case.
"""

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    EmailStr,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sinas_server.kit.texts import http_url, issuer_url, json_object, split_commas

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

SQLALCHEMY_DRIVER = "postgresql+psycopg"


class SettingsError(Exception):
    """The environment holds values the server cannot start with; the message has one line for each variable."""


def _fernet_keys(value: SecretStr) -> SecretStr:
    for key in value.get_secret_value().split(","):
        try:
            raw = base64.urlsafe_b64decode(key.strip())
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != 32:
            raise ValueError("each key must be 32 bytes in URL-safe base64, as Fernet.generate_key() gives")
    return value


def _postgres_url(value: SecretStr) -> SecretStr:
    from sqlalchemy.engine import make_url  # lazy: commands that only talk to a server need no SQLAlchemy
    from sqlalchemy.exc import ArgumentError  # lazy: the same

    try:
        url = make_url(value.get_secret_value())
    except ArgumentError:
        raise ValueError("not a URL; expected postgresql://user:password@host:port/name") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError("must start with postgresql://; PostgreSQL is the only database Sinas runs on")
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    if urlsplit(value.get_secret_value()).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must start with redis://, rediss:// or unix://")
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]


class Settings(BaseSettings):
    """All settings. Read once at start with `load_settings()` and passed on; never changed afterwards."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    # Where it runs
    sinas_mode: Literal["embedded", "clustered"] = Field(
        "clustered",
        description="`embedded`: one machine, one data directory, which `sinas up` sets itself. `clustered`: each role "
        "is started on its own against the servers given by `DATABASE_URL` and `REDIS_URL`.",
    )
    sinas_data_dir: Annotated[Path, AfterValidator(Path.absolute)] = Field(
        Path(".sinas"),
        validate_default=True,
        description="Directory of everything an embedded Sinas keeps: databases, generated keys, mail that was not "
        "sent. Relative to the working directory.",
    )
    sinas_host: str | None = Field(
        None,
        description="Address the API listens on. Default: `127.0.0.1` embedded, `0.0.0.0` clustered.",
    )
    port: int = Field(8000, ge=1, le=65535, description="TCP port the API listens on.")
    domain: str | None = Field(
        None,
        min_length=1,
        description="Public host name, served over HTTPS by a proxy in front; used in links. "
        "Unset: links use `http://localhost:PORT`.",
    )
    debug: bool = Field(False, description="Log at debug level.")
    cors_origins: Names = Field(
        (),
        description="Comma-separated origins that browsers may call from, with credentials. "
        "Empty: any origin, without credentials.",
    )

    # Secrets of the platform
    secret_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="Key that signs tokens, at least 32 characters. Generated into the data directory when embedded; "
        "required when clustered.",
    )
    encryption_key: Annotated[SecretStr, AfterValidator(_fernet_keys)] | None = Field(
        None,
        description="Fernet key that encrypts stored credentials. A comma-separated list rotates: the first encrypts, "
        "all decrypt. Generated into the data directory when embedded; required when clustered.",
    )

    # Servers
    database_url: Annotated[SecretStr, AfterValidator(_postgres_url)] | None = Field(
        None,
        description="PostgreSQL as `postgresql://user:password@host:port/name`; overrides the five variables below.",
    )
    database_user: str = Field("postgres", description="PostgreSQL user.")
    database_password: SecretStr | None = Field(None, description="PostgreSQL password.")
    database_host: str = Field("postgres", description="PostgreSQL host, or the directory of its unix socket.")
    database_port: int = Field(5432, ge=1, le=65535, description="PostgreSQL port.")
    database_name: str = Field("sinas", description="PostgreSQL database.")
    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] = Field(
        SecretStr("redis://redis:6379/0"), description="Redis or Valkey: `redis://`, `rediss://` or `unix://`."
    )

    # Mail
    smtp_host: str | None = Field(
        None,
        description="Mail server. Unset: mail is written to `outbox/*.eml` in the data directory and to the log.",
    )
    smtp_port: int = Field(587, ge=1, le=65535, description="Mail server port; 465 speaks TLS from the first byte.")
    smtp_user: str | None = Field(None, description="User name at the mail server.")
    smtp_password: SecretStr | None = Field(None, description="Password or API key at the mail server.")
    smtp_domain: str | None = Field(None, description="Domain of the sender's address. Default: `DOMAIN`.")

    # People and tokens
    superadmin_email: EmailStr = Field(
        "admin@example.com", description="Administrator, created on first start if no such user exists."
    )
    signup: Literal["open", "closed"] = Field(
        "open",
        description="What a login from an unknown address does. `open`: the user is created when the code is "
        "verified. `closed`: no mail is sent and no user is created; the answer looks the same.",
    )
    auth_mode: Literal["otp", "password", "password+otp"] = Field(
        "otp",
        description="How people log in: with a code from a mail, with a password, or with a password and then a code.",
    )
    password_min_length: int = Field(12, ge=8, le=128, description="Shortest password that may be set, in characters.")
    oidc_issuer: Annotated[str, AfterValidator(issuer_url)] | None = Field(
        None,
        description="OpenID Connect provider whose users may log in too, by its issuer URL; the rest is discovered. "
        "Its redirect URI is `/auth/oidc/callback` of this platform.",
    )
    oidc_client_id: str | None = Field(None, description="This platform's client id at the provider.")
    oidc_client_secret: SecretStr | None = Field(
        None, description="This platform's secret at the provider. Unset: a public client."
    )
    oidc_scopes: str = Field("openid email profile", description="Scopes asked of the provider, by spaces.")
    oidc_redirect_uris: Names = Field(
        (),
        description="Comma-separated addresses of consoles and apps that a login at the provider may return to, "
        "compared exactly. Empty: only the root of this platform.",
    )
    oidc_role_claim: str | None = Field(
        None,
        description="Claim that holds the user's groups at the provider; a dotted path, like `realm_access.roles`, "
        "leads into objects.",
    )
    oidc_role_map: Annotated[dict[str, str], NoDecode, BeforeValidator(json_object)] = Field(
        {},
        description='Which role each value of the claim gives, as JSON: `{"staff": "Users"}`. At each login at the '
        "provider, the memberships of the roles named here become what the claim says.",
    )
    access_token_expire_minutes: int = Field(15, ge=1, description="Life of an access token, in minutes.")
    refresh_token_expire_days: int = Field(30, ge=1, description="Life of a refresh token, in days.")
    otp_expire_minutes: int = Field(10, ge=1, description="Life of a login code, in minutes.")
    otp_max_attempts: int = Field(2, ge=1, description="Wrong guesses after which a login code is void.")
    rate_limit_login_ip_max: int = Field(10, ge=1, description="Login requests per address of origin and window.")
    rate_limit_login_email_max: int = Field(5, ge=1, description="Login requests per e-mail address and window.")
    rate_limit_otp_ip_max: int = Field(10, ge=1, description="Code verifications per address of origin and window.")
    rate_limit_window_seconds: int = Field(900, ge=1, description="Window of the three limits above, in seconds.")

    # Declared resources
    deleted_retention_days: int = Field(
        30, ge=0, description="Days during which a deleted resource can be restored; 0 deletes at once."
    )
    config_file: Path | None = Field(None, description="YAML configuration of this deployment.")
    auto_apply_config: bool = Field(False, description="Apply `CONFIG_FILE` at every start.")

    # Functions
    function_timeout: float = Field(
        300, gt=0, description="Wall-clock limit of an execution, in seconds; a function may set its own."
    )
    max_function_memory: int = Field(512, ge=32, description="Memory limit of an execution, in MB.")
    max_function_cpu: float = Field(1.0, gt=0, description="CPU limit of an execution, in cores.")
    function_egress: Literal["public", "list", "none"] = Field(
        "public",
        description="What functions may reach: `public` addresses and `SINAS_ALLOWED_HOSTS`, only those on that "
        "`list`, or `none`. This platform's own API is reachable in each case.",
    )
    sinas_allowed_hosts: Names = Field(
        (),
        description="Comma-separated host names, addresses or networks (`10.1.0.0/16`) that functions and fetches "
        "steered by users may reach although they are not public. Cloud metadata addresses are never reachable.",
    )
    sandbox_min_size: int = Field(
        4,
        ge=1,
        validation_alias=AliasChoices("SANDBOX_MIN_SIZE", "POOL_MIN_SIZE"),
        description="Sandboxes made ready when a worker starts.",
    )
    sandbox_max_size: int = Field(
        20,
        ge=1,
        validation_alias=AliasChoices("SANDBOX_MAX_SIZE", "POOL_MAX_SIZE"),
        description="Most sandboxes of a worker, idle and running together.",
    )
    sandbox_min_idle: int = Field(
        2,
        ge=0,
        validation_alias=AliasChoices("SANDBOX_MIN_IDLE", "POOL_MIN_IDLE"),
        description="The pool is refilled when fewer idle sandboxes than this are left.",
    )
    pool_acquire_timeout: float = Field(30, gt=0, description="Longest wait for a free sandbox, in seconds.")

    # Agents
    max_tool_iterations: int = Field(25, ge=1, description="Rounds of tool calls in one turn.")
    max_history_messages: int = Field(100, ge=1, description="Messages of a chat given to the model.")
    agent_job_timeout: float = Field(
        600, gt=0, description="Longest work on one turn, in seconds, not counting the time it waits for others."
    )
    openai_api_key: SecretStr | None = Field(
        None, description="OpenAI key; embedded, it makes OpenAI a provider if none is configured."
    )
    anthropic_api_key: SecretStr | None = Field(
        None, description="Anthropic key; embedded, it makes Anthropic a provider if none is configured."
    )
    mistral_api_key: SecretStr | None = Field(
        None, description="Mistral key; embedded, it makes Mistral a provider if none is configured."
    )
    ollama_host: Annotated[str, AfterValidator(http_url)] | None = Field(
        None,
        description="Address of Ollama. Unset: embedded, `http://127.0.0.1:11434` is used if it answers.",
    )

    # Processes and queues
    uvicorn_workers: int | None = Field(
        None, ge=1, description="API processes. Default: 1 embedded, 4 clustered (for each `sinas api`)."
    )
    queue_worker_replicas: int | None = Field(
        None, ge=1, description="Function worker processes. Default: 1 embedded, 2 clustered."
    )
    queue_agent_replicas: int | None = Field(
        None, ge=1, description="Agent worker processes. Default: 1 embedded, 2 clustered."
    )
    queue_function_concurrency: int = Field(10, ge=1, description="Executions at the same time in one worker.")
    queue_agent_concurrency: int = Field(5, ge=1, description="Turns at the same time in one worker.")
    queue_max_retries: int = Field(3, ge=0, description="Retries of a failed job before it is a dead letter.")
    queue_retry_delay: float = Field(10, ge=0, description="Seconds between retries.")
    job_lease_seconds: float = Field(
        15, ge=3, description="Seconds without a sign of life after which a job is given to another worker."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        if self.sandbox_min_size > self.sandbox_max_size:
            raise ValueError("SANDBOX_MIN_SIZE must not be greater than SANDBOX_MAX_SIZE")
        if self.sandbox_min_idle > self.sandbox_max_size:
            raise ValueError("SANDBOX_MIN_IDLE must not be greater than SANDBOX_MAX_SIZE")
        if self.auto_apply_config and self.config_file is None:
            raise ValueError("AUTO_APPLY_CONFIG needs CONFIG_FILE")
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
