"""How this installation gets packages: the tool, and where sets of them are kept."""

import sys
from pathlib import Path

from sinas_server.backends.packages import PackageTool
from sinas_server.backends.packages.directories import PackageDirectories
from sinas_server.backends.packages.uv import Uv
from sinas_server.settings import Settings


def open_tool(settings: Settings) -> PackageTool:
    """Resolves and installs for the interpreter that functions run in."""
    return Uv(
        python=Path(sys.executable),
        cache=settings.sinas_data_dir.absolute() / "cache" / "uv",
        source_builds=settings.allow_source_packages,
        timeout=settings.package_timeout,
    )


def open_directories(settings: Settings) -> PackageDirectories:
    """The sets on this machine, below the data directory."""
    return PackageDirectories(settings.sinas_data_dir.absolute() / "packages", open_tool(settings))
