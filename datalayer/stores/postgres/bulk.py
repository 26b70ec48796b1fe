"""Records into a table in bulk: COPY into a staging table, then one statement in which the newer one wins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.domains.record import Record
    from datalayer.stores.postgres.database import PostgresTransaction
    from datalayer.stores.sql.store import SqlStore

COPY_MIN: Final = 500


class BulkWriter:
    """Writes records of one store within a caller's transaction."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    async def write(self, tx: PostgresTransaction, records: Sequence[Record]) -> None:
        """Store each record that is newer than what is stored."""
        await self._store.apply_in(tx, records)
