"""The native sandbox driver: Linux namespaces, Landlock, seccomp and control groups, no Docker needed."""

from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.native.levels import LevelName
from sinas_server.backends.sandbox.native.sandbox import NativeSandbox, open_sandbox

__all__ = ["LevelName", "NativeSandbox", "SandboxConfig", "open_sandbox"]
