"""The `sinas` command."""

from sinas_server.cli.main import main

__all__ = ["main"]
