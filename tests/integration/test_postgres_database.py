"""Connections, deadlines, cancellation and errors on a real Postgres."""

import asyncio
import gc
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import psycopg
import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.errors import (
    DatalayerError,
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    PreconditionFailed,
    SchemaBehind,
    StaleRoute,
    Unavailable,
)
from datalayer.settings import BackendUrl
from datalayer.stores.postgres.database import PostgresDatabase
from datalayer.stores.sql.database import UniqueViolation
from tests.servers import Servers
from tests.servers.proxy import TcpProxy

pytestmark = pytest.mark.servers
CLOCK = SystemClock()
SLOW_INSERT = "INSERT INTO t (id) SELECT %s FROM pg_sleep(20)"
Admin = psycopg.AsyncConnection[tuple[object, ...]]
PID = "SELECT pg_backend_pid()"


def soon(timeout_s: float) -> Deadline:
    return Deadline(CLOCK, timeout_s)


@pytest.fixture(scope="module")
def url(servers: Servers) -> Iterator[str]:
    cluster = servers.postgres(1)[0]
    name = f"database_{uuid.uuid4().hex[:8]}"
    yield cluster.create_database(name)
    with psycopg.connect(cluster.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
async def admin(url: str) -> AsyncIterator[Admin]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("DROP TABLE IF EXISTS t")
        await connection.execute("CREATE TABLE t (id int CONSTRAINT t_pk PRIMARY KEY, body text)")
        yield connection


@pytest.fixture
async def db(url: str, admin: Admin) -> AsyncIterator[PostgresDatabase]:
    database = PostgresDatabase(BackendUrl.parse(url), name="main", pool_max=4)
    yield database
    await database.close()


@pytest.fixture
def proxy(url: str) -> Iterator[TcpProxy]:
    parts = urlsplit(url)
    with TcpProxy(str(parts.hostname), int(parts.port or 5432)) as running:
        yield running


@pytest.fixture
async def far(url: str, proxy: TcpProxy, admin: object) -> AsyncIterator[PostgresDatabase]:
    parsed = BackendUrl.parse(url)
    behind = replace(parsed, hosts=(replace(parsed.hosts[0], name=proxy.host, port=proxy.port),))
    database = PostgresDatabase(behind, name="far", pool_max=4)
    yield database
    await database.close()


async def our_sessions(admin: Admin) -> list[tuple[object, ...]]:
    cursor = await admin.execute(
        "SELECT pid, state FROM pg_stat_activity WHERE application_name = 'datalayer/app' "
        "AND datname = current_database() ORDER BY pid"
    )
    return await cursor.fetchall()


async def in_state(admin: Admin, state: str) -> int:
    """The process id of our one session in this state, as soon as there is one."""
    while True:
        for pid, found in await our_sessions(admin):
            if found == state:
                assert isinstance(pid, int)
                return pid
        await asyncio.sleep(0.01)


async def ids(admin: Admin) -> list[object]:
    return [row[0] for row in await (await admin.execute("SELECT id FROM t ORDER BY id")).fetchall()]


# --- lost connections ----------------------------------------------------------------------------------------------


async def test_a_write_whose_connection_is_killed_is_of_unknown_outcome(db: PostgresDatabase, admin: Admin) -> None:
    task = asyncio.create_task(db.run(SLOW_INSERT, (1,)))
    await admin.execute("SELECT pg_terminate_backend(%s)", (await in_state(admin, "active"),))
    with pytest.raises(OutcomeUnknown):
        await task


async def test_a_read_whose_connection_is_killed_is_unavailable(db: PostgresDatabase, admin: Admin) -> None:
    task = asyncio.create_task(db.fetch("SELECT pg_sleep(20)"))
    await admin.execute("SELECT pg_terminate_backend(%s)", (await in_state(admin, "active"),))
    with pytest.raises(Unavailable):
        await task


async def test_a_transaction_killed_before_its_commit_is_known_as_not_applied(
    db: PostgresDatabase, admin: Admin
) -> None:
    async def work() -> None:
        async with db.transaction() as tx:
            await tx.run("INSERT INTO t (id) VALUES (%s)", (1,))
            await admin.execute("SELECT pg_terminate_backend(%s)", (await in_state(admin, "idle in transaction"),))
            await tx.run("INSERT INTO t (id) VALUES (%s)", (2,))

    with pytest.raises(Unavailable):
        await work()
    assert await ids(admin) == []


async def test_a_commit_whose_connection_is_killed_is_of_unknown_outcome(db: PostgresDatabase, admin: Admin) -> None:
    async def work() -> None:
        async with db.transaction() as tx:
            await tx.run("INSERT INTO t (id) VALUES (%s)", (1,))
            await admin.execute("SELECT pg_terminate_backend(%s)", (await in_state(admin, "idle in transaction"),))
            # wait until the server has hung up
            while await our_sessions(admin):
                await asyncio.sleep(0.01)

    with pytest.raises(OutcomeUnknown):
        await work()


async def test_a_connection_killed_at_rest_is_replaced_before_the_next_write(
    db: PostgresDatabase, admin: Admin
) -> None:
    first = (await db.fetch(PID))[0][0]
    assert (await db.fetch(PID))[0][0] == first, "control: one idle connection is used again"
    await admin.execute("SELECT pg_terminate_backend(%s)", (first,))
    while await our_sessions(admin):
        await asyncio.sleep(0.01)
    await db.run("INSERT INTO t (id) VALUES (%s)", (1,))
    assert (await db.fetch(PID))[0][0] != first


# --- deadlines -----------------------------------------------------------------------------------------------------


async def test_a_write_past_its_deadline_is_cancelled_and_known_as_not_applied(
    db: PostgresDatabase, admin: Admin
) -> None:
    before = (await db.fetch(PID))[0][0]
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await db.run(SLOW_INSERT, (1,), deadline=soon(0.3))
    assert time.monotonic() - began < 1.0
    assert await ids(admin) == []
    assert (await db.fetch(PID))[0][0] == before, "the connection lives on"


async def test_a_deaf_server_ends_a_write_as_unknown_and_a_read_as_late(far: PostgresDatabase, proxy: TcpProxy) -> None:
    await far.fetch("SELECT 1")
    proxy.hang()
    for call, error in (
        (far.run("INSERT INTO t (id) VALUES (%s)", (1,), deadline=soon(0.5)), OutcomeUnknown),
        (far.fetch("SELECT 1", deadline=soon(0.5)), DeadlineExceeded),
    ):
        began = time.monotonic()
        with pytest.raises(error):
            await call
        assert time.monotonic() - began < 1.5
    proxy.restore()
    await far.fetch("SELECT 1", deadline=soon(5))


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_pipeline_that_is_given_up_on_a_silent_server_leaves_nothing_behind(
    far: PostgresDatabase, proxy: TcpProxy, how: str
) -> None:
    async def insert() -> None:
        async with far.transaction(deadline=soon(0.3 if how == "late" else 20)) as tx:
            proxy.hang()
            await tx.run_many("INSERT INTO t (id, body) VALUES (%s, %s)", [(n, "x" * 500_000) for n in range(40)])

    task = asyncio.create_task(insert())
    if how == "cancelled":
        while not far.in_use:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
    with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
        await task
    del task
    gc.collect()  # a generator of the driver that is still suspended would fail here, as a warning, which is an error


async def test_a_commit_after_the_deadline_is_not_sent(db: PostgresDatabase, admin: Admin) -> None:
    async def work() -> None:
        async with db.transaction(deadline=(deadline := soon(0.2))) as tx:
            await tx.run("INSERT INTO t (id) VALUES (%s)", (1,))
            while not deadline.passed:
                await asyncio.sleep(0.02)

    with pytest.raises(DeadlineExceeded):
        await work()
    assert await ids(admin) == []


async def test_callers_beyond_the_pool_are_served_in_turn_or_told_in_time(url: str, admin: Admin) -> None:
    one = PostgresDatabase(BackendUrl.parse(url), name="one", pool_max=1)
    assert len(await asyncio.gather(*[one.fetch("SELECT pg_sleep(0.002)") for _ in range(50)])) == 50
    assert len(await our_sessions(admin)) == 1
    holder = asyncio.create_task(one.fetch("SELECT pg_sleep(0.4)"))
    await in_state(admin, "active")
    with pytest.raises(DeadlineExceeded):
        await one.run("INSERT INTO t (id) VALUES (1)", deadline=soon(0.1))
    await holder
    await one.run("INSERT INTO t (id) VALUES (1)")
    await one.close()


# --- cancellation --------------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_leaves_no_open_transaction_and_no_running_statement(
    db: PostgresDatabase,
    admin: Admin,
) -> None:
    async def work() -> None:
        async with db.transaction() as tx:
            await tx.run("INSERT INTO t (id) VALUES (%s)", (1,))
            await tx.run(SLOW_INSERT, (2,))

    task = asyncio.create_task(work())
    await in_state(admin, "active")
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {state for _, state in await our_sessions(admin)} <= {"idle"}
    assert await ids(admin) == []
    await db.run("INSERT INTO t (id) VALUES (%s)", (1,))  # and no lock is left


