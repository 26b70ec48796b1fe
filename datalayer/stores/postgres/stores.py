"""The stores of the movable domains: what SQL shares, with Postgres' own ways to move many records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import sqlalchemy as sa

from datalayer.domains.messages import Append
from datalayer.domains.record import Record
from datalayer.schemas.metadata import messages_table
from datalayer.stores.base import ScanPage
from datalayer.stores.postgres.bulk import BulkWriter
from datalayer.stores.postgres.outbox import PostgresOutbox, outboxes_at
from datalayer.stores.postgres.partitions import APPEND_WAIT_S, Partitions
from datalayer.stores.postgres.rows import RawUuid, check_message
from datalayer.stores.sql.catalogue import SqlCatalogue
from datalayer.stores.sql.conversations import SqlConversations
from datalayer.stores.sql.listings import SqlListings
from datalayer.stores.sql.messages import SqlMessages
from datalayer.stores.sql.sessions import SqlSessions
from datalayer.stores.sql.statement import limited, statement
from datalayer.stores.sql.store import SqlStore
from datalayer.stores.sql.texts import texts
from datalayer.stores.sql.users import SqlUsers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from datalayer.clock import Deadline
    from datalayer.domains.messages import MessageMutation
    from datalayer.stores.base import Executed
    from datalayer.stores.postgres.database import PostgresDatabase, PostgresTransaction
    from datalayer.stores.postgres.partitions import Unit
    from datalayer.stores.sql.database import Row, SqlDatabase, SqlTransaction
    from datalayer.stores.sql.store import SqlProduct

_TREE: Final = """
WITH named AS (SELECT to_regclass(n)::oid AS oid FROM unnest(%s::text[]) n),
  tree AS (SELECT oid FROM named UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN named ON named.oid = i.inhparent) """
"""The tables of these names and their partitions."""
_FIELDS: Final = ("sender_id", "body", "kind", "thread_id", "attachments", "edited_at", "attributes")
_SIZED: Final = 16


class Sized(SqlStore):
    """A store that knows how much room it takes."""

    async def size(self) -> int:
        names = [relation.name for relation in self.relations.values()]
        rows = await self.db.fetch(
            f"{_TREE} SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM tree",  # noqa: S608
            (names,),
        )
        return int(rows[0][0])

    async def calls(self) -> int:
        names = [relation.name for relation in self.relations.values()]
        rows = await self.db.fetch(
            f"{_TREE} SELECT coalesce(sum(coalesce(idx_scan, 0) + seq_scan + n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint "  # noqa: S608
            "FROM pg_stat_user_tables WHERE relid IN (SELECT oid FROM tree)",
            (names,),
        )
        return int(rows[0][0])


class _Followed(Sized):
    """A store that indexes may follow."""

    def outbox(self, index: int) -> PostgresOutbox:
        """What an index has not taken in yet of this place."""
        return PostgresOutbox(cast("PostgresDatabase", self.db), self, index)

    async def outboxes(self) -> list[int]:
        """The indexes that have an outbox here."""
        return await outboxes_at(self)

    async def drop(self) -> None:
        for index in await self.outboxes():
            await self.outbox(index).remove()
        await super().drop()


class PostgresMessages(SqlMessages, _Followed):
    """Messages; ``scan`` has the server put the key together and takes uuids as bytes."""

    def __init__(
        self, db: PostgresDatabase, product: SqlProduct, attempt: int = 0, *, partition: Unit | None = None
    ) -> None:
        super().__init__(cast("SqlDatabase", db), product, attempt)
        self._postgres = db
        self._partition = partition
        self.partitions = Partitions(db, self, partition, product.clock)
        self._bulk = BulkWriter(self)
        self._scans = texts(_Scans, attempt=attempt)

    async def create(self) -> None:
        await (super().create() if self._partition is None else self.partitions.create())

    async def execute(self, mutation: MessageMutation, deadline: Deadline) -> Executed:
        if self._partition is not None and isinstance(mutation, Append):
            await self.partitions.cover([mutation.id.bytes], min(APPEND_WAIT_S, deadline.remaining() / 2))
        return await super().execute(mutation, deadline)

    async def apply_through(
        self, apply_all: Callable[[Sequence[Record]], Awaitable[None]], records: Sequence[Record]
    ) -> None:
        if self._partition is not None:
            await self.partitions.cover([record.key[_SIZED:] for record in records if len(record.key) == 2 * _SIZED])
        await super().apply_through(apply_all, records)

    async def scan(self, range_: str, after: str | None, limit: int) -> ScanPage:
        _, low, high = range_.split(":")
        start = low if after is None else after
        params = (*_position(high), *_position(start), limit) if start else (*_position(high), limit)
        rows = await self._postgres.fetch_raw(self._scans.after if start else self._scans.first, params)
        records = [_record(row) for row in rows]
        return ScanPage(records, records[-1].key.hex() if records else after, len(records) < limit)

    def check(self, record: Record) -> str | None:
        if record.kind != "message" or len(record.key) != 2 * _SIZED:
            return super().check(record)
        try:
            check_message(record)
        except ValueError as error:
            return str(error)
        return None

    async def apply_in(self, tx: SqlTransaction, records: Iterable[Record]) -> None:
        await self._bulk.write(cast("PostgresTransaction", tx), records)


class _Scans:
    """The texts of a scan of messages."""

    def __init__(self, attempt: int) -> None:
        table = messages_table(attempt)
        keys = (table.c.conversation_id, table.c.id)
        key = sa.func.uuid_send(keys[0]).op("||")(sa.func.uuid_send(keys[1]))
        columns: dict[str, Any] = {name: table.c[name] for name in _FIELDS}
        # An array costs a loader in Python; hardly any message has one.
        columns["attachments"] = sa.func.nullif(table.c.attachments, sa.text("'{}'"))
        select = sa.select(key, table.c.version, table.c.deleted, *columns.values())
        low, high = (
            sa.tuple_(*(sa.bindparam(f"{end}_{one.name}", type_=one.type) for one in keys)) for end in ("low", "high")
        )
        select = select.where(sa.tuple_(*keys) <= high).order_by(*keys)
        names = ("high_conversation_id", "high_id", "low_conversation_id", "low_id", "limit")
        after = limited("postgresql", select.where(sa.tuple_(*keys) > low))
        self.after = statement("postgresql", after, *names).sql
        self.first = statement("postgresql", limited("postgresql", select), *names[:2], names[4]).sql


class PostgresUsers(SqlUsers, _Followed):
    """Users and their claims."""

    def __init__(self, db: PostgresDatabase, product: SqlProduct, attempt: int = 0) -> None:
        super().__init__(cast("SqlDatabase", db), product, attempt)
        self._bulk = BulkWriter(self)

    async def apply_in(self, tx: SqlTransaction, records: Iterable[Record]) -> None:
        await self._bulk.write(cast("PostgresTransaction", tx), records)


class PostgresConversations(SqlConversations, Sized):
    """Conversations and their members."""

    def __init__(self, db: PostgresDatabase, product: SqlProduct, attempt: int = 0) -> None:
        super().__init__(cast("SqlDatabase", db), product, attempt)
        self._bulk = BulkWriter(self)

    async def apply_in(self, tx: SqlTransaction, records: Iterable[Record]) -> None:
        await self._bulk.write(cast("PostgresTransaction", tx), records)


class PostgresListings(SqlListings, Sized):
    """Users' lists of conversations."""

    def __init__(self, db: PostgresDatabase, product: SqlProduct, attempt: int = 0) -> None:
        super().__init__(cast("SqlDatabase", db), product, attempt)
        self._bulk = BulkWriter(self)

    async def apply_in(self, tx: SqlTransaction, records: Iterable[Record]) -> None:
        await self._bulk.write(cast("PostgresTransaction", tx), records)


