"""The Docker sandbox driver: pre-warmed containers that run the guest program."""

from sinas_server.backends.sandbox.docker.sandbox import DockerSandbox
from sinas_server.backends.sandbox.docker.source import DockerConfig

__all__ = ["DockerConfig", "DockerSandbox"]
