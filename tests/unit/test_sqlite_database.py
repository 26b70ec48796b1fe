"""Threads, deadlines and locks of a SQLite database."""

import asyncio
import multiprocessing
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.errors import (
    Closed,
    DatalayerError,
    DeadlineExceeded,
    InvalidArgument,
    PreconditionFailed,
    SchemaBehind,
    StaleRoute,
    Unavailable,
)
from datalayer.stores.sql.database import UniqueViolation
from datalayer.stores.sqlite import faults
from datalayer.stores.sqlite.database import SqliteDatabase

CLOCK = SystemClock()
SLOW = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) SELECT count(*) FROM n"


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "a.sqlite", CLOCK, synchronous="OFF")
    await database.run("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT NOT NULL CHECK (b <> 'bad')) ")
    yield database
    await database.close()


def soon(timeout_s: float = 0.2) -> Deadline:
    return Deadline(CLOCK, timeout_s)


async def rows(db: SqliteDatabase) -> list[tuple[object, ...]]:
    return await db.fetch("SELECT a, b FROM t ORDER BY a")


async def insert_and(db: SqliteDatabase, sql: str, deadline: Deadline | None = None) -> None:
    async with db.transaction(deadline=deadline) as tx:
        await tx.run("INSERT INTO t VALUES (1, 'x')")
        await tx.run(sql)


async def test_a_read_sees_every_write_acknowledged_before_it(db: SqliteDatabase) -> None:
    for at in range(50):
        assert await db.run("INSERT INTO t VALUES (?, 'x') RETURNING a", (at,)) == [(at,)]
        assert await db.fetch("SELECT max(a) FROM t") == [(at,)]


