"""Records into a table in bulk, the newer one of each key winning.

A large batch is first copied straight into the table: a backfill mostly meets no key that is there already, and then a
COPY alone does what "insert or replace if newer" would. The first key that is there fails it as a whole; the batch then
goes through a staging table and one INSERT .. ON CONFLICT, and the straight way is left out for some batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.stores.postgres.copyformat import copy_data
from datalayer.stores.sql.database import UniqueViolation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datalayer.domains.record import Record
    from datalayer.stores.postgres.database import PostgresTransaction
    from datalayer.stores.sql.relation import Relation
    from datalayer.stores.sql.store import SqlStore

COPY_MIN: Final = 100
"""Fewer records go as single statements in one pipeline; a staging table has its price too."""
AVOID_MAX: Final = 64


class BulkWriter:
    """Writes records of one store within a caller's transaction."""

    def __init__(self, store: SqlStore) -> None:
        self._relations = store.relations
        self._avoid: dict[str, int] = dict.fromkeys(store.relations, 0)
        self._avoid_next: dict[str, int] = dict.fromkeys(store.relations, 1)

    async def write(self, tx: PostgresTransaction, records: Iterable[Record]) -> None:
        """Store each record that is newer than what is stored; in key order, so that two writers cannot deadlock."""
        kinds: dict[str, list[Record]] = {}
        for record in records:
            kinds.setdefault(record.kind, []).append(record)
        for kind, batch in kinds.items():
            batch.sort(key=_by_key)
            relation = self._relations[kind]
            if len(batch) < COPY_MIN:
                await tx.run_many(relation.upsert, [relation.to_row(record) for record in batch])
            else:
                await self._copy(tx, relation, _newest(batch))

    async def _copy(self, tx: PostgresTransaction, relation: Relation, batch: Sequence[Record]) -> None:
        kind = relation.kind.name
        data = copy_data(kind, batch)
        if self._avoid[kind] > 0:
            self._avoid[kind] -= 1
        elif await self._straight(tx, relation, data):
            self._avoid_next[kind] = 1
            return
        else:
            self._avoid[kind] = self._avoid_next[kind]
            self._avoid_next[kind] = min(2 * self._avoid_next[kind], AVOID_MAX)
        await _through_staging(tx, relation, data)

    @staticmethod
    async def _straight(tx: PostgresTransaction, relation: Relation, data: bytes) -> bool:
        await tx.run("SAVEPOINT datalayer_copy")
        try:
            await tx.copy_in(f"COPY {relation.name} ({', '.join(relation.columns)}) FROM STDIN (FORMAT binary)", data)
        except UniqueViolation:
            await tx.run("ROLLBACK TO SAVEPOINT datalayer_copy")
            return False
        return True


async def _through_staging(tx: PostgresTransaction, relation: Relation, data: bytes) -> None:
    table, columns = relation.name, ", ".join(relation.columns)
    stage = f"datalayer_stage_{relation.kind.name}"
    keys = ", ".join(relation.key_names)
    changes = ", ".join(f"{name} = excluded.{name}" for name in relation.columns if name not in relation.key_names)
    # made anew each time: behind a pooler a session's temporary table would reach other clients
    await tx.run(f"CREATE TEMPORARY TABLE {stage} (LIKE {table}) ON COMMIT DROP")
    await tx.copy_in(f"COPY {stage} ({columns}) FROM STDIN (FORMAT binary)", data)
    await tx.run(
        f"INSERT INTO {table} AS t ({columns}) SELECT {columns} FROM {stage} ORDER BY {keys} "  # noqa: S608
        f"ON CONFLICT ({keys}) DO UPDATE SET {changes} WHERE excluded.version > t.version"
    )
    await tx.run(f"DROP TABLE {stage}")


def _by_key(record: Record) -> tuple[bytes, int]:
    return (record.key, record.version)


def _newest(batch: list[Record]) -> list[Record]:
    """The newest record of each key, of a batch sorted by key and version: one INSERT may meet a key only once."""
    newest = {record.key: record for record in batch}
    return batch if len(newest) == len(batch) else list(newest.values())
