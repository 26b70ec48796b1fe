"""The library through PgBouncer in transaction mode: suites, a life cycle, faults; and that it leaves nothing behind.

Four server sessions carry everything. After each suite all four are held at once and looked into: what one client
leaves in a session - a prepared statement, a setting, a lock - the next one meets.
"""

import asyncio
import itertools
import random
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.errors import (
    ConfigurationError,
    DatalayerError,
    DeadlineExceeded,
    OutcomeUnknown,
    Unavailable,
)
from datalayer.layer import DataLayer
from datalayer.settings import BackendUrl, Settings
from datalayer.stores.base import Backend
from datalayer.stores.postgres.backend import create_backend
from datalayer.stores.postgres.bulk import COPY_MIN
from datalayer.stores.postgres.database import PostgresDatabase
from datalayer.testing.contract import (
    ForeignWriterSuite,
    MessageExecuteSuite,
    MessageReadsSuite,
    PortSuite,
    StoreFixture,
    UserExecuteSuite,
    UserReadsSuite,
)
from tests.contract import test_postgres
from tests.integration.live import create_schemas, life_cycle, preload, settings_of, traffic
from tests.integration.test_postgres_bulk import message
from tests.servers import PgBouncerServer, Servers

pytestmark = pytest.mark.servers
CLOCK = SystemClock()
SESSIONS = 4
# So that no session ends before it was looked into.
POOLER = {"default_pool_size": str(SESSIONS), "server_idle_timeout": "600"}
# What PgBouncer itself sets in a session for each client that comes to it.
FOLLOWED = ["application_name", "client_encoding", "DateStyle", "standard_conforming_strings", "TimeZone"]
SLOW_INSERT = "INSERT INTO t (id) SELECT %s FROM pg_sleep(20)"
LEFT = """
SELECT 'prepared statement ' || statement FROM pg_prepared_statements
UNION ALL SELECT 'setting ' || name || ' = ' || setting FROM pg_settings WHERE source = 'session' AND name <> ALL (%s)
UNION ALL SELECT 'pass ' || pass FROM current_setting('datalayer.pass', true) pass WHERE pass <> ''
UNION ALL SELECT 'cursor ' || name FROM pg_cursors WHERE is_holdable
UNION ALL SELECT 'lock ' || l.objid FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory'
UNION ALL SELECT 'listens to ' || channel FROM pg_listening_channels() channel
UNION ALL SELECT 'temporary ' || relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
"""


def left_in_sessions(pooler: PgBouncerServer, database: str) -> list[str]:
    """What stands in the sessions that served a database, all of them held at once."""
    name = database.rpartition("/")[2]
    known = {row["remote_pid"] for row in pooler.show("servers") if row["database"] == name}
    assert known, "nobody has used this database through the pooler"
    pids, found = set(), []
    with ExitStack() as exits:
        for _ in range(SESSIONS):
            connect = psycopg.connect(pooler.url_of(database), prepare_threshold=None, application_name="look")
            connection = exits.enter_context(connect)
            for (pid,) in connection.execute("SELECT pg_backend_pid()"):
                pids.add(pid)
            found += [row[0] for row in connection.execute(LEFT, (FOLLOWED,))]
    assert known <= pids
    assert len(pids) == SESSIONS
    return found


def soon(timeout_s: float) -> Deadline:
    return Deadline(CLOCK, timeout_s)


