"""Packages and versions as pip writes them: approvals, requirements and locks."""

import re
from collections.abc import Iterable, Mapping

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from sinas_server.kernel.errors import InvalidError

ANY_VERSION = ("", "*", "latest")
LOCKED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)", re.MULTILINE)


def package(text: str) -> Requirement:
    """A package name with its extras, `markitdown[all]`. Raises `ValueError` saying what is wrong."""
    try:
        found = Requirement(text.strip())
    except InvalidRequirement as error:
        raise ValueError(f"'{text}' is not the name of a Python package") from error
    if found.url or found.marker:
        raise ValueError("addresses and conditions are not accepted: give the name that a package index knows")
    if found.specifier:
        raise ValueError(f"give the version as `version`: {found.specifier}")
    return found


def spelled(text: str) -> str:
    """The name with its extras as indexes compare it: `Markitdown[ALL]` → `markitdown[all]`."""
    found = package(text)
    extras = sorted(canonicalize_name(extra) for extra in found.extras)
    return canonicalize_name(found.name) + (f"[{','.join(extras)}]" if extras else "")


def specifier(version: str | None) -> str:
    """What pip writes behind the name: `==2.1` for `2.1`, a range as it is, nothing for any version."""
    text = (version or "").strip()
    if text in ANY_VERSION:
        return ""
    try:
        return str(SpecifierSet(text if re.match(r"[<>=!~]", text) else f"=={text}"))
    except InvalidSpecifier as error:
        raise ValueError(f"'{text}' is neither a version like 2.1.0 nor a range like >=2,<3") from error


def as_requirement(text: str) -> str:
    """A package with its version as pip writes it: `pandas>=2`. Raises `ValueError`."""
    found = Requirement(text)
    if found.url:
        raise ValueError("addresses are not accepted: give the name that a package index knows")
    return str(found)


def name_of(values: Mapping[str, object]) -> str:
    """The canonical name of the package that an approval is about. Raises `InvalidError`."""
    try:
        return canonicalize_name(package(str(values.get("package_name") or "")).name)
    except ValueError as error:
        raise InvalidError([(("body", "package_name"), str(error))]) from error


def requirement(package_name: str, version: str | None) -> str:
    """The approval as one line of a requirements file."""
    return spelled(package_name) + specifier(version)


def locked_versions(lock: str | None) -> dict[str, str]:
    """Canonical package name → the version that is installed."""
    return {canonicalize_name(name): version for name, version in LOCKED.findall(lock or "")}


def approved_names(requirements: Iterable[str]) -> list[str]:
    """The canonical names of the packages that these requirements are about."""
    return sorted(canonicalize_name(Requirement(text).name) for text in requirements)