async def test_callers_cancelled_while_they_wait_lose_no_connection(url: str, admin: object) -> None:
    one = PostgresDatabase(BackendUrl.parse(url), name="one", pool_max=1)
    for pause_s in (0.0, 0.001, 0.004):
        tasks = [asyncio.create_task(one.fetch("SELECT pg_sleep(0.002)")) for _ in range(10)]
        await asyncio.sleep(pause_s)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await one.fetch("SELECT 1", deadline=soon(5)) == [(1,)]
    await one.close()


# --- what statements raise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "params", "error"),
    [
        ("INSERT INTO t (id) VALUES (0), (0)", (), UniqueViolation),
        ("SELECT * FROM absent", (), StaleRoute),
        ("SELECT absent FROM t", (), SchemaBehind),
        ("INSERT INTO t (id, body) VALUES (1, %s)", ("a\x00b",), InvalidArgument),
        ("INSERT INTO t (id, body) VALUES (1, %s)", ("a\ud800b",), InvalidArgument),
        ("INSERT INTO t (id) VALUES (%s)", (1 << 40,), InvalidArgument),
        ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$", (), Unavailable),
        ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '25006'; END $$", (), Unavailable),
        ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'XX123'; END $$", (), DatalayerError),
    ],
)
async def test_errors_of_statements_are_the_librarys(
    db: PostgresDatabase, sql: str, params: tuple[object, ...], error: type[DatalayerError]
) -> None:
    with pytest.raises(DatalayerError) as caught:
        await db.run(sql, params)
    assert type(caught.value) is error
    if isinstance(caught.value, UniqueViolation):
        assert caught.value.constraint == "t_pk"

    async def work() -> None:
        async with db.transaction() as tx:
            await tx.run(sql, params)

    with pytest.raises(error):
        await work()
    assert await db.fetch("SELECT 1") == [(1,)]


