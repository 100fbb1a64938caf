"""The package tool `uv` (https://docs.astral.sh/uv), run as a process of its own that sees no secret of ours."""

import asyncio
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uv import find_uv_bin

from sinas_server.backends.packages import PackageError, UnsatisfiableError

UNSATISFIABLE = 1
"""The exit status of `uv pip compile` when it has seen all it asked for and no solution exists."""
MAX_REASON = 4_000
KEPT = frozenset(
    {
        *("PATH", "HOME", "LANG", "TMPDIR", "NETRC", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT"),
    }
)
"""What a package client is configured by, beside `UV_*`; nothing else of our environment reaches it."""
CERTIFICATES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))


def environment_of(ours: Mapping[str, str], cache: Path) -> dict[str, str]:
    """The environment of uv: the operator's configuration of it, and nothing else of ours."""
    kept = {name: value for name, value in ours.items() if name in KEPT or _configures_uv(name)}
    usual = {"UV_CACHE_DIR": str(cache), "UV_PYTHON_DOWNLOADS": "never"}
    # Where the system has a store of certificates, trust it: it may hold a company's own.
    if any(path.exists() for path in CERTIFICATES):
        usual["UV_SYSTEM_CERTS"] = "true"
    return {**usual, **kept, "UV_NO_PROGRESS": "1"}


def _configures_uv(name: str) -> bool:
    return name.startswith("UV_") and not name.startswith("UV_PUBLISH_")  # those are for uploading, and secret


@dataclass(frozen=True)
class Uv:
    """uv for one interpreter."""

    python: Path
    """The interpreter that will import the packages."""
    cache: Path
    """Where downloads are kept."""
    source_builds: bool
    """Whether packages may be built from source, which runs their code on this machine, outside any sandbox."""
    timeout: float
    """Seconds that one run may take."""

    async def resolve(self, requirements: Sequence[str], preferred: str) -> str:
        """A lock of everything that is needed. Raises `PackageError`."""
        # uv keeps the versions that it finds in its output file.
        files = {"in.txt": "".join(f"{requirement}\n" for requirement in requirements), "lock.txt": preferred}
        with tempfile.TemporaryDirectory(prefix="sinas-packages-") as place:
            plain = ("--generate-hashes", "--no-header", "--no-annotate")
            await self._run(place, files, "compile", "in.txt", "--output-file", "lock.txt", *plain)
            return _read(place, "lock.txt")

    async def install(self, lock: str, target: Path) -> None:
        """Install a lock, with hashes checked and byte code made. Raises `PackageError`."""
        with tempfile.TemporaryDirectory(prefix="sinas-packages-") as place:
            exact = ("--require-hashes", "--no-deps", "--compile-bytecode", "--link-mode", "copy")
            files = {"lock.txt": lock}
            await self._run(place, files, "install", "--requirement", "lock.txt", "--target", str(target), *exact)
        (target / ".lock").unlink(missing_ok=True)

    async def _run(self, place: str, files: Mapping[str, str], *arguments: str) -> None:
        _write(place, files)
        # In a directory of its own, so that no project's configuration is found there.
        common = ("--quiet", "--python", str(self.python), *(() if self.source_builds else ("--only-binary", ":all:")))
        process = await asyncio.create_subprocess_exec(
            find_uv_bin(),
            "pip",
            *arguments,
            *common,
            cwd=place,
            env=environment_of(os.environ, self.cache),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self.timeout):
                _, errors = await process.communicate()
        except TimeoutError as error:
            raise PackageError(f"it took longer than {self.timeout:g} seconds") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            kind = UnsatisfiableError if process.returncode == UNSATISFIABLE else PackageError
            raise kind(reason(errors.decode(errors="replace")) or f"uv ended with status {process.returncode}")


def _write(place: str, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        Path(place, name).write_text(text)


def _read(place: str, name: str) -> str:
    return Path(place, name).read_text()


def reason(text: str) -> str:
    """What uv wrote, on one line, without credentials in addresses."""
    plain = re.sub(r"://[^/\s@]+@", "://", " ".join(text.split()))
    return plain.replace("\x00", "").removeprefix("error: ")[:MAX_REASON]
