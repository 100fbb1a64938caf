"""Packages for tests: one cache for the whole session's runs, so that each small package is fetched once."""

import sys
import tempfile
from pathlib import Path

PYTHON = Path(sys.executable)
CACHE = Path(tempfile.gettempdir()) / "sinas-tests-uv-cache"
"""Kept between runs of the tests: it holds nothing but downloads."""
