"""Where it runs, its keys, and the servers it needs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings

from sinas_server.settings.checks import Names, check_fernet_keys, check_postgres_url, check_redis_url


class ServerSettings(BaseSettings):
    """Where the platform runs and what it runs on."""

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
    blobs_dir: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        None,
        description="Directory of the files that messages hold. Processes on several machines need it on a volume that "
        "they share. Default: `blobs` in the data directory.",
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
    encryption_key: Annotated[SecretStr, AfterValidator(check_fernet_keys)] | None = Field(
        None,
        description="Fernet key that encrypts stored credentials. A comma-separated list rotates: the first encrypts, "
        "all decrypt, and once `sinas rotate-keys` has run, the first is enough. Generated into the data directory "
        "when embedded; required when clustered.",
    )

    # Servers
    database_url: Annotated[SecretStr, AfterValidator(check_postgres_url)] | None = Field(
        None,
        description="PostgreSQL as `postgresql://user:password@host:port/name`; overrides the five variables below.",
    )
    database_user: str = Field("postgres", description="PostgreSQL user.")
    database_password: SecretStr | None = Field(None, description="PostgreSQL password.")
    database_host: str = Field("postgres", description="PostgreSQL host, or the directory of its unix socket.")
    database_port: int = Field(5432, ge=1, le=65535, description="PostgreSQL port.")
    database_name: str = Field("sinas", description="PostgreSQL database.")
    database_prepare: bool = Field(
        False,
        description="Whether PostgreSQL keeps prepared statements, which spares it a third of its work. Not behind a "
        "pooler that does not track them. The bundled server always does.",
    )
    redis_url: Annotated[SecretStr, AfterValidator(check_redis_url)] = Field(
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
