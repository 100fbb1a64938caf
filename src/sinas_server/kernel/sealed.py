"""Specs as the database holds them: secrets encrypted; and what to say of those whose key is gone."""

from typing import Any

from sinas_server.kernel.kind import Kind, S
from sinas_server.kernel.secret import SecretContext
from sinas_server.kernel.tables import ResourceRow, ResourceVersionRow
from sinas_server.kit.crypto import Sealer


def seal(sealer: Sealer, spec: S) -> dict[str, Any]:
    """A spec as it is stored."""
    return spec.model_dump(mode="json", by_alias=True, context=SecretContext("sealed", sealer))


def unseal(sealer: Sealer, kind: Kind[S], row: ResourceRow | ResourceVersionRow) -> tuple[S, tuple[str, ...]]:
    """The spec of a row, and what is wrong if secrets of it cannot be read."""
    context = SecretContext("sealed", sealer)
    spec = kind.spec.model_validate(kind.spec.upgrade(row.spec), context=context)
    if not context.unreadable:
        return spec, ()
    what = f"{', '.join(sorted(context.unreadable))} of {kind.called(row.namespace, row.name)} cannot be decrypted"
    return spec, (f"{what}: its key is not in ENCRYPTION_KEY; add that key to the list again or set the field anew",)
