"""Declarative export: the resources of an installation as the document that would make them."""

from collections.abc import Sequence
from typing import Any

from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.declared import write_entry
from sinas_server.kernel.kind import Kind
from sinas_server.kernel.store import EVERYTHING, Filter
from sinas_server.kernel.unit import Db


async def export(
    db: Db, caller: Caller, kinds: Sequence[Kind[Any]], only: Filter = EVERYTHING, *, placeholders: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Section → entries of what the caller may read; secrets are left out, or `${NAME}` placeholders."""
    sections = {
        kind.section: [
            await write_entry(db, kind, resource, placeholders=placeholders)
            for resource in await store.find(db, caller, kind, only)
        ]
        for kind in kinds
    }
    return {section: entries for section, entries in sections.items() if entries}
