"""Landlock: file access by path, an extra layer over the mounts and the main one where there are no namespaces."""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from .syscalls import call

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _REFER, _IOCTL_DEVICE = 1 << 14, 1 << 13, 1 << 15
_FIRST_VERSION_RIGHTS = (1 << 13) - 1
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3
_RULE_PATH_BENEATH = 1
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE


def version() -> int:
    """Which Landlock the kernel speaks; 0 for none."""
    try:
        return call("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def _handled(abi: int) -> int:
    rights = _FIRST_VERSION_RIGHTS
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEVICE)):
        if abi >= since:
            rights |= right
    return rights


def restrict(abi: int, read: Iterable[str], write: Iterable[str]) -> None:
    """Allow this process nothing but reading below `read` and everything below `write`. Raises `OSError`."""
    rights = _handled(abi)
    scoped = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0
    attributes = struct.pack("QQQ", rights, 0, scoped)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = call("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        for path in read:
            _allow(ruleset, path, _READ)
        for path in write:
            _allow(ruleset, path, rights)
        call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        granted = rights if Path(path).is_dir() else rights & _FILE_RIGHTS
        call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", granted, beneath), 0)
    finally:
        os.close(beneath)
