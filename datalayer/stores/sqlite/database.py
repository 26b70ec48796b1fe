"""One SQLite file: readers in threads, one writer thread, WAL. Several processes may share the file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from datalayer.clock import Deadline
from datalayer.errors import Closed, DatalayerError, OutcomeUnknown
from datalayer.stores.sqlite.calls import Call, Mailbox
from datalayer.stores.sqlite.threads import Connector, Lease, Step, Worker, Writer, over

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from datalayer.clock import Clock
    from datalayer.stores.sql.database import Dialect, Row

T = TypeVar("T")
TIMEOUT_S: Final = 30.0
"""For a call that brings no deadline."""
STREAM_S: Final = 86_400.0
READERS: Final = 2
ROLLBACK_S: Final = 5.0


class SqliteDatabase:
    """``SqlDatabase`` over a file; threads start with the first call, which also makes the file.

    ``fetch`` runs on a reader and sees every write acknowledged before it began. ``run`` and ``transaction`` go
    through the one writer in the order of their calls. A call belongs to the event loop that made the first one.
    After a fork the child's calls raise Closed.
    """

    dialect: Dialect = "sqlite"

    def __init__(self, path: Path, clock: Clock, *, readers: int = READERS, synchronous: str = "FULL") -> None:
        self._connector = Connector(path, synchronous)
        self._clock = clock
        self._readers = readers
        self._reads: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._writes: queue.SimpleQueue[Call | Lease | None] = queue.SimpleQueue()
        self._mailbox: Mailbox | None = None
        self._workers: list[Worker] = []
        self._pid = 0
        self._closed = False

    @property
    def path(self) -> Path:
        """The file."""
        return self._connector.path

    async def fetch(self, sql: str, params: Sequence[Any] = (), *, deadline: Deadline | None = None) -> list[Row]:
        mailbox = self._open_mailbox()
        call = self._call(mailbox, deadline)
        call.sql = sql
        call.params = params
        self._reads.put(call)
        rows: list[Row] = await mailbox.outcome(call)
        return rows

    async def run(self, sql: str, params: Sequence[Any] = (), *, deadline: Deadline | None = None) -> list[Row]:
        mailbox = self._open_mailbox()
        call = self._call(mailbox, deadline)
        call.sql = sql
        call.params = params
        call.late = OutcomeUnknown
        self._writes.put(call)
        rows: list[Row] = await mailbox.outcome(call)
        return rows

    def transaction(self, *, deadline: Deadline | None = None) -> SqliteTransaction:
        mailbox = self._open_mailbox()
        return SqliteTransaction(mailbox, self._writes, deadline or Deadline(self._clock, TIMEOUT_S), self._clock)

    async def read(self, work: Callable[[sqlite3.Connection], T], *, deadline: Deadline | None = None) -> T:
        """Run ``work`` with a reader's connection on its thread."""
        mailbox = self._open_mailbox()
        call = self._call(mailbox, deadline)
        call.work = work
        self._reads.put(call)
        result: T = await mailbox.outcome(call)
        return result

    async def write(self, work: Callable[[sqlite3.Connection], T], *, deadline: Deadline | None = None) -> T:
        """Run ``work`` on the writer's thread as one transaction; an exception of it rolls back.

        One hop between threads, where ``transaction`` takes one for each statement. ``work`` raises the library's
        errors or the driver's; it may not touch the event loop.
        """
        mailbox = self._open_mailbox()
        call = self._call(mailbox, deadline)
        call.work = work
        call.late = OutcomeUnknown
        self._writes.put(call)
        result: T = await mailbox.outcome(call)
        return result

    async def stream(self, sql: str, params: Sequence[Any] = (), *, batch: int = 1000) -> AsyncIterator[list[Row]]:
        mailbox = self._open_mailbox()
        # A thread of its own: a long read may not keep a reader from others.
        jobs: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        worker = Worker(self._connector, mailbox, jobs, read_only=True)
        cursors: list[sqlite3.Cursor] = []

        def next_rows(connection: sqlite3.Connection) -> list[Row]:
            if not cursors:
                cursors.append(connection.execute(sql, params))
            return cursors[0].fetchmany(batch)

        try:
            while True:
                call = Call(mailbox.loop.create_future(), Deadline(self._clock, STREAM_S))
                call.work = next_rows
                jobs.put(call)
                rows: list[Row] = await mailbox.outcome(call)
                if not rows:
                    return
                yield rows
        finally:
            worker.stop()
            jobs.put(None)

    async def listen(self, channel: str, callback: Callable[[], None]) -> bool:
        return False

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        workers, self._workers = self._workers, []
        if not workers or os.getpid() != self._pid:
            return  # threads do not survive a fork, and an inherited connection must not be closed
        for worker in workers:
            worker.stop()
            (self._writes if isinstance(worker, Writer) else self._reads).put(None)
        for worker in workers:
            await asyncio.to_thread(worker.join)

    def _call(self, mailbox: Mailbox, deadline: Deadline | None) -> Call:
        return Call(mailbox.loop.create_future(), deadline or Deadline(self._clock, TIMEOUT_S))

    def _open_mailbox(self) -> Mailbox:
        if self._mailbox is None or self._closed or self._pid != os.getpid():
            return self._start()
        return self._mailbox

    def _start(self) -> Mailbox:
        if self._closed or self._pid not in {0, os.getpid()}:
            raise Closed
        self._pid = os.getpid()
        self._mailbox = mailbox = Mailbox(asyncio.get_running_loop())
        self._workers = [Writer(self._connector, mailbox, self._writes)]
        self._workers += [Worker(self._connector, mailbox, self._reads, read_only=True) for _ in range(self._readers)]
        return mailbox


