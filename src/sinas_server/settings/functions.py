"""Functions and their sandboxes."""

from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings

from sinas_server.settings.checks import Hosts, Names, Size


class FunctionSettings(BaseSettings):
    """What executions may use."""

    # Functions
    function_timeout: float = Field(
        300, gt=0, description="Wall-clock limit of an execution, in seconds; a function may set its own."
    )
    code_execution_timeout: float = Field(
        120, gt=0, description="Wall-clock limit of code that an agent runs with `codeExecution`, in seconds."
    )
    function_input_timeout: float = Field(
        86_400,
        gt=0,
        le=2_592_000,
        description="Longest time that an execution in the shared pool may wait for `input()`, in seconds, all its "
        "pauses together.",
    )
    max_function_memory: int = Field(512, ge=32, description="Memory limit of an execution, in MB.")
    max_function_cpu: float = Field(1.0, gt=0, description="CPU limit of an execution, in cores.")
    max_function_storage: Size = Field(
        1 << 30,
        ge=1 << 20,
        description="Most that an execution may write, such as `512m` or `1g`. The one place that can be written is "
        "`/tmp`, of 100 MB in memory; a smaller value makes it smaller.",
    )
    function_egress: Literal["public", "list", "none"] = Field(
        "public",
        description="What functions may reach: `public` addresses and `SINAS_ALLOWED_HOSTS`, only those on that "
        "`list`, or `none`. This platform's own API is reachable in each case. Trusted functions in the shared pool "
        "are not bound by it.",
    )
    sinas_allowed_hosts: Hosts = Field(
        (),
        description="Comma-separated host names, addresses or networks (`10.1.0.0/16`) that functions and fetches "
        "steered by users may reach although they are not public. Cloud metadata addresses are never reachable.",
    )
    allow_package_installation: bool = Field(
        True,
        description="Approve, resolve and install packages for functions. Off: they have the standard library only.",
    )
    allowed_packages: Names = Field(
        (), description="Comma-separated names of the packages that may be approved. Empty: any may."
    )
    allow_source_packages: bool = Field(
        False,
        description="Also install packages that have no wheel; building them runs their code on the machine of the "
        "worker, outside any sandbox.",
    )
    package_timeout: float = Field(900, gt=0, description="Longest that resolving or installing may take, in seconds.")
    sandbox_driver: Literal["auto", "native", "docker"] = Field(
        "auto",
        description="What isolates functions: `native` (Linux namespaces), `docker` (containers), or `auto`: Docker if "
        "`DOCKER_HOST` names an engine, else native where namespaces can be had, else an engine at its usual place.",
    )
    docker_host: str | None = Field(
        None,
        min_length=1,
        description="Docker engine for sandbox containers: `unix:///var/run/docker.sock` or `tcp://host:2375`. Only "
        "function workers use it.",
    )
    sandbox_image: str = Field("sinas-sandbox", min_length=1, description="Image of the sandbox containers.")
    sandbox_runtime: str = Field(
        "runc", min_length=1, description="Runtime of the sandbox containers, as the engine knows it: `runc`, `runsc`."
    )
    sinas_internal_url: str | None = Field(
        None,
        pattern=r"^http://[^/]+$",
        description="Where function workers reach the API on behalf of functions, such as `http://api:8000`. "
        "Default: `http://127.0.0.1:PORT`.",
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
    sandbox_max_executions: int = Field(
        100,
        ge=1,
        validation_alias=AliasChoices("SANDBOX_MAX_EXECUTIONS", "POOL_MAX_EXECUTIONS"),
        description="Executions after which a sandbox container is replaced. The native driver uses each sandbox once.",
    )
    function_container_idle_timeout: float = Field(
        3600,
        gt=0,
        description="Seconds after which a sandbox container that nobody used is removed, if the pool has more than it "
        "must keep.",
    )
    pool_acquire_timeout: float = Field(
        30,
        gt=0,
        description="Longest wait for a free sandbox of one worker, in seconds; then the execution goes back to the "
        "queue, where any worker may take it.",
    )
    default_worker_count: int = Field(
        4, ge=1, le=64, description="Shared workers for trusted functions, started when the first of these runs."
    )
    shared_worker_memory: int = Field(
        1024, ge=64, description="Memory in MB above which a shared worker is replaced, once its executions have ended."
    )
