"""What one Python interpreter needs of the host's file system, and nothing else."""

import json
import os
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from sinas_server.backends.sandbox import SandboxUnavailable

MINIMUM_VERSION = (3, 11)
SHARED_LIBRARIES = ("/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/share/zoneinfo")
_QUESTION = """
import json, os, ssl, sys, sysconfig
paths = ssl.get_default_verify_paths()
certificates = [p for p in (paths.openssl_cafile, paths.openssl_capath) if os.path.exists(p)]
print(json.dumps({"executable": os.path.realpath(sys.executable), "prefix": sys.base_prefix,
 "version": list(sys.version_info[:2]), "certificates": certificates,
 "directories": [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"),
                 sysconfig.get_config_var("DESTSHARED") or ""]}))
"""
_PATH_QUESTION = "import json, sys; print(json.dumps(sys.path))"


class _Answer(TypedDict):
    executable: str
    prefix: str
    version: list[int]
    certificates: list[str]
    directories: list[str]


@dataclass(frozen=True)
class Interpreter:
    """An interpreter and the paths that must be visible for it to run."""

    executable: str
    mounts: list[tuple[str, str]]
    """(host path, inside path)."""
    links: list[tuple[str, str]]
    """Symbolic links: (inside path, target)."""
    sys_path: list[str]


def _ask(python: str, flags: str, question: str) -> str:
    try:
        return subprocess.run(  # noqa: S603 - the operator's own interpreter, fixed arguments
            [python, flags, "-c", question], capture_output=True, text=True, check=True, timeout=60, cwd="/"
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxUnavailable(f"the Python interpreter {python} does not run: {error}") from error


def inspect(python: Path) -> Interpreter:
    """Ask an interpreter what it needs. Raises `SandboxUnavailable`."""
    answer: _Answer = json.loads(_ask(str(python), "-I", _QUESTION))
    if tuple(answer["version"]) < MINIMUM_VERSION:
        raise SandboxUnavailable(f"{python} is Python {answer['version']}; functions need 3.11 or later")
    executable, prefix = answer["executable"], answer["prefix"]
    in_system = prefix in {"/usr", "/usr/local"}
    own = [executable, *answer["directories"]] if in_system else [executable, f"{prefix}/lib"]
    machine = (sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu").split("-")[0]
    wanted = [*own, *(path.format(machine=machine) for path in SHARED_LIBRARIES), *answer["certificates"]]
    if in_system:  # libpython of a system interpreter that is built shared
        wanted += [str(path) for path in Path(prefix, "lib").glob("libpython3*.so*")]
    links: list[tuple[str, str]] = []
    for name in ("lib", "lib64"):
        if Path(f"/{name}").is_symlink():
            links.append((f"/{name}", str(Path(f"/{name}").readlink())))
        else:
            wanted.append(f"/{name}")
    sys_path: list[str] = json.loads(_ask(executable, "-IS", _PATH_QUESTION))
    return Interpreter(executable, [(path, path) for path in _outermost(wanted)], links, sys_path)


def _outermost(paths: list[str]) -> list[str]:
    """The paths that exist, without those below another one."""
    kept: list[str] = []
    for path in paths:
        if path and Path(path).exists() and not any(path == other or path.startswith(f"{other}/") for other in kept):
            kept.append(path)
    return kept
