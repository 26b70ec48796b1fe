"""The messages store: the port, and the typed reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains.messages import KINDS
from datalayer.errors import SchemaBehind, StaleRoute
from datalayer.stores.cassandra import cells
from datalayer.stores.cassandra.binding import bound, packed_list
from datalayer.stores.cassandra.bulk import BulkWriter
from datalayer.stores.cassandra.cells import pack_int
from datalayer.stores.cassandra.history import HistoryQuery, HistoryReader
from datalayer.stores.cassandra.place import MessagesPlace
from datalayer.stores.cassandra.scan import RingScan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.clock import Deadline
    from datalayer.domains.record import Key, Kind, Record
    from datalayer.stores.base import ScanPage
    from datalayer.stores.cassandra.cells import Partition
    from datalayer.stores.cassandra.outbox import CassandraOutbox
    from datalayer.stores.cassandra.place import Statements
    from datalayer.types import Message

IN_LIST_MAX: Final = 100
FETCH_PARALLEL: Final = 32


class CassandraMessages:
    """Port + MessageReads of one place of the messages domain."""

    kinds: Sequence[Kind] = KINDS

    def __init__(self, place: MessagesPlace) -> None:
        self._place = place
        self._session = place.session
        self._writer = BulkWriter(place)
        self._ring = RingScan(place)
        self._history = HistoryReader(place)

    # --- the port ---

    async def create(self) -> None:
        await self._place.create()

    async def drop(self) -> None:
        self._writer.forget_buckets()
        await self._place.drop()

    async def empty(self) -> bool:
        try:
            statements = self._place.statements or await self._place.prepare()
            return not await self._session.run(bound(statements.any, ()), write=False)
        except StaleRoute as error:
            raise SchemaBehind(error.message, hint="run `datalayer schema upgrade`") from error

    async def plan_scan(self, n: int) -> list[str]:
        return self._ring.plan(n)

    async def scan(self, range_: str, after: str | None, limit: int) -> ScanPage:
        return await self._ring.page(range_, after, limit)

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        found = await self._rows([key for _, key in keys], None)
        return {("message", key): cells.decode(key[:16], key[16:], cell) for key, cell in found}

    async def apply(self, records: Sequence[Record]) -> None:
        if records:
            await self._writer.apply(records)

    async def estimate(self) -> int:
        return await self._ring.estimate()

    def check(self, record: Record) -> str | None:
        try:
            return cells.unstorable(record, len(cells.encode(record)))
        except UnicodeEncodeError as error:
            return f"the text holds a lone surrogate at position {error.start}"

    def outbox(self, index: int) -> CassandraOutbox:
        """What an index has not taken in yet of this place: whoever writes must tell it first."""
        return self._place.outbox(index)

    async def outboxes(self) -> list[int]:
        """The indexes that have an outbox here."""
        return await self._place.outboxes()

    # --- typed reads ---

    async def get(self, conversation_id: UUID, message_id: UUID, deadline: Deadline) -> Message | None:
        statements = self._place.statements or await self._place.prepare()
        statement = _get(statements, conversation_id.bytes + message_id.bytes)
        rows = await self._session.run(statement, write=False, deadline=deadline)
        return cells.message_of(conversation_id, message_id, rows[0][0]) if rows else None

    async def get_many(self, keys: Sequence[tuple[UUID, UUID]], deadline: Deadline) -> list[Message]:
        found = await self._rows([conversation.bytes + one.bytes for conversation, one in keys], deadline)
        return [cells.message_of(UUID(bytes=key[:16]), UUID(bytes=key[16:]), cell) for key, cell in found]

    async def history(
        self,
        conversation_id: UUID,
        limit: int,
        deadline: Deadline,
        *,
        after: UUID | None = None,
        oldest_first: bool = False,
        include_deleted: bool = False,
    ) -> list[Message]:
        query = HistoryQuery(conversation_id, limit, deadline, after, oldest_first, include_deleted)
        return await self._history.read(query)

    # --- shared ---

    def forget_buckets(self) -> None:
        """A node was lost: what it confirmed may be gone (see ``bulk``)."""
        self._writer.forget_buckets()

    async def _rows(self, keys: Sequence[bytes], deadline: Deadline | None) -> list[tuple[bytes, str]]:
        """(key, cell) of those that exist, by one request for each partition."""
        statements = self._place.statements or await self._place.prepare()
        if len(keys) == 1:
            rows = await self._session.run(_get(statements, keys[0]), write=False, deadline=deadline)
            return [(keys[0], row[0]) for row in rows]
        by_partition: dict[Partition, set[bytes]] = {}
        for key in keys:
            by_partition.setdefault(cells.partition_of(key), set()).add(key[16:])
        found: list[tuple[bytes, str]] = []
        room = asyncio.Semaphore(FETCH_PARALLEL)

        async def read(partition: Partition, ids: list[bytes]) -> None:
            values = (partition[0], pack_int(partition[1]), packed_list(ids))
            statement = bound(statements.get_in, values, cells.routing_key(partition))
            async with room:
                rows = await self._session.run(statement, write=False, deadline=deadline)
            found.extend((partition[0] + message_id.bytes, cell) for message_id, cell in rows)

        parts = [(partition, sorted(wanted)) for partition, wanted in by_partition.items()]
        await asyncio.gather(
            *(
                read(partition, ids[at : at + IN_LIST_MAX])
                for partition, ids in parts
                for at in range(0, len(ids), IN_LIST_MAX)
            )
        )
        return found


def _get(statements: Statements, key: bytes) -> Any:
    partition = cells.partition_of(key)
    return bound(statements.get, (key[:16], pack_int(partition[1]), key[16:]), cells.routing_key(partition))