@pytest.fixture(scope="module")
def pooler(servers: Servers) -> Iterator[PgBouncerServer]:
    found = servers.fresh_pgbouncer("library", servers.postgres(1)[0], settings=POOLER)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def database(pooler: PgBouncerServer) -> str:
    return pooler.server.create_database(f"pooled_{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def attempts() -> Iterator[int]:
    return itertools.count(2)


# --- the store suites ----------------------------------------------------------------------------------------------


class _Pooled:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def nothing_is_left(cls, pooler: PgBouncerServer, database: str) -> Iterator[None]:
        yield
        assert left_in_sessions(pooler, database) == []

    @pytest.fixture
    async def fixture(
        self, request: pytest.FixtureRequest, pooler: PgBouncerServer, database: str, attempts: Iterator[int]
    ) -> AsyncIterator[StoreFixture]:
        async def connect() -> Backend:
            url = BackendUrl.parse(pooler.library_url(database))
            backend = create_backend("main", url, pool_max=8, clock=CLOCK)
            await backend.open()
            await backend.ensure_schema(create=True)
            return backend

        async with StoreFixture(connect, attempts, seed=zlib.crc32(request.node.nodeid.encode())) as fixture:
            # The foreign program comes through the same sessions: what it may do must not rub off.
            fixture.foreign = test_postgres._Program(pooler.url_of(database), fixture)
            yield fixture


class TestMessagesPort(_Pooled, PortSuite):
    pass


class TestUsersPort(_Pooled, PortSuite):
    domain = "users"


class TestMessageReads(_Pooled, MessageReadsSuite):
    pass


class TestUserReads(_Pooled, UserReadsSuite):
    pass


class TestMessageExecute(_Pooled, MessageExecuteSuite):
    pass


class TestUserExecute(_Pooled, UserExecuteSuite):
    pass


class TestMessageGuard(_Pooled, ForeignWriterSuite):
    pass


class TestUserGuard(_Pooled, ForeignWriterSuite):
    domain = "users"


# --- a life cycle --------------------------------------------------------------------------------------------------


class Watch:
    """Whose sessions the library has in a database, looked at while the block runs: the pooler's and others'."""

    def __init__(self, pooler: PgBouncerServer, database: str) -> None:
        self.pooled: set[int] = set()
        self.past_it: set[str] = set()
        self._pooler = pooler
        self._database = database

    def look(self) -> None:
        query = "SELECT pid, query FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'datalayer/%%'"
        with psycopg.connect(self._pooler.server.url, autocommit=True) as connection:
            seen: dict[int, str] = dict(connection.execute(query, (self._database.rpartition("/")[2],)).fetchall())
        own = {row["remote_pid"] for row in self._pooler.show("servers")}
        self.pooled |= seen.keys() & own
        self.past_it |= {query.split(" ")[0] for pid, query in seen.items() if pid not in own and query}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async def forever() -> None:
            while True:
                await asyncio.to_thread(self.look)
                await asyncio.sleep(0.2)

        task = asyncio.create_task(forever())
        try:
            yield
        finally:
            assert not task.done(), task.exception()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def source_behind(pooler: PgBouncerServer, target: str, *, direct: bool) -> AsyncIterator[Settings]:
    """Source and control store behind the pooler, the target not; what was seen is looked at afterwards."""
    source = pooler.server.create_database(f"source_{uuid.uuid4().hex[:8]}")
    url = pooler.library_url(source, direct=direct)
    settings = settings_of({"a": url, "b": target}, messages="a", users="a", control=url)
    await create_schemas(settings)
    await preload(settings, 301)
    watch = Watch(pooler, source)
    async with watch.running():
        yield settings
    assert len(watch.pooled) >= 2
    assert watch.past_it == ({"LISTEN"} if direct else set())
    assert left_in_sessions(pooler, source) == []


async def test_messages_leave_a_source_behind_pgbouncer_and_come_back_under_traffic(pooler: PgBouncerServer) -> None:
    target = pooler.server.create_database(f"target_{uuid.uuid4().hex[:8]}")
    async with source_behind(pooler, target, direct=False) as settings:
        async with traffic(settings, layers=2, writers=2, readers=2) as live:
            holds = await life_cycle(settings, target="b", live=live)
        assert len(holds) == 3
        assert live.errors == []
        assert min(live.writes, live.reads) > 100


async def test_only_listening_goes_past_pgbouncer_with_a_direct_address(
    pooler: PgBouncerServer, tmp_path: Path
) -> None:
    async with (
        source_behind(pooler, f"sqlite:///{tmp_path}/target.sqlite", direct=True) as settings,
        DataLayer.open(settings),
    ):
        holds = await life_cycle(settings, target="b", live=None)
        assert len(holds) == 3


# --- sessions that clients share -----------------------------------------------------------------------------------


@pytest.fixture
async def admin(database: str) -> AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]:
    """Past the pooler."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("DROP TABLE IF EXISTS t")
        await connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        yield connection


@pytest.fixture
async def db(pooler: PgBouncerServer, database: str, admin: object) -> AsyncIterator[PostgresDatabase]:
    found = PostgresDatabase(BackendUrl.parse(pooler.library_url(database)), name="main", pool_max=30)
    yield found
    await found.close()


Admin = psycopg.AsyncConnection[tuple[object, ...]]


async def in_state(admin: Admin, state: str) -> object:
    """The process id of the library's session in this state, as soon as there is one."""
    async with asyncio.timeout(20):
        while True:
            cursor = await admin.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'datalayer/app' AND state = %s "
                "AND datname = current_database()",
                (state,),
            )
            if row := await cursor.fetchone():
                return row[0]
            await asyncio.sleep(0.01)