async def test_a_refused_log_in_says_so_and_shows_no_secret(url: str) -> None:
    secret = "hunter2-%40/:secret"
    shown = ""
    parsed = replace(BackendUrl.parse(url), user="nobody_here", password=secret)
    for broken in (
        parsed,
        replace(parsed, hosts=(replace(parsed.hosts[0], port=1),)),
        replace(parsed, database="no\\'x"),
    ):
        db = PostgresDatabase(broken, name="main")
        with pytest.raises((PreconditionFailed, Unavailable)) as caught:
            await db.fetch("SELECT 1", deadline=soon(5))
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert secret not in shown
        await db.close()
    assert "datalayer" in shown, "control: the traceback was looked at"


async def test_a_server_that_refuses_is_reported_at_once(url: str) -> None:
    parsed = BackendUrl.parse(url)
    db = PostgresDatabase(replace(parsed, hosts=(replace(parsed.hosts[0], port=1),)), name="gone")
    began = time.monotonic()
    with pytest.raises(Unavailable, match="gone"):
        await db.run("SELECT 1", deadline=soon(5))
    assert time.monotonic() - began < 2
    await db.close()


# --- streams and notifications -------------------------------------------------------------------------------------


async def test_a_stream_gives_every_row_in_bounded_batches(db: PostgresDatabase, admin: Admin) -> None:
    batches = [rows async for rows in db.stream("SELECT g FROM generate_series(1, %s) g", (2500,), batch=1000)]
    assert [len(rows) for rows in batches] == [1000, 1000, 500]
    stream = db.stream("SELECT g FROM generate_series(1, %s) g", (2500,), batch=10)
    async for _ in stream:
        break
    await stream.aclose()
    assert {state for _, state in await our_sessions(admin)} == {"idle"}


async def test_a_listener_hears_notifications_and_comes_back_after_its_connection_is_killed(
    db: PostgresDatabase,
    admin: Admin,
) -> None:
    calls = asyncio.Queue[None]()
    assert await db.listen("news", lambda: calls.put_nowait(None))
    async with asyncio.timeout(10):
        await calls.get()  # the call that covers what was missed before
        await admin.execute("NOTIFY news")
        await calls.get()
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE 'LISTEN%' AND datname = current_database()"
        )
        await calls.get()  # reconnected: what came meanwhile is unknown
        await admin.execute("NOTIFY news")
        await calls.get()


async def test_behind_a_pooler_there_is_no_listening_and_nothing_is_prepared(url: str, admin: Admin) -> None:
    mark = "&" if "?" in url else "?"
    for options, listens, prepared in (("pgbouncer=true", False, 0), ("", True, 1)):
        db = PostgresDatabase(BackendUrl.parse(f"{url}{mark}{options}" if options else url), name="main", pool_max=1)
        assert await db.listen("news", lambda: None) is listens
        for _ in range(8):
            await db.fetch("SELECT id FROM t WHERE id = %s", (1,))
        counted = await db.fetch("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT id%'")
        assert counted[0][0] == prepared
        await db.close()