class SqliteTransaction:
    """One BEGIN IMMEDIATE .. COMMIT on the writer; ``async with`` it, once."""

    def __init__(
        self, mailbox: Mailbox, writes: queue.SimpleQueue[Call | Lease | None], deadline: Deadline, clock: Clock
    ) -> None:
        self._mailbox = mailbox
        self._writes = writes
        self._deadline = deadline
        self._clock = clock
        self._lease: Lease | None = None

    async def __aenter__(self) -> Self:
        assert self._lease is None, "a transaction is entered once"
        begin = self._call()
        self._lease = Lease(begin)
        self._writes.put(self._lease)
        try:
            await self._mailbox.outcome(begin)
        except asyncio.CancelledError:
            # It may have begun while its caller was cancelled.
            self._lease.put(self._last_call(), Step.ROLLBACK)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            commit = self._call()
            commit.late = OutcomeUnknown
            await self._send(commit, Step.COMMIT)
            return
        assert self._lease is not None, "a transaction is entered before it is left"
        call = self._last_call()
        if self._lease.put(call, Step.ROLLBACK):
            with contextlib.suppress(DatalayerError):  # the error that leaves the block says more
                await self._mailbox.outcome(call)

    async def run(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        call = self._call()
        call.work = lambda connection: connection.execute(sql, params).fetchall()
        rows: list[Row] = await self._send(call)
        return rows

    async def run_many(self, sql: str, params: Sequence[Sequence[Any]]) -> None:
        call = self._call()
        call.work = lambda connection: _many(connection, sql, params)
        await self._send(call)

    def _call(self) -> Call:
        return Call(self._mailbox.loop.create_future(), self._deadline)

    def _last_call(self) -> Call:
        # The deadline may be over, which is why it is rolled back.
        return Call(self._mailbox.loop.create_future(), Deadline(self._clock, ROLLBACK_S))

    async def _send(self, call: Call, step: Step | None = None) -> Any:
        assert self._lease is not None, "a transaction is entered before it is used"
        if not self._lease.put(call, step):
            raise over()
        return await self._mailbox.outcome(call)


def _many(connection: sqlite3.Connection, sql: str, params: Sequence[Sequence[Any]]) -> None:
    connection.executemany(sql, params)
