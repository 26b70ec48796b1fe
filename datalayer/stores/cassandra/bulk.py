"""Applying many records: unlogged batches per partition, many in flight, each row with its own timestamp.

The bucket row of a partition is confirmed before its first record is sent: a crash in between leaves a bucket that
is empty, never a record that history cannot see. Confirmed buckets are remembered within a bound; the memory is
dropped when a node was lost, because a server without a durable commit log may have forgotten what it confirmed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from cassandra.query import BatchStatement, BatchType

from datalayer.errors import DatalayerError, OutcomeUnknown, Quarantine, Unavailable
from datalayer.stores.cassandra import cells
from datalayer.stores.cassandra.cells import Partition
from datalayer.stores.cassandra.failures import Refused
from datalayer.stores.cassandra.place import bound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from datalayer.domains.record import Key, Record
    from datalayer.stores.cassandra.place import MessagesPlace, Statements
    from datalayer.stores.cassandra.session import CassandraSession

BATCH_ROWS_MAX: Final = 100
# A batch of one partition is one mutation: Cassandra's batch_size_fail_threshold does not apply to it, ScyllaDB's
# (1 MiB) does. Measured: beyond 64 KiB throughput no longer rises.
BATCH_BYTES_MAX: Final = 64 * 1024
IN_FLIGHT_BATCHES: Final = 32
KNOWN_BUCKETS_MAX: Final = 100_000

Row = tuple[bytes, bytes, bytes, bytes, bytes]
"""The serialised values of ``put``: conversation, bucket, id, cell, timestamp."""


class Batch:
    """Rows of one partition that travel in one request."""

    __slots__ = ("partition", "rows", "size")

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.rows: list[Row] = []
        self.size = 0

    def halves(self) -> Iterator[Batch]:
        """Two batches of half the rows."""
        middle = len(self.rows) // 2
        for rows in (self.rows[:middle], self.rows[middle:]):
            half = Batch(self.partition)
            half.rows = rows
            yield half


class BulkWriter:
    """``Port.apply`` of one place."""

    def __init__(self, place: MessagesPlace) -> None:
        self._place = place
        self._session = place.session
        self._known: dict[Partition, None] = {}

    def forget_buckets(self) -> None:
        """No bucket row is known to exist any more."""
        self._known.clear()

    async def apply(self, records: Sequence[Record]) -> None:
        """Store each record whose version is newer than what is stored (see Port.apply)."""
        statements = self._place.statements or await self._place.prepare()
        if len(records) == 1:
            await self._apply_one(statements, records[0])
            return
        rejected: dict[Key, str] = {}
        batches = _group(records, rejected)
        await self._put_buckets(statements, {batch.partition for batch in batches})
        rejected.update(await self._put_batches(statements, batches))
        if rejected:
            raise Quarantine(rejected)

    async def _apply_one(self, statements: Statements, record: Record) -> None:
        row, reason = _row(record)
        if row is None:
            raise Quarantine({record.ident: reason})
        partition = cells.partition_of(record.key)
        if partition not in self._known:
            await self._put_buckets(statements, {partition})
        try:
            await self._session.run(_statement(statements, partition, [row]), write=True)
        except Refused as error:
            raise Quarantine({record.ident: error.message}) from error

    async def _put_buckets(self, statements: Statements, partitions: set[Partition]) -> None:
        new = [partition for partition in partitions if partition not in self._known]
        if not new:
            return
        rows = (bound(statements.put_bucket, (key, cells.pack_int(bucket)), key) for key, bucket in new)
        window = _Window(self._session)
        try:
            await window.send_all(rows)
        except OutcomeUnknown as error:
            # The records themselves were not sent yet.
            raise Unavailable(error.message) from error
        for future in window.sent:
            future.result()
        self._remember(new)

    def _remember(self, partitions: Sequence[Partition]) -> None:
        self._known.update(dict.fromkeys(partitions))
        while len(self._known) > KNOWN_BUCKETS_MAX:
            del self._known[next(iter(self._known))]

    async def _put_batches(self, statements: Statements, batches: Sequence[Batch]) -> dict[Key, str]:
        """Send all; what the server refuses is halved until the record at fault stands alone. Those, by key."""
        rejected: dict[Key, str] = {}
        todo: list[Batch] = list(batches)
        while todo:
            again: list[Batch] = []
            for batch, error in await self._send(statements, todo):
                if len(batch.rows) > 1:
                    again += batch.halves()
                else:
                    row = batch.rows[0]
                    rejected["message", row[0] + row[2]] = error.message
            todo = again
        return rejected

    async def _send(self, statements: Statements, batches: Sequence[Batch]) -> list[tuple[Batch, Refused]]:
        """Send batches; those that the server refuses."""
        window = _Window(self._session)
        await window.send_all(_statement(statements, batch.partition, batch.rows) for batch in batches)
        answers = zip(batches, window.sent, strict=True)
        return [(batch, error) for batch, future in answers if isinstance(error := future.exception(), Refused)]


class _Window:
    """Sends statements, ``IN_FLIGHT_BATCHES`` at a time."""

    def __init__(self, session: CassandraSession) -> None:
        self.sent: list[asyncio.Future[Any]] = []
        self._session = session
        self._room = asyncio.Semaphore(IN_FLIGHT_BATCHES)
        self._failure: DatalayerError | None = None
        self._confirmed = False

    async def send_all(self, statements: Iterable[Any]) -> None:
        """Send each and wait for every answer; a refusal is left in its future.

        Stops at the first failure, after everything sent has been answered. Raises OutcomeUnknown as soon as any of
        several was confirmed or is unknown: "nothing was written" would be wrong then.
        """
        for statement in statements:
            await self._room.acquire()
            if self._failure is not None:
                break
            try:
                future = await self._session.begin(statement, write=True)
            except DatalayerError as error:
                self._note(error)
                break
            future.add_done_callback(self._answered)
            self.sent.append(future)
            # Building a batch takes about half a millisecond: others get their turn in between.
            await asyncio.sleep(0)
        if self.sent:
            await asyncio.wait(self.sent)
        failure = self._failure
        if failure is None:
            return
        if self._confirmed and isinstance(failure, Unavailable):
            raise OutcomeUnknown(f"some of the records were stored: {failure.message}") from failure
        raise failure

    def _answered(self, future: asyncio.Future[Any]) -> None:
        self._room.release()
        error = None if future.cancelled() else future.exception()
        if error is None:
            self._confirmed = True
        elif isinstance(error, DatalayerError) and not isinstance(error, Refused):
            self._note(error)

    def _note(self, error: DatalayerError) -> None:
        if self._failure is None or isinstance(error, OutcomeUnknown):
            self._failure = error


def _group(records: Sequence[Record], rejected: dict[Key, str]) -> list[Batch]:
    """Batches by partition; records that cannot be stored go to ``rejected``."""
    batches: list[Batch] = []
    filling: dict[Partition, Batch] = {}
    for record in records:
        row, reason = _row(record)
        if row is None:
            rejected[record.ident] = reason
            continue
        size = len(row[3]) + 80
        partition = cells.partition_of(record.key)
        batch = filling.get(partition)
        if batch is None or len(batch.rows) >= BATCH_ROWS_MAX or batch.size + size > BATCH_BYTES_MAX:
            batch = filling[partition] = Batch(partition)
            batches.append(batch)
        batch.rows.append(row)
        batch.size += size
    return batches


def _row(record: Record) -> tuple[Row | None, str]:
    try:
        cell = cells.encode(record)
    except UnicodeEncodeError as error:
        return None, f"the text holds a lone surrogate at position {error.start}"
    reason = cells.unstorable(record, len(cell))
    if reason is not None:
        return None, reason
    key = record.key
    bucket = cells.pack_int(cells.bucket_of(key[16:]))
    return (key[:16], bucket, key[16:], cell, cells.pack_bigint(record.version)), ""


def _statement(statements: Statements, partition: Partition, rows: Sequence[Row]) -> Any:
    """One insert, or an unlogged batch of them. The batch takes over the values, so one carrier serves all rows."""
    carrier = bound(statements.put, rows[0], cells.routing_key(partition))
    if len(rows) == 1:
        return carrier
    batch = BatchStatement(batch_type=BatchType.UNLOGGED)
    for row in rows:
        carrier.values = row
        batch.add(carrier)
    return batch
