"""A conversation's messages in order, over its non-empty buckets.

The table of buckets says where to look, so that a conversation with eight messages over years costs a few requests
and not a hundred. One bucket is read first; when it turns out to be thin, several at a time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from datalayer.stores.cassandra import cells
from datalayer.stores.cassandra.binding import bound
from datalayer.stores.cassandra.cells import pack_int

if TYPE_CHECKING:
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.stores.cassandra.place import MessagesPlace, Statements
    from datalayer.types import Message

BUCKETS_PAGE: Final = 200
PARALLEL_BUCKETS_MAX: Final = 8
_BUCKET_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """What ``MessageReads.history`` asks for."""

    conversation_id: UUID
    limit: int
    deadline: Deadline
    after: UUID | None
    oldest_first: bool
    include_deleted: bool


class HistoryReader:
    """Answers history queries on one place."""

    def __init__(self, place: MessagesPlace) -> None:
        self._place = place
        self._session = place.session

    async def read(self, query: HistoryQuery) -> list[Message]:
        """At most ``limit`` messages beyond ``after``, filled to the limit."""
        statements = self._place.statements or await self._place.prepare()
        found: list[Message] = []
        start = self._first_bucket(query)
        read = 0
        parallel = 1
        while True:
            buckets = await self._buckets(statements, query, start)
            at = 0
            while at < len(buckets) and len(found) < query.limit:
                wave = buckets[at : at + parallel]
                at += len(wave)
                missing = query.limit - len(found)
                for part in await asyncio.gather(*(self._bucket(statements, query, one, missing) for one in wave)):
                    found += part
                read += len(wave)
                # As many as will be needed if the others hold as much; so a wave reads little beyond the limit.
                rows_each = max(1, len(found) // read)
                parallel = max(1, min(PARALLEL_BUCKETS_MAX, (query.limit - len(found)) // rows_each))
            if len(found) >= query.limit or len(buckets) < BUCKETS_PAGE:
                return found[: query.limit]
            start = buckets[-1] + (1 if query.oldest_first else -1)

    def _first_bucket(self, query: HistoryQuery) -> int:
        if query.after is not None:
            return cells.bucket_of(query.after.bytes)
        return 0 if query.oldest_first else _BUCKET_MAX

    async def _buckets(self, statements: Statements, query: HistoryQuery, start: int) -> list[int]:
        conversation = query.conversation_id.bytes
        prepared = statements.buckets_up if query.oldest_first else statements.buckets_down
        values = (conversation, pack_int(start), pack_int(BUCKETS_PAGE))
        rows = await self._session.run(bound(prepared, values, conversation), write=False, deadline=query.deadline)
        return [row[0] for row in rows]

    async def _bucket(self, statements: Statements, query: HistoryQuery, bucket: int, want: int) -> list[Message]:
        """At most ``want`` messages of one bucket; read again behind the last row while deleted ones leave room."""
        found: list[Message] = []
        after = query.after
        while True:
            missing = want - len(found)
            # A few more than missing, so that a deleted message seldom costs a second request.
            ask = missing if query.include_deleted else missing + missing // 16
            rows = await self._rows(statements, query, bucket, (after, ask))
            for message_id, cell in rows:
                message = cells.message_of(query.conversation_id, message_id, cell)
                if query.include_deleted or not message.deleted:
                    found.append(message)
                    if len(found) == want:
                        return found
            if len(rows) < ask:
                return found
            after = rows[-1][0]

    async def _rows(
        self, statements: Statements, query: HistoryQuery, bucket: int, page: tuple[UUID | None, int]
    ) -> list[tuple[Any, ...]]:
        after, ask = page
        partition = (query.conversation_id.bytes, bucket)
        key = (partition[0], pack_int(bucket))
        if after is None:
            prepared = statements.oldest if query.oldest_first else statements.newest
            values: tuple[bytes, ...] = (*key, pack_int(ask))
        else:
            prepared = statements.newer if query.oldest_first else statements.older
            values = (*key, after.bytes, pack_int(ask))
        statement = bound(prepared, values, cells.routing_key(partition))
        return await self._session.run(statement, write=False, deadline=query.deadline)
