"""Records that a target cannot take: named until they were mended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert

from datalayer.control.base import QuarantineRow
from datalayer.control.schema import QUARANTINE
from datalayer.control.statements import SqlPart, blob, number, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.domains.record import Key

_NEW: Final = insert(QUARANTINE).values(
    migration=text("migration"),
    kind=text("kind"),
    key=blob("key"),
    version=number("version"),
    reason=text("reason"),
    at_us=number("at_us"),
)
_PUT: Final = _NEW.on_conflict_do_update(
    index_elements=[QUARANTINE.c.migration, QUARANTINE.c.kind, QUARANTINE.c.key],
    set_={name: _NEW.excluded[name] for name in ("version", "reason", "at_us")},
).inline()
_READ: Final = (
    select(QUARANTINE.c.kind, QUARANTINE.c.key, QUARANTINE.c.version, QUARANTINE.c.reason, QUARANTINE.c.at_us)
    .where(QUARANTINE.c.migration == text("migration"))
    .order_by(QUARANTINE.c.at_us, QUARANTINE.c.kind, QUARANTINE.c.key)
    .limit(number("limit"))
)
_RELEASE: Final = delete(QUARANTINE).where(
    QUARANTINE.c.migration == text("migration"), QUARANTINE.c.kind == text("kind"), QUARANTINE.c.key == blob("key")
)


class SqlQuarantine(SqlPart):
    """By migration, kind and key."""

    async def quarantine(self, migration_id: str, rows: Sequence[QuarantineRow]) -> None:
        """Upsert by (kind, key)."""
        # In key order, so that two replayers naming the same records cannot lock each other out.
        values = [
            {
                "migration": migration_id,
                "kind": row.kind,
                "key": row.key,
                "version": row.version,
                "reason": row.reason,
                "at_us": row.at_us,
            }
            for row in sorted(rows, key=lambda row: (row.kind, row.key))
        ]
        if values:
            async with self._database.transaction(deadline=self._deadline()) as transaction:
                await self._do_many(transaction, _PUT, values)

    async def quarantined(self, migration_id: str, limit: int = 1000) -> list[QuarantineRow]:
        """Oldest first."""
        rows = await self._fetch(_READ, migration=migration_id, limit=limit)
        return [QuarantineRow(*row) for row in rows]

    async def release_quarantine(self, migration_id: str, keys: Sequence[Key]) -> None:
        """Remove; absent ones are ignored."""
        values = [{"migration": migration_id, "kind": kind, "key": key} for kind, key in sorted(keys)]
        if values:
            async with self._database.transaction(deadline=self._deadline()) as transaction:
                await self._do_many(transaction, _RELEASE, values)
