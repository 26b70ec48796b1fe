"""The threads of one SQLite database: readers, and the one writer of this process.

The writer takes what is queued as a group: one BEGIN IMMEDIATE, each statement, one COMMIT, so that callers at the
same time share one fsync. A statement that fails (a fence, a constraint) undoes itself only; nothing is acknowledged
before the commit.

Other processes write too. SQLite's own busy handler sleeps up to 100 ms between its tries, which starves a writer
and stretches a hold, so the handler is off and the thread tries again itself, every millisecond, until the deadline.
BEGIN IMMEDIATE takes the write lock before it reads, so that no statement behind it can meet BUSY_SNAPSHOT; a single
statement in autocommit reads and locks at once, and is tried again like BEGIN.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import Closed, DatalayerError, DeadlineExceeded
from datalayer.stores.sqlite.calls import Call, Mailbox, State
from datalayer.stores.sqlite.faults import ERRORS, is_busy, translate
from datalayer.stores.sqlite.triggers import WRITER, WRITER_FUNCTION

if TYPE_CHECKING:
    from pathlib import Path

GROUP_MAX: Final = 64
"""Most statements of one group commit."""
BUSY_PAUSE_S: Final = 0.001
CONNECT_TRIES: Final = 5_000
_CACHE_KIB: Final = 16_384
_STATEMENTS: Final = 256


@dataclass(frozen=True, slots=True)
class Connector:
    """How to open the database file."""

    path: Path
    synchronous: str = "FULL"
    """FULL: a commit is on the disk when it is acknowledged. NORMAL survives a killed process, not a power cut."""

    def connect(self, *, read_only: bool) -> sqlite3.Connection:
        """A connection in autocommit, WAL, without SQLite's busy handler. Raises the driver's errors."""
        connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=_STATEMENTS
        )
        try:
            # Becoming WAL needs the file for a moment; processes that open it at once wait for each other.
            _until_free(connection, "PRAGMA journal_mode=WAL")
            for pragma in (
                f"synchronous={self.synchronous}",
                f"cache_size=-{_CACHE_KIB}",
                f"query_only={int(read_only)}",
                "trusted_schema=ON",
            ):
                _until_free(connection, f"PRAGMA {pragma}")
            # By this the guard's triggers know that it is the library who writes.
            connection.create_function(WRITER_FUNCTION, 0, lambda: WRITER)
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def _until_free(connection: sqlite3.Connection, sql: str) -> None:
    pause = threading.Event()
    for attempt in range(CONNECT_TRIES):
        try:
            connection.execute(sql).fetchall()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or attempt == CONNECT_TRIES - 1:
                raise
            pause.wait(BUSY_PAUSE_S)
        else:
            return


class Worker:
    """A thread with a connection of its own, fed by a queue."""

    def __init__(
        self, connector: Connector, mailbox: Mailbox, jobs: queue.SimpleQueue[Any], *, read_only: bool
    ) -> None:
        self._connector = connector
        self._mailbox = mailbox
        self._jobs = jobs
        self._read_only = read_only
        self._connection: sqlite3.Connection | None = None
        self._where = f"SQLite database {connector.path.name}"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"datalayer-{connector.path.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give up waiting for locks; the thread ends at the None that its owner puts into the queue."""
        self._stopped.set()

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _main(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                try:
                    self._serve(job)
                except Exception as error:  # noqa: BLE001 - a dead thread would leave every later caller waiting
                    call = job if isinstance(job, Call) else job.begin
                    self._mailbox.finish(call, None, _mistake(error))
        finally:
            if self._connection is not None:
                self._connection.close()

    def _serve(self, call: Call) -> None:
        connection = self._open(call)
        if connection is None or not self._mailbox.start(call, connection):
            return
        while True:
            try:
                if call.work is not None:
                    result = call.work(connection)
                else:
                    result = connection.execute(call.sql, call.params).fetchall()
            except ERRORS as error:
                if is_busy(error) and not self._give_up(call):
                    self._stopped.wait(BUSY_PAUSE_S)
                    continue
                self._mailbox.finish(call, None, translate(error, self._where))
            except DatalayerError as error:
                self._mailbox.finish(call, None, error)
            else:
                self._mailbox.finish(call, result)
            return

    def _open(self, call: Call) -> sqlite3.Connection | None:
        """The connection, made at the first call; a failure is the call's, and the next call tries again."""
        if self._connection is None:
            try:
                self._connection = self._connector.connect(read_only=self._read_only)
            except sqlite3.Error as error:
                self._mailbox.finish(call, None, translate(error, self._where))
        return self._connection

    def _give_up(self, call: Call) -> bool:
        return call.abandoned or call.state is State.OVER or call.deadline.passed or self._stopped.is_set()


def _mistake(error: Exception) -> DatalayerError:
    """Our own mistake in a piece of work, as an error of its caller."""
    failed = DatalayerError(f"work on a SQLite thread failed: {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


class Step(Enum):
    """How a transaction ends."""

    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"


class Lease:
    """An open transaction's hold on the writer: its calls go through a queue of their own until it ends.

    The writer thread rolls it back at its deadline, whatever its owner does or fails to do.
    """

    __slots__ = ("begin", "ended", "jobs", "lock")

    def __init__(self, begin: Call) -> None:
        self.begin = begin
        self.jobs: queue.SimpleQueue[tuple[Call, Step | None]] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.ended = False

    def put(self, call: Call, step: Step | None) -> bool:
        """Queue a call; False when the transaction is over already."""
        with self.lock:
            if self.ended:
                return False
            self.jobs.put((call, step))
            return True


class Writer(Worker):
    """The one thread of this process that writes.

    Its jobs are Calls - one statement each, or a piece of work that is a whole transaction - and Leases.
    """

    def __init__(self, connector: Connector, mailbox: Mailbox, jobs: queue.SimpleQueue[Any]) -> None:
        self._next: Call | Lease | None = None
        super().__init__(connector, mailbox, jobs, read_only=False)

    def _serve(self, job: Call | Lease) -> None:
        if isinstance(job, Call) and job.work is None:
            group = self._group(job)
            connection = self._open(job)
            if connection is None:
                for call in group[1:]:
                    self._jobs.put(call)
            else:
                self._write(connection, group)
            if self._next is None:
                return
            job, self._next = self._next, None
        first = job if isinstance(job, Call) else job.begin
        connection = self._open(first)
        if connection is None or not self._mailbox.start(first):
            return
        if isinstance(job, Call):
            self._whole(connection, job)
        else:
            self._transaction(connection, job)

    def _group(self, first: Call) -> list[Call]:
        """What is queued behind the first statement, up to the next transaction."""
        group = [first]
        while len(group) < GROUP_MAX:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if isinstance(job, Call) and job.work is None:
                group.append(job)
                continue
            if job is None:
                self._jobs.put(None)
            else:
                self._next = job
            break
        return group

    # --- single statements -----------------------------------------------------------------------------------------

    def _write(self, connection: sqlite3.Connection, queued: list[Call]) -> None:
        group = [call for call in queued if self._mailbox.start(call)]
        if len(group) == 1:
            self._single(connection, group[0])
        elif group and self._begin(connection, group):
            self._together(connection, group)

    def _single(self, connection: sqlite3.Connection, call: Call) -> None:
        while True:
            try:
                rows = connection.execute(call.sql, call.params).fetchall()
            except ERRORS as error:
                if is_busy(error) and not self._give_up(call):
                    self._stopped.wait(BUSY_PAUSE_S)
                    continue
                self._mailbox.finish(call, None, self._fault(error, call, committing=True))
            else:
                self._mailbox.finish(call, rows)
            return

    def _begin(self, connection: sqlite3.Connection, calls: list[Call]) -> bool:
        """Take the write lock; calls whose deadline passes meanwhile are dropped from the list."""
        while calls:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                busy = is_busy(error)
                for call in [call for call in calls if not busy or self._give_up(call)]:
                    calls.remove(call)
                    self._mailbox.finish(call, None, self._fault(error, call))
                if calls:
                    self._stopped.wait(BUSY_PAUSE_S)
            else:
                return True
        return False

    def _together(self, connection: sqlite3.Connection, group: list[Call]) -> None:
        done: list[tuple[Call, list[Any]]] = []
        for call in group:
            try:
                done.append((call, connection.execute(call.sql, call.params).fetchall()))
            except ERRORS as error:
                self._mailbox.finish(call, None, self._fault(error, call))
                if not connection.in_transaction:  # a full disk and its like undo the whole transaction
                    self._fail([one for one, _ in done], error, committing=False)
                    self._fail(group[group.index(call) + 1 :], error, committing=False)
                    return
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            _undo(connection)
            self._fail([one for one, _ in done], error, committing=True)
            return
        for call, rows in done:
            self._mailbox.finish(call, rows)

    def _fail(self, calls: list[Call], error: BaseException, *, committing: bool) -> None:
        for call in calls:
            self._mailbox.finish(call, None, self._fault(error, call, committing=committing))

    def _fault(self, error: BaseException, call: Call, *, committing: bool = False) -> DatalayerError:
        if is_busy(error):
            if self._stopped.is_set():
                return Closed()
            if call.deadline.passed:
                return DeadlineExceeded(f"{self._where} was locked by another process until the deadline")
        return translate(error, self._where, may_have_committed=committing)

    def _whole(self, connection: sqlite3.Connection, call: Call) -> None:
        """A transaction in one piece: BEGIN IMMEDIATE, the work, COMMIT."""
        assert call.work is not None, "only work is a whole transaction"
        if not self._begin(connection, [call]):
            return
        committing = False
        try:
            result = call.work(connection)
            committing = True
            connection.execute("COMMIT")
        except DatalayerError as error:
            self._mailbox.finish(call, None, error)
        except ERRORS as error:
            self._mailbox.finish(call, None, self._fault(error, call, committing=committing))
        else:
            self._mailbox.finish(call, result)
        finally:
            _undo(connection)

    # --- transactions ----------------------------------------------------------------------------------------------

    def _transaction(self, connection: sqlite3.Connection, lease: Lease) -> None:
        if not self._begin(connection, [lease.begin]):
            return
        self._mailbox.finish(lease.begin, None)
        try:
            self._follow(connection, lease)
        finally:
            _undo(connection)
            with lease.lock:
                lease.ended = True
            while not lease.jobs.empty():
                self._mailbox.finish(lease.jobs.get()[0], None, over())

    def _follow(self, connection: sqlite3.Connection, lease: Lease) -> None:
        deadline = lease.begin.deadline
        while True:
            try:
                call, step = lease.jobs.get(timeout=max(0.0, deadline.remaining()))
            except queue.Empty:
                return
            if step is not None:
                self._end(connection, call, step)
                return
            if not self._mailbox.start(call, connection):
                continue
            try:
                assert call.work is not None, "a transaction's call is a piece of work"
                result = call.work(connection)
            except ERRORS as error:
                self._mailbox.finish(call, None, translate(error, self._where))
                if not connection.in_transaction:
                    return
            else:
                self._mailbox.finish(call, result)

    def _end(self, connection: sqlite3.Connection, call: Call, step: Step) -> None:
        if not self._mailbox.start(call):
            return
        try:
            connection.execute(step.value)
        except sqlite3.Error as error:
            fault = translate(error, self._where, may_have_committed=step is Step.COMMIT)
            self._mailbox.finish(call, None, fault)
        else:
            self._mailbox.finish(call, None)


def over() -> DatalayerError:
    """What a call on a transaction gets that was rolled back at its deadline."""
    return DeadlineExceeded("the transaction was rolled back at its deadline")


def _undo(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")
