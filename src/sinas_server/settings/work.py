"""Processes, queues, and declared resources."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings

from sinas_server.settings.checks import Hosts, check_signing_secrets


class WorkSettings(BaseSettings):
    """How much is done at a time, and what is kept."""

    # Declared resources
    deleted_retention_days: int = Field(
        30, ge=0, description="Days during which a deleted resource can be restored; 0 deletes at once."
    )
    config_file: Path | None = Field(None, description="YAML configuration of this deployment.")
    auto_apply_config: bool = Field(False, description="Apply `CONFIG_FILE` at every start.")

    # Templates
    template_timeout: int = Field(5, ge=1, le=60, description="How long rendering a template may take, in seconds.")

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
    execution_retention_days: int = Field(
        90, ge=1, description="Days for which executions that have ended are kept, with their results and output."
    )
    usage_retention_days: int = Field(
        400,
        ge=0,
        description="Days for which each call of a model is kept, at least 32; 0 keeps all. Budgets count the calls "
        "before, too; the statistics of usage do not.",
    )
    callback_allowed_hosts: Hosts = Field(
        (),
        description="Comma-separated host names (`*.example.com` for all below), addresses or networks that "
        "`callback_url` may lead to, each with an optional `:port`; `*` allows every public address. What is listed "
        "may be private; cloud metadata addresses never. Empty: callbacks are refused.",
    )
    callback_secret: Annotated[SecretStr, AfterValidator(check_signing_secrets)] | None = Field(
        None,
        description="Secret that signs callbacks, as Standard Webhooks writes it: `whsec_` and 24 to 64 bytes in "
        "base64. Of a comma-separated list, each signs. Needed with `CALLBACK_ALLOWED_HOSTS`.",
    )
    job_lease_seconds: float = Field(
        15, ge=3, description="Seconds without a sign of life after which a job is given to another worker."
    )
