"""The dependency kind: a Python package that an administrator lets functions import."""

from packaging.utils import canonicalize_name
from pydantic import Field, field_validator
from sqlalchemy import insert

from sinas_server.dependencies.requirement import name_of, requirement, specifier, spelled
from sinas_server.dependencies.tables import PackageSetRow
from sinas_server.kernel.errors import ForbiddenError
from sinas_server.kernel.kind import Kind, Spec
from sinas_server.kernel.outbox import audit_change
from sinas_server.kernel.store import Resource
from sinas_server.kernel.unit import Db


class DependencySpec(Spec):
    """An approved Python package."""

    package_name: str = Field(
        min_length=1, max_length=255, description="Its name on the package index, with extras: `markitdown[all]`."
    )
    version: str | None = Field(
        default=None,
        max_length=255,
        description="An exact version like `2.1.0`, or a range like `>=2,<3`; null for the newest that fits.",
    )

    @field_validator("package_name")
    @classmethod
    def _is_a_package(cls, value: str) -> str:
        return spelled(value)

    @field_validator("version")
    @classmethod
    def _is_a_version(cls, value: str | None) -> str | None:
        return (value or "").strip() if specifier(value) else None

    @property
    def requirement(self) -> str:
        """As pip writes it."""
        return requirement(self.package_name, self.version)


async def _on_change(db: Db, old: Resource[DependencySpec] | None, new: Resource[DependencySpec] | None) -> None:
    """Refuse what the operator does not allow, and ask for a set that fits what is approved now."""
    await audit_change(db, old, new)
    if new is not None:
        _refuse_forbidden(db, new.name)
    await db.execute(insert(PackageSetRow))


def _refuse_forbidden(db: Db, name: str) -> None:
    settings = db.settings
    if not settings.allow_package_installation:
        raise ForbiddenError("packages cannot be approved here: ALLOW_PACKAGE_INSTALLATION is false")
    if not is_allowed(settings.allowed_packages, name):
        allowed = ", ".join(settings.allowed_packages)
        raise ForbiddenError(f"'{name}' is not one of the ALLOWED_PACKAGES: {allowed}")


def is_allowed(allowed: tuple[str, ...], name: str) -> bool:
    """Whether a package may be approved: without a list, any may."""
    return not allowed or name in {canonicalize_name(each.partition("[")[0].strip()) for each in allowed}


DEPENDENCY = Kind(
    name="dependency",
    plural="dependencies",
    spec=DependencySpec,
    namespaced=False,
    name_pattern=r"^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$",
    name_from=name_of,
    on_change=_on_change,
    description="Python packages that functions may import, approved by administrators.",
    admin_only=True,
)
