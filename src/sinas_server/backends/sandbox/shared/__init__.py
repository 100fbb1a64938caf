"""The driver for trusted code: threads in long-lived Python processes, whose modules stay loaded between tasks."""

from sinas_server.backends.sandbox.shared.config import SharedConfig
from sinas_server.backends.sandbox.shared.pool import SharedPool, WorkerState

__all__ = ["SharedConfig", "SharedPool", "WorkerState"]
