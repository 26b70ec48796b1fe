"""Small JSON documents of a migration, or a place: results of verification, progress, regions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from datalayer.control.schema import DOCUMENTS
from datalayer.control.statements import SqlPart, text

if TYPE_CHECKING:
    from collections.abc import Mapping

_NEW: Final = insert(DOCUMENTS).values(migration=text("migration"), name=text("name"), value=text("value"))
_PUT: Final = _NEW.on_conflict_do_update(
    index_elements=[DOCUMENTS.c.migration, DOCUMENTS.c.name], set_={"value": _NEW.excluded.value}
).inline()
_ENSURE: Final = _NEW.on_conflict_do_nothing().inline()
_READ: Final = select(DOCUMENTS.c.value).where(
    DOCUMENTS.c.migration == text("migration"), DOCUMENTS.c.name == text("name")
)


class SqlDocuments(SqlPart):
    """By migration and name."""

    async def put_document(self, migration_id: str, name: str, value: Mapping[str, Any]) -> None:
        """Store or replace a document."""
        await self._run(_PUT, migration=migration_id, name=name, value=json.dumps(dict(value)))

    async def ensure_document(self, migration_id: str, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Store a document unless there is one; what is there then."""
        await self._run(_ENSURE, migration=migration_id, name=name, value=json.dumps(dict(value)))
        found = await self.document(migration_id, name)
        assert found is not None, "documents are never removed"
        return found

    async def document(self, migration_id: str, name: str) -> dict[str, Any] | None:
        """The document, or None."""
        rows = await self._fetch(_READ, migration=migration_id, name=name)
        return cast("dict[str, Any]", json.loads(rows[0][0])) if rows else None
