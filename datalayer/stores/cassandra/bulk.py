"""Applying many records: unlogged batches per partition, many in flight, each row with its own timestamp.

What is left of a partition is often a few short rows, and a request costs the client as much as twenty of them. So
such remainders share a request, as long as one replica set holds them all and the batch stays below the sizes at which
a server complains of batches over several partitions.

The bucket row of a partition is confirmed before its first record is sent: a crash in between leaves a bucket that
is empty, never a record that history cannot see. Bucket rows travel a few ahead of their records, so that the wait
for them is hidden. Confirmed buckets are remembered within a bound; the memory is dropped when a node was lost,
because a server without a durable commit log may have forgotten what it confirmed.

Records are encoded when their batch is built, between requests, so that the event loop is never held for long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from cassandra.query import BatchStatement, BatchType

from datalayer.errors import DatalayerError, OutcomeUnknown, Quarantine, Unavailable
from datalayer.stores.cassandra import cells
from datalayer.stores.cassandra.binding import bound
from datalayer.stores.cassandra.cells import Partition
from datalayer.stores.cassandra.failures import Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from datalayer.domains.record import Key, Record
    from datalayer.stores.cassandra.place import MessagesPlace, Statements
    from datalayer.stores.cassandra.session import CassandraSession

BATCH_ROWS_MAX: Final = 100
# A batch of one partition is one mutation: Cassandra's batch_size_fail_threshold does not apply to it, ScyllaDB's
# (1 MiB) does.
BATCH_BYTES_MAX: Final = 64 * 1024
# The server warns of batches over several partitions beyond 5 KiB (batch_size_warn_threshold) or ten partitions.
SHARED_BYTES_MAX: Final = 4 * 1024
SHARED_PARTITIONS_MAX: Final = 10
ROW_BYTES: Final = 80
"""What a row adds to its cell in a request, about."""
IN_FLIGHT_BATCHES: Final = 64
# Beyond ten partitions in one unlogged batch the server warns. These rows are tiny, so one request carries ten.
BUCKETS_PER_BATCH: Final = 10
BUCKET_BATCHES_AHEAD: Final = 8
KNOWN_BUCKETS_MAX: Final = 100_000
# Others get a turn on the event loop after work worth about a millisecond: a row counts one, a request ten.
TURN_COST: Final = 100
REQUEST_COST: Final = 10

Row = tuple[bytes, bytes, bytes, bytes, bytes]
"""The serialised values of ``put``: conversation, bucket, id, cell, timestamp."""
Rows = list[Row]
Rejected = dict["Key", str]


class BulkWriter:
    """``Port.apply`` of one place."""

    def __init__(self, place: MessagesPlace) -> None:
        self._place = place
        self._session = place.session
        self._known: dict[Partition, None] = {}
        self._losses = 0

    def forget_buckets(self) -> None:
        """No bucket row is known to exist any more, also of those confirmed in a moment."""
        self._losses += 1
        self._known.clear()

    async def apply(self, records: Sequence[Record]) -> None:
        """Store each record whose version is newer than what is stored (see Port.apply)."""
        statements = self._place.statements or await self._place.prepare()
        if len(records) == 1:
            await self._apply_one(statements, records[0])
            return
        rejected: Rejected = {}
        sending = _Sending(self._session, statements)
        try:
            async for rows in self._batches(statements, records, rejected):
                await sending.send(rows)
        except DatalayerError as error:
            sending.note(error)
        refused = await sending.finish()
        while refused:
            sending = _Sending(self._session, statements)
            for rows, reason in refused:
                if len(rows) == 1:
                    rejected["message", rows[0][0] + rows[0][2]] = reason
                    continue
                middle = len(rows) // 2
                for half in (rows[:middle], rows[middle:]):
                    await sending.send(half)
            refused = await sending.finish()
        if rejected:
            raise Quarantine(rejected)

    async def _apply_one(self, statements: Statements, record: Record) -> None:
        partition = cells.partition_of(record.key)
        row, reason = _row(record, cells.pack_int(partition[1]))
        if row is None:
            raise Quarantine({record.ident: reason})
        if partition not in self._known:
            losses = self._losses
            statement = bound(statements.put_bucket, row[:2], row[0])
            try:
                await self._session.run(statement, write=True)
            except OutcomeUnknown as error:
                # The record itself was not sent yet.
                raise Unavailable(error.message) from error
            self._remember((partition,), losses)
        try:
            await self._session.run(_insert(statements, [row]), write=True)
        except Refused as error:
            raise Quarantine({record.ident: error.message}) from error

    async def _batches(
        self, statements: Statements, records: Sequence[Record], rejected: Rejected
    ) -> AsyncIterator[Rows]:
        by_partition: dict[Partition, list[Record]] = {}
        for record in records:
            by_partition.setdefault(cells.partition_of(record.key), []).append(record)
        shared: dict[object, _Shared] = {}
        async for partition in self._with_bucket(statements, by_partition):
            for rows, size in _rows(partition, by_partition[partition], rejected):
                replicas = self._place.replicas(partition) if size <= SHARED_BYTES_MAX else None
                if replicas is None:
                    yield rows
                    continue
                sharing = shared.get(replicas)
                if sharing is None or not sharing.take(rows, size):
                    shared[replicas] = _Shared(rows, size)
                    if sharing is not None:
                        yield sharing.rows
        for sharing in shared.values():
            yield sharing.rows

    async def _with_bucket(
        self, statements: Statements, partitions: dict[Partition, list[Record]]
    ) -> AsyncIterator[Partition]:
        """Each partition once its bucket row is confirmed; those known already first."""
        new = [partition for partition in partitions if partition not in self._known]
        ahead: deque[tuple[asyncio.Future[Any], int, list[Partition]]] = deque()
        at = 0
        while at < len(new) and len(ahead) < BUCKET_BATCHES_AHEAD:
            ahead.append(await self._put_buckets(statements, new[at : at + BUCKETS_PER_BATCH]))
            at += BUCKETS_PER_BATCH
        missing = set(new)
        for partition in partitions:
            if partition not in missing:
                yield partition
        while ahead:
            future, losses, confirmed = ahead.popleft()
            try:
                await future
            except OutcomeUnknown as error:
                raise Unavailable(error.message) from error
            self._remember(confirmed, losses)
            if at < len(new):
                ahead.append(await self._put_buckets(statements, new[at : at + BUCKETS_PER_BATCH]))
                at += BUCKETS_PER_BATCH
            for partition in confirmed:
                yield partition

    async def _put_buckets(
        self, statements: Statements, partitions: list[Partition]
    ) -> tuple[asyncio.Future[Any], int, list[Partition]]:
        batch = BatchStatement(batch_type=BatchType.UNLOGGED)
        for conversation, bucket in partitions:
            batch.add(bound(statements.put_bucket, (conversation, cells.pack_int(bucket)), conversation))
        future = await self._session.begin(batch, write=True)
        future.add_done_callback(_look_at)
        return future, self._losses, partitions

    def _remember(self, partitions: Sequence[Partition], losses: int) -> None:
        if losses != self._losses:
            return
        self._known.update(dict.fromkeys(partitions))
        while len(self._known) > KNOWN_BUCKETS_MAX:
            del self._known[next(iter(self._known))]


class _Shared:
    """Rows of several partitions that will travel in one request."""

    __slots__ = ("_partitions", "_size", "rows")

    def __init__(self, rows: Rows, size: int) -> None:
        self.rows = rows
        self._size = size
        self._partitions = 1

    def take(self, rows: Rows, size: int) -> bool:
        """Take in the rows of one more partition, where there is room for them."""
        if self._size + size > SHARED_BYTES_MAX or self._partitions >= SHARED_PARTITIONS_MAX:
            return False
        self.rows += rows
        self._size += size
        self._partitions += 1
        return True


class _Sending:
    """Batches on their way, ``IN_FLIGHT_BATCHES`` at a time."""

    def __init__(self, session: CassandraSession, statements: Statements) -> None:
        self._session = session
        self._statements = statements
        self._room = asyncio.Semaphore(IN_FLIGHT_BATCHES)
        self._on_the_way: set[asyncio.Future[Any]] = set()
        self._failure: DatalayerError | None = None
        self._confirmed = False
        self._refused: list[tuple[Rows, str]] = []
        self._turn = 0

    async def send(self, rows: Rows) -> None:
        """Send one batch as soon as there is room. Raises the first failure of any that was sent."""
        await self._room.acquire()
        if self._failure is not None:
            raise self._failure
        statement = _insert(self._statements, rows)
        future = await self._session.begin(statement, write=True)
        self._on_the_way.add(future)
        future.add_done_callback(lambda done: self._answered(done, rows))
        self._turn += len(rows) + REQUEST_COST
        if self._turn >= TURN_COST:
            self._turn = 0
            await asyncio.sleep(0)

    async def finish(self) -> list[tuple[Rows, str]]:
        """Wait for every answer; the batches that the server refuses, with its reason.

        OutcomeUnknown when any of several was confirmed or is unknown: "nothing was written" would be wrong then.
        """
        if self._on_the_way:
            await asyncio.wait(self._on_the_way)
            # Futures call back in the order of registration, so _answered has run for each of them.
        failure = self._failure
        if failure is None:
            return self._refused
        if self._confirmed and isinstance(failure, Unavailable):
            raise OutcomeUnknown(f"some of the records were stored: {failure.message}") from failure
        raise failure

    def note(self, error: DatalayerError) -> None:
        """A failure; an unknown outcome outweighs the others."""
        if self._failure is None or isinstance(error, OutcomeUnknown):
            self._failure = error

    def _answered(self, future: asyncio.Future[Any], rows: Rows) -> None:
        self._on_the_way.discard(future)
        self._room.release()
        error = None if future.cancelled() else future.exception()
        if error is None:
            self._confirmed = True
        elif isinstance(error, Refused):
            self._refused.append((rows, error.message))
        elif isinstance(error, DatalayerError):
            self.note(error)


def _rows(partition: Partition, records: Sequence[Record], rejected: Rejected) -> Iterator[tuple[Rows, int]]:
    """The rows of one partition, in batches with their sizes; records that cannot be stored go to ``rejected``."""
    bucket = cells.pack_int(partition[1])
    rows: Rows = []
    size = 0
    for record in records:
        row, reason = _row(record, bucket)
        if row is None:
            rejected[record.ident] = reason
            continue
        row_size = len(row[3]) + ROW_BYTES
        if rows and (len(rows) >= BATCH_ROWS_MAX or size + row_size > BATCH_BYTES_MAX):
            yield rows, size
            rows, size = [], 0
        rows.append(row)
        size += row_size
    if rows:
        yield rows, size


def _row(record: Record, bucket: bytes) -> tuple[Row | None, str]:
    try:
        cell = cells.encode(record)
    except UnicodeEncodeError as error:
        return None, f"the text holds a lone surrogate at position {error.start}"
    reason = cells.unstorable(record, len(cell))
    if reason is not None:
        return None, reason
    key = record.key
    return (key[:16], bucket, key[16:], cell, cells.pack_bigint(record.version)), ""


def _insert(statements: Statements, rows: Rows) -> Any:
    """One insert, or an unlogged batch of them. The batch takes over the values, so one carrier serves all rows."""
    first = rows[0]
    carrier = bound(statements.put, first, cells.routing_key_of(first[0], first[1]))
    if len(rows) == 1:
        return carrier
    batch = BatchStatement(batch_type=BatchType.UNLOGGED)
    for row in rows:
        carrier.values = row
        batch.add(carrier)
    return batch


def _look_at(future: asyncio.Future[Any]) -> None:
    """An abandoned request's failure is nobody's: take it, so that it is not reported as forgotten."""
    if not future.cancelled():
        future.exception()