async def test_one_failing_statement_of_a_group_leaves_the_others(db: SqliteDatabase) -> None:
    async with db.transaction():
        # while the writer is held, these queue up behind it and become one group
        calls = [asyncio.ensure_future(db.run("INSERT INTO t VALUES (?, ?)", (at // 2, "x"))) for at in range(20)]
        calls.append(asyncio.ensure_future(db.run("INSERT INTO t VALUES (99, 'bad')")))
        await asyncio.sleep(0)
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in done] == [list, UniqueViolation] * 10 + [InvalidArgument]
    assert len(await rows(db)) == 10


async def test_a_transaction_is_rolled_back_by_an_exception_and_by_nothing_else(db: SqliteDatabase) -> None:
    with pytest.raises(UniqueViolation):
        await insert_and(db, "INSERT INTO t VALUES (1, 'again')")
    assert await rows(db) == []
    async with db.transaction() as tx:
        await tx.run("INSERT INTO t VALUES (1, 'x')")
        with pytest.raises(UniqueViolation) as taken:
            await tx.run("INSERT INTO t VALUES (1, 'y')")
        await tx.run_many("INSERT INTO t VALUES (?, ?)", [(2, "y"), (3, "z")])
    assert taken.value.constraint == "t.a"
    assert await rows(db) == [(1, "x"), (2, "y"), (3, "z")]


async def test_a_slow_read_ends_at_its_deadline_and_its_thread_is_free(db: SqliteDatabase) -> None:
    before = CLOCK.monotonic()
    slow = [db.fetch(SLOW, deadline=soon()) for _ in range(4)]
    done = await asyncio.gather(*slow, return_exceptions=True)
    assert {type(one) for one in done} == {DeadlineExceeded}
    assert CLOCK.monotonic() - before < 2.0
    assert await db.fetch("SELECT 1", deadline=soon(10)) == [(1,)]


async def test_a_slow_statement_in_a_transaction_ends_at_its_deadline_and_leaves_nothing(db: SqliteDatabase) -> None:
    with pytest.raises(DeadlineExceeded):
        await insert_and(db, SLOW, soon())
    assert await rows(db) == []
    await db.run("INSERT INTO t VALUES (2, 'y')", deadline=soon(10))


async def test_an_abandoned_transaction_is_rolled_back_at_its_deadline(db: SqliteDatabase) -> None:
    transaction = db.transaction(deadline=soon())
    tx = await transaction.__aenter__()
    await tx.run("INSERT INTO t VALUES (1, 'x')")
    # its owner does nothing more; a write of somebody else gets through
    await db.run("INSERT INTO t VALUES (2, 'y')", deadline=soon(10))
    with pytest.raises(DeadlineExceeded):
        await tx.run("INSERT INTO t VALUES (3, 'z')")
    with pytest.raises(DeadlineExceeded):
        await transaction.__aexit__(None, None, None)
    assert await rows(db) == [(2, "y")]


async def test_a_cancelled_caller_leaves_no_transaction_open(db: SqliteDatabase) -> None:
    started = asyncio.Event()

    async def write(sql: str) -> None:
        async with db.transaction() as tx:
            await tx.run("INSERT INTO t VALUES (1, 'x')")
            started.set()
            await tx.run(sql)

    for sql in (SLOW, "INSERT INTO t VALUES (2, 'y')"):
        started.clear()
        task = asyncio.ensure_future(write(sql))
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert await rows(db) == []
    await db.run("INSERT INTO t VALUES (4, 'z')", deadline=soon(10))


async def test_a_caller_cancelled_while_it_waits_for_its_turn_never_begins(db: SqliteDatabase) -> None:
    async def write() -> None:
        async with db.transaction() as tx:
            await tx.run("INSERT INTO t VALUES (1, 'x')")

    async with db.transaction():
        waiting = [asyncio.ensure_future(write()), asyncio.ensure_future(db.run("INSERT INTO t VALUES (2, 'y')"))]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert all(task.cancelled() for task in waiting)
    async with db.transaction() as tx:
        await tx.run("INSERT INTO t VALUES (3, 'z')")
    assert await rows(db) == [(3, "z")]


async def test_a_lock_of_another_program_is_waited_for_up_to_the_deadline(db: SqliteDatabase) -> None:
    with closing(sqlite3.connect(db.path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        insert = "INSERT INTO t VALUES (1, 'x')"
        for refused in (
            lambda: db.run(insert, deadline=soon()),
            lambda: db.write(lambda connection: connection.execute(insert), deadline=soon()),
            lambda: db.transaction(deadline=soon()).__aenter__(),
        ):
            before = CLOCK.monotonic()
            with pytest.raises(Unavailable, match="locked by another process"):
                await refused()
            assert 0.15 < CLOCK.monotonic() - before < 2.0
        release = threading.Timer(0.1, lambda: other.execute("ROLLBACK"))
        release.start()
        await db.run("INSERT INTO t VALUES (2, 'y')", deadline=soon(20))
        release.join()
    assert await rows(db) == [(2, "y")]


def _write_many(path: str, number: int, count: int) -> None:
    async def main() -> None:
        database = SqliteDatabase(Path(path), CLOCK, synchronous="OFF")
        for at in range(count):
            key = number * 1000 + at
            if at % 3:
                await database.run("INSERT INTO t VALUES (?, 'x')", (key,), deadline=soon(60))
            else:
                async with database.transaction(deadline=soon(60)) as tx:
                    await tx.run("SELECT count(*) FROM t")
                    await tx.run("INSERT INTO t VALUES (?, 'x')", (key,))
        await database.close()

    asyncio.run(main())


async def test_writers_of_several_processes_all_get_through(db: SqliteDatabase) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_write_many, args=(str(db.path), number, 100)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        await asyncio.to_thread(child.join, 120)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(await rows(db)) == 300


async def test_errors_are_the_librarys_own(db: SqliteDatabase) -> None:
    with pytest.raises(StaleRoute):
        await db.fetch("SELECT * FROM messages_9")
    with pytest.raises(SchemaBehind):
        await db.fetch("SELECT missing FROM t")
    with pytest.raises(InvalidArgument):
        await db.run("INSERT INTO t VALUES (?, 'x')", (1 << 63,))
    with pytest.raises(InvalidArgument):
        await db.run("INSERT INTO t VALUES (1, ?)", ("\ud800",))
    with pytest.raises(InvalidArgument):
        await db.run("INSERT INTO t VALUES (1, NULL)")
    with pytest.raises(PreconditionFailed):
        await db.fetch("INSERT INTO t VALUES (1, 'x')")
    assert await rows(db) == []


async def test_a_mistake_in_a_piece_of_work_is_its_callers_and_the_threads_live_on(db: SqliteDatabase) -> None:
    def mistake(connection: sqlite3.Connection) -> None:
        connection.execute("SELECT 1")
        raise ZeroDivisionError

    def refusal(connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            connection.execute("INSERT INTO t VALUES (1, 'x')")
        raise SchemaBehind

    for run in (db.read, db.write):
        for _ in range(3):
            with pytest.raises(DatalayerError, match="ZeroDivisionError"):
                await run(mistake)
            with pytest.raises(SchemaBehind):
                await run(refusal)
    assert await rows(db) == []
    await db.run("INSERT INTO t VALUES (2, 'y')", deadline=soon(10))


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("this is a plain text file, long enough to have a header" * 10)
    for database, kind in (
        (SqliteDatabase(path, CLOCK), PreconditionFailed),
        (SqliteDatabase(tmp_path, CLOCK), Unavailable),
    ):
        with pytest.raises(kind):
            await database.fetch("SELECT 1", deadline=soon(10))
        with pytest.raises(kind):
            await database.run("CREATE TABLE t (a)", deadline=soon(10))
        await database.close()
    assert path.read_text().startswith("this is a plain")


async def test_a_stream_reads_one_snapshot_in_batches(db: SqliteDatabase) -> None:
    async with db.transaction() as tx:
        await tx.run_many("INSERT INTO t VALUES (?, 'x')", [(at,) for at in range(25)])
    seen: list[int] = []
    async for batch in db.stream("SELECT a FROM t ORDER BY a", batch=10):
        assert len(batch) <= 10
        seen += [row[0] for row in batch]
        await db.run("INSERT INTO t VALUES (?, 'later')", (1000 + len(seen),))
    assert seen == list(range(25))


async def test_a_closed_database_says_so_and_ends_its_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    database = SqliteDatabase(tmp_path / "a.sqlite", CLOCK)
    await database.fetch("SELECT 1")
    assert threading.active_count() > before
    await database.close()
    await database.close()
    named = [thread.name for thread in threading.enumerate() if thread.name.startswith("datalayer-")]
    assert named == []
    with pytest.raises(Closed):
        await database.fetch("SELECT 1")
    with pytest.raises(Closed):
        database.transaction()


async def test_a_forked_child_is_told_to_open_again(db: SqliteDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(Closed):
        await db.fetch("SELECT 1")
    monkeypatch.undo()
    assert await db.fetch("SELECT 1") == [(1,)]


def test_a_table_that_is_gone_is_a_stale_route_whatever_code_its_error_has() -> None:
    error = sqlite3.OperationalError("no such table: users_8")  # raised without a code, as beside a DROP
    assert isinstance(faults.translate(error, "SQLite database s1.db"), StaleRoute)