class PostgresCatalogue(SqlCatalogue, Sized):
    """The catalogue of media."""

    def __init__(self, db: PostgresDatabase, product: SqlProduct, attempt: int = 0) -> None:
        super().__init__(cast("SqlDatabase", db), product, attempt)
        self._bulk = BulkWriter(self)

    async def apply_in(self, tx: SqlTransaction, records: Iterable[Record]) -> None:
        await self._bulk.write(cast("PostgresTransaction", tx), records)


class PostgresSessions(SqlSessions, Sized):
    """Sessions and cuts."""

    def __init__(self, db: PostgresDatabase, product: SqlProduct, attempt: int = 0) -> None:
        super().__init__(cast("SqlDatabase", db), product, attempt)
        self._bulk = BulkWriter(self)

    async def apply_in(self, tx: SqlTransaction, records: Iterable[Record]) -> None:
        await self._bulk.write(cast("PostgresTransaction", tx), records)


def _position(key: str) -> Sequence[RawUuid]:
    raw = bytes.fromhex(key)
    return (RawUuid(raw[:_SIZED]), RawUuid(raw[_SIZED:]))


def _record(row: Row) -> Record:
    key, version, deleted, sender, body, kind, thread, attachments, edited, attributes = row
    fields = (sender, body, kind, thread, attachments or b"", edited, attributes)
    return tuple.__new__(Record, ("message", key, version, deleted, fields))
