"""Processes, queues, and declared resources."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings


class WorkSettings(BaseSettings):
    """How much is done at a time, and what is kept."""

    # Declared resources
    deleted_retention_days: int = Field(
        30, ge=0, description="Days during which a deleted resource can be restored; 0 deletes at once."
    )
    config_file: Path | None = Field(None, description="YAML configuration of this deployment.")
    auto_apply_config: bool = Field(False, description="Apply `CONFIG_FILE` at every start.")

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
