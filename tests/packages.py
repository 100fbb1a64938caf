"""Packages for tests: fetched into the cache that uv keeps anyway, so that each small one is fetched once."""

import os
import sys
from pathlib import Path

PYTHON = Path(sys.executable)
CACHE = Path(os.environ.get("UV_CACHE_DIR", Path.home() / ".cache" / "uv"))
