"""Reading a place along the ring: ranges of tokens, pages by the key of their last row.

The order is the server's own: token, partition key, then the clustering order. A checkpoint names the last row
(token, partition, id) and never the driver's paging state, so it is valid on any node, after any restart, and on a
later version of the server. Pages of the driver are used only within one call, to bound its memory.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from datalayer.errors import InvalidArgument
from datalayer.stores.base import ScanPage
from datalayer.stores.cassandra import cells
from datalayer.stores.cassandra.binding import bound
from datalayer.stores.cassandra.cells import Partition, pack_bigint, pack_int

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from datalayer.domains.record import Record
    from datalayer.stores.cassandra.place import MessagesPlace, Statements

TOKEN_MIN: Final = -(1 << 63)
TOKEN_MAX: Final = (1 << 63) - 1
# What a call may hold: it returns fewer records than asked for rather than more bytes than this.
PAGE_BYTES: Final = 4 * 1024 * 1024
FETCH_ROWS_FIRST: Final = 50
FETCH_ROWS_MAX: Final = 500
DENSITY_WINDOWS: Final = 8
DENSITY_ROWS: Final = 250


class Position(NamedTuple):
    """The last row of a page."""

    token: int
    partition: Partition
    id: bytes

    def text(self) -> str:
        """As a checkpoint keeps it."""
        return f"{self.token}:{self.partition[0].hex()}:{self.partition[1]}:{self.id.hex()}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """InvalidArgument for anything but what ``text`` gave."""
        try:
            token, conversation, bucket, message_id = text.split(":")
            return cls(int(token), (bytes.fromhex(conversation), int(bucket)), bytes.fromhex(message_id))
        except ValueError:
            msg = "the checkpoint of a scan is damaged"
            raise InvalidArgument(msg) from None


class RingScan:
    """The scanning half of a store's port."""

    def __init__(self, place: MessagesPlace) -> None:
        self._place = place
        self._session = place.session

    def plan(self, n: int) -> list[str]:
        """``n`` equal ranges that cover the whole ring, both ends included."""
        width = (1 << 64) // n
        starts = [TOKEN_MIN + width * number for number in range(n)] + [TOKEN_MAX + 1]
        return [f"{low}:{high - 1}" for low, high in pairwise(starts)]

    async def page(self, range_: str, after: str | None, limit: int) -> ScanPage:
        """The next records of a range (see Port.scan)."""
        statements = self._place.statements or await self._place.prepare()
        low, high = _parse_range(range_)
        page = _Filling(limit)
        if after is None:
            await self._along_ring(statements.ring_first, (low, high), page)
        else:
            last = Position.parse(after)
            await self._rest_of_token(statements, last, page)
            if not page.full:
                await self._along_ring(statements.ring, (last.token, high), page)
        token = page.last.text() if page.last is not None else after
        return ScanPage(page.records, token, not page.full)

    async def estimate(self) -> int:
        """Rows by the density of a few windows of the ring; exact for small tables."""
        statements = self._place.statements or await self._place.prepare()
        width = (1 << 64) // DENSITY_WINDOWS
        starts = [TOKEN_MIN + width * number for number in range(DENSITY_WINDOWS)]
        found = await asyncio.gather(*(self._tokens(statements, start) for start in starts))
        if len(found[0]) < DENSITY_ROWS:
            return len(found[0])
        rows = sum(len(tokens) for tokens in found)
        covered = sum(
            (tokens[-1] if len(tokens) == DENSITY_ROWS else TOKEN_MAX) - start + 1
            for start, tokens in zip(starts, found, strict=True)
        )
        return rows * (1 << 64) // covered

    async def _tokens(self, statements: Statements, start: int) -> list[int]:
        values = (pack_bigint(start), pack_int(DENSITY_ROWS))
        return [row[0] for row in await self._session.run(bound(statements.density, values), write=False)]

    async def _along_ring(self, prepared: Any, tokens: tuple[int, int], page: _Filling) -> None:
        values = (pack_bigint(tokens[0]), pack_bigint(tokens[1]), pack_int(page.left + 1))
        async for rows in self._pages(bound(prepared, values), page):
            for token, conversation, bucket, message_id, cell in rows:
                if page.full:
                    return
                page.add(token, (conversation.bytes, bucket), message_id, cell)

    async def _rest_of_token(self, statements: Statements, last: Position, page: _Filling) -> None:
        """The rows behind ``last`` in its partition, then other partitions of the very same token."""
        await self._rest_of_partition(statements, last.token, last.partition, last.id, page)
        if page.full:
            return
        rows = await self._session.run(bound(statements.at_token, (pack_bigint(last.token),)), write=False)
        # The server orders partitions of one token by the bytes of the serialised key.
        behind = cells.routing_key(last.partition)
        same = [(conversation.bytes, bucket) for conversation, bucket in rows]
        for partition in sorted(same, key=cells.routing_key):
            if cells.routing_key(partition) > behind and not page.full:
                await self._rest_of_partition(statements, last.token, partition, None, page)

    async def _rest_of_partition(
        self, statements: Statements, token: int, partition: Partition, below: bytes | None, page: _Filling
    ) -> None:
        key = (partition[0], pack_int(partition[1]))
        left = pack_int(page.left + 1)
        routing = cells.routing_key(partition)
        if below is None:
            statement = bound(statements.newest, (*key, left), routing)
        else:
            statement = bound(statements.older, (*key, below, left), routing)
        async for rows in self._pages(statement, page):
            for message_id, cell in rows:
                if page.full:
                    return
                page.add(token, partition, message_id, cell)

    async def _pages(self, statement: Any, page: _Filling) -> AsyncIterator[list[Any]]:
        state: bytes | None = None
        while True:
            rows, state = await self._session.read_page(statement, page.fetch_rows, state)
            yield rows
            if state is None or page.full:
                return


class _Filling:
    """A page being filled: bounded in rows and in bytes."""

    def __init__(self, limit: int) -> None:
        self.records: list[Record] = []
        self.last: Position | None = None
        self.full = False
        """Another row was seen, or may be there: the range is not done."""
        self._limit = limit
        self._bytes = 0

    @property
    def left(self) -> int:
        return self._limit - len(self.records)

    @property
    def fetch_rows(self) -> int:
        """Rows of the next request, by the size of those seen."""
        if not self.records:
            return min(FETCH_ROWS_FIRST, self._limit + 1)
        average = max(1, self._bytes // len(self.records))
        room = max(0, PAGE_BYTES - self._bytes)
        return max(1, min(FETCH_ROWS_MAX, self.left + 1, room // average + 1))

    def add(self, token: int, partition: Partition, message_id: UUID, cell: str) -> None:
        """Take a row, or see that the page is full without it."""
        if self.left <= 0 or self._bytes >= PAGE_BYTES:
            self.full = True
            return
        key = message_id.bytes
        self.records.append(cells.decode(partition[0], key, cell))
        self.last = Position(token, partition, key)
        self._bytes += len(cell)


def _parse_range(text: str) -> tuple[int, int]:
    try:
        low, high = text.split(":")
        return int(low), int(high)
    except ValueError:
        msg = "the range of a scan is damaged"
        raise InvalidArgument(msg) from None