async def ids(admin: Admin) -> list[object]:
    return [row[0] for row in await (await admin.execute("SELECT id FROM t ORDER BY id")).fetchall()]


def test_what_a_session_keeps_is_found(servers: Servers, pooler: PgBouncerServer, database: str) -> None:
    """Control of left_in_sessions."""
    own = servers.fresh_pgbouncer("left", pooler.server, settings=POOLER)
    with psycopg.connect(own.url_of(database), autocommit=True) as careless:
        for statement in (
            "SET lock_timeout = 4321",
            "SET datalayer.pass = 'x'",
            "PREPARE p AS SELECT 7",
            "SELECT pg_advisory_lock(42)",
            "LISTEN news",
            "CREATE TEMPORARY TABLE mine ()",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        ):
            careless.execute(statement.encode())
    assert sorted(left_in_sessions(own, database)) == [
        "cursor c",
        "listens to news",
        "lock 42",
        "pass x",
        "prepared statement PREPARE p AS SELECT 7",
        "setting lock_timeout = 4321",
        "temporary mine",
    ]
    own.stop()


async def test_without_the_option_prepared_statements_collide_and_the_error_names_it(
    servers: Servers, pooler: PgBouncerServer, database: str
) -> None:
    one = servers.fresh_pgbouncer("one", pooler.server, settings={"default_pool_size": "1"})
    clients = [PostgresDatabase(BackendUrl.parse(one.url_of(database)), name="main", pool_max=1) for _ in range(2)]

    async def both() -> None:
        for client, _ in itertools.product(clients, range(8)):
            await client.fetch("SELECT %s::int", (1,))

    with pytest.raises(ConfigurationError) as caught:
        await both()
    assert caught.value.hint is not None
    assert "?pgbouncer=true" in caught.value.hint
    for client in clients:
        await client.close()
    one.stop()


async def test_more_callers_than_sessions_are_all_served(db: PostgresDatabase, admin: Admin) -> None:
    async def work(number: int) -> object:
        async with db.transaction() as tx:
            await tx.run("INSERT INTO t (id) VALUES (%s)", (number,))
            return (await tx.run("SELECT pg_backend_pid()"))[0][0]

    pids = await asyncio.gather(*(work(number) for number in range(60)))
    assert await ids(admin) == list(range(60))
    assert 2 <= len(set(pids)) <= SESSIONS


