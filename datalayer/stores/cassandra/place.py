"""The tables of one place, and its prepared statements.

Values are bound as bytes here instead of by the driver: an id is 16 bytes in our keys already, and the driver's own
binding is more than half of its time per row.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import StaleRoute
from datalayer.schemas.cassandra import place_statements
from datalayer.stores.cassandra import cells
from datalayer.stores.cassandra.outbox import CassandraOutbox, outboxes_at

if TYPE_CHECKING:
    from datalayer.clock import Clock
    from datalayer.stores.cassandra.cells import Partition
    from datalayer.stores.cassandra.session import CassandraSession

_FRAGMENTS: Final = {
    "partition": "conversation_id = ? AND bucket = ?",
    "token": "token(conversation_id, bucket)",
    "ring_row": "token(conversation_id, bucket), conversation_id, bucket, id, record",
}
_CQL: Final = {
    "get": "SELECT record FROM {messages} WHERE {partition} AND id = ?",
    "get_in": "SELECT id, record FROM {messages} WHERE {partition} AND id IN ?",
    # Bucket rows carry no cell but their key and are never removed, so one fixed timestamp makes every repeat equal.
    "put_bucket": "INSERT INTO {buckets} (conversation_id, bucket) VALUES (?, ?) USING TIMESTAMP 1",
    "put": "INSERT INTO {messages} (conversation_id, bucket, id, record) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
    "buckets_down": "SELECT bucket FROM {buckets} WHERE conversation_id = ? AND bucket <= ? LIMIT ?",
    "buckets_up": "SELECT bucket FROM {buckets} WHERE conversation_id = ? AND bucket >= ? ORDER BY bucket ASC LIMIT ?",
    "newest": "SELECT id, record FROM {messages} WHERE {partition} LIMIT ?",
    "older": "SELECT id, record FROM {messages} WHERE {partition} AND id < ? LIMIT ?",
    "oldest": "SELECT id, record FROM {messages} WHERE {partition} ORDER BY id ASC LIMIT ?",
    "newer": "SELECT id, record FROM {messages} WHERE {partition} AND id > ? ORDER BY id ASC LIMIT ?",
    "ring": "SELECT {ring_row} FROM {messages} WHERE {token} > ? AND {token} <= ? LIMIT ?",
    "ring_first": "SELECT {ring_row} FROM {messages} WHERE {token} >= ? AND {token} <= ? LIMIT ?",
    "at_token": "SELECT DISTINCT conversation_id, bucket FROM {messages} WHERE {token} = ?",
    "density": "SELECT {token} FROM {messages} WHERE {token} >= ? LIMIT ?",
    "any": "SELECT id FROM {messages} LIMIT 1",
}


@dataclass(frozen=True, slots=True)
class Statements:
    """The prepared statements of one place, by name."""

    get: Any
    get_in: Any
    put_bucket: Any
    put: Any
    buckets_down: Any
    buckets_up: Any
    newest: Any
    older: Any
    oldest: Any
    newer: Any
    ring: Any
    ring_first: Any
    at_token: Any
    density: Any
    any: Any


class MessagesPlace:
    """``messages<suffix>`` and ``message_buckets<suffix>`` of a keyspace."""

    def __init__(self, session: CassandraSession, keyspace: str, attempt: int, clock: Clock) -> None:
        self.session: Final = session
        self.attempt: Final = attempt
        self._clock = clock
        self._outboxes: dict[int, CassandraOutbox] = {}
        self._keyspace_name = keyspace
        self._keyspace = f'"{keyspace}"'
        self._suffix = f"_{attempt}" if attempt else ""
        self._messages = f"{self._keyspace}.messages{self._suffix}"
        self._buckets = f"{self._keyspace}.message_buckets{self._suffix}"
        self.statements: Statements | None = None
        """Prepared already? Hot paths look here first."""

    async def prepare(self) -> Statements:
        """The statements, prepared at the first use. StaleRoute when the place does not exist."""
        if self.statements is None:
            for table in (f"messages{self._suffix}", f"message_buckets{self._suffix}"):
                if not await self.session.has_table(self._keyspace_name, table):
                    raise StaleRoute(f"{self.session.where}: there is no table {self._keyspace_name}.{table}")
            names = list(_CQL)
            prepared = await asyncio.gather(*(self.session.prepare(self._cql(name)) for name in names))
            self.statements = Statements(**dict(zip(names, prepared, strict=True)))
        return self.statements

    def replicas(self, partition: Partition) -> object | None:
        """Equal for partitions that lie on the same nodes; None where the driver does not know."""
        return self.session.replicas(self._keyspace_name, cells.routing_key(partition))

    def outbox(self, index: int) -> CassandraOutbox:
        """What an index has not taken in yet of this place."""
        if index not in self._outboxes:
            self._outboxes[index] = CassandraOutbox(self.session, self._keyspace_name, self._clock, self.attempt, index)
        return self._outboxes[index]

    async def outboxes(self) -> list[int]:
        """The indexes that have an outbox here."""
        return await outboxes_at(self.session, self._keyspace_name, self.attempt)

    async def create(self) -> None:
        """Make the tables if absent."""
        for cql in place_statements():
            await self.session.change_schema(cql.format(keyspace=self._keyspace, suffix=self._suffix))

    async def drop(self) -> None:
        """Drop the tables if present (a server with auto_snapshot keeps a snapshot)."""
        self.statements = None
        for index in await self.outboxes():
            await self.outbox(index).remove()
        for table in (self._messages, self._buckets):
            await self.session.change_schema(f"DROP TABLE IF EXISTS {table}")
        for name in _CQL:
            self.session.forget(self._cql(name))

    def _cql(self, name: str) -> str:
        return _CQL[name].format(messages=self._messages, buckets=self._buckets, **_FRAGMENTS)