async def test_staged_batches_and_streams_leave_no_table_and_no_cursor(pooler: PgBouncerServer, database: str) -> None:
    url = BackendUrl.parse(pooler.library_url(database))
    backend = create_backend("main", url, pool_max=8, clock=CLOCK)
    await backend.open()
    store = backend.store("messages", 1)
    await store.create()
    draw = random.Random(3)
    batches = [[message(draw, 1) for _ in range(COPY_MIN)] for _ in range(6)]
    await asyncio.gather(*(store.apply(batch) for batch in batches))
    # What is there already makes the copy fail, and the batch goes through a staging table.
    newer = [[record._replace(version=2) for record in batch] for batch in batches]
    await asyncio.gather(*(store.apply(batch) for batch in newer))
    for batch in newer:
        assert await store.fetch([record.ident for record in batch]) == {record.ident: record for record in batch}
    rows = [row async for part in backend.db.stream("SELECT generate_series(1, 2500)") for row in part]
    assert rows == [(number,) for number in range(1, 2501)]
    abandoned = backend.db.stream("SELECT generate_series(1, 2500)", batch=10)
    await anext(abandoned)
    await abandoned.aclose()
    await backend.close()
    assert left_in_sessions(pooler, database) == []


async def test_notifications_need_the_direct_address(pooler: PgBouncerServer, database: str) -> None:
    deaf = PostgresDatabase(BackendUrl.parse(pooler.library_url(database)), name="deaf")
    assert not await deaf.listen("news", lambda: None)
    hearing = PostgresDatabase(BackendUrl.parse(pooler.library_url(database, direct=True)), name="hearing")
    calls = asyncio.Queue[None]()
    assert await hearing.listen("news", lambda: calls.put_nowait(None))
    async with asyncio.timeout(20):
        await calls.get()
        await deaf.run("NOTIFY news")
        await calls.get()
    await deaf.close()
    await hearing.close()


# --- faults behind it and of itself --------------------------------------------------------------------------------


async def test_a_write_past_its_deadline_is_cancelled_through_the_pooler(db: PostgresDatabase, admin: Admin) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await db.run(SLOW_INSERT, (1,), deadline=soon(0.3))
    assert time.monotonic() - began < 5.0
    assert await ids(admin) == []


async def test_a_write_whose_session_is_killed_behind_the_pooler_is_of_unknown_outcome(
    db: PostgresDatabase, admin: Admin
) -> None:
    task = asyncio.create_task(db.run(SLOW_INSERT, (1,)))
    await admin.execute("SELECT pg_terminate_backend(%s)", (await in_state(admin, "active"),))
    with pytest.raises(OutcomeUnknown):
        await task
    await db.run("INSERT INTO t (id) VALUES (2)")
    assert await ids(admin) == [2]


@pytest.mark.parametrize(("last", "error"), [("statement", Unavailable), ("commit", OutcomeUnknown)])
async def test_a_transaction_whose_session_is_killed_behind_the_pooler_says_what_is_known(
    db: PostgresDatabase, admin: Admin, last: str, error: type[DatalayerError]
) -> None:
    async def work() -> None:
        async with db.transaction() as tx:
            await tx.run("INSERT INTO t (id) VALUES (1)")
            await admin.execute("SELECT pg_terminate_backend(%s)", (await in_state(admin, "idle in transaction"),))
            if last == "statement":
                await tx.run("INSERT INTO t (id) VALUES (2)")

    with pytest.raises(error):
        await work()
    assert await ids(admin) == []


async def test_a_pooler_that_was_killed_is_unavailable_and_then_used_again(
    pooler: PgBouncerServer, db: PostgresDatabase, admin: Admin
) -> None:
    task = asyncio.create_task(db.run(SLOW_INSERT, (1,)))
    pid = await in_state(admin, "active")
    pooler.kill9()
    try:
        with pytest.raises(OutcomeUnknown):
            await task
        with pytest.raises(Unavailable):
            await db.run("INSERT INTO t (id) VALUES (2)", deadline=soon(5))
        await admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
    finally:
        pooler.start()
    await db.run("INSERT INTO t (id) VALUES (3)")
    assert await ids(admin) == [3]


async def test_a_session_killed_at_rest_behind_the_pooler_is_not_noticed(db: PostgresDatabase, admin: Admin) -> None:
    pid = (await db.fetch("SELECT pg_backend_pid()"))[0][0]
    await admin.execute("SELECT pg_terminate_backend(%s, 20000)", (pid,))
    await db.run("INSERT INTO t (id) VALUES (1)")
    assert await ids(admin) == [1]
