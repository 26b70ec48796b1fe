"""The control store on a real Postgres: the contract, and races placed by locks."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from datalayer.clock import SystemClock
from datalayer.control.base import AdmitState, Control
from datalayer.control.connect import open_control
from datalayer.control.schema import ADMIT, GATE_LOCK, GATES, INTENTS, LEASES, PREFIX, STATE, VERSION
from datalayer.domains.record import Record
from datalayer.errors import DatalayerError, LostLease, OutcomeUnknown, SchemaAhead, SchemaBehind, Unavailable
from datalayer.routing.route import Phase, Place, Routing
from datalayer.settings import BackendUrl
from tests.servers import Servers
from tests.unit.test_control_contract import LEASE, ControlContract, Store, coordinate, gate, record
from tests.unit.test_control_intents import IntentContract

pytestmark = pytest.mark.servers
Connection = psycopg.AsyncConnection[tuple[object, ...]]
TIMES = {
    "leases": ["until_us"],
    "chunks": ["until_us"],
    "gates": ["until_us"],
    "processes": ["seen_us", "lease_us"],
    "migrations": ["started_us", "updated_us"],
}
GATE_KEY = f"hashtextextended('{GATE_LOCK}messages/1/target', 0)"
OURS = "application_name = 'datalayer/control' AND datname = current_database()"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Servers() as servers:
        server = servers.postgres(1)[0]
        name = f"control_{uuid.uuid4().hex[:12]}"
        yield server.create_database(name)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
async def other(url: str) -> AsyncIterator[Connection]:
    """A plain connection to an empty database: another program, or the operator's psql."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("DROP SCHEMA IF EXISTS public CASCADE")
        await connection.execute("CREATE SCHEMA public")
        yield connection


@pytest.fixture
async def store(url: str, other: Connection) -> AsyncIterator[Store]:
    clients: list[Control] = []

    async def connect() -> Control:
        client = open_control(BackendUrl.parse(url), SystemClock())
        await client.open(create=True)
        clients.append(client)
        return client

    async def pass_time(seconds: float) -> None:
        # Everything the store remembers a time of happened that much earlier: no test waits for a clock.
        for table, columns in TIMES.items():
            shifts = ", ".join(f"{column} = {column} - {round(seconds * 1e6)}" for column in columns)
            await other.execute(f"UPDATE {PREFIX}_{table} SET {shifts}".encode())

    yield Store(connect, pass_time)
    for client in clients:
        await client.close()


async def until_waiting(url: str, what: str, *, whose: str = OURS) -> None:
    """Return once a statement (of ours) that names ``what`` waits for a lock."""
    query = (
        f"SELECT count(*) FROM pg_stat_activity WHERE {whose} AND wait_event_type = 'Lock' AND strpos(query, %s) > 0"
    )
    # On a connection of its own: inside a transaction the view of other sessions stands still.
    async with asyncio.timeout(5), await psycopg.AsyncConnection.connect(url, autocommit=True) as watching:
        while True:
            row = await (await watching.execute(query.encode(), (what,))).fetchone()
            if row is not None and row[0]:
                return
            await asyncio.sleep(0.005)


async def kill_ours(other: Connection) -> int:
    """How many sessions were ended. Returns when they are gone: pg_terminate_backend itself only sends the signal."""
    cursor = await other.execute(f"SELECT pg_terminate_backend(pid), pid FROM pg_stat_activity WHERE {OURS}".encode())
    killed = [pid for _, pid in await cursor.fetchall()]
    async with asyncio.timeout(10):
        while await (await other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", (killed,))).fetchone():
            await asyncio.sleep(0.001)
    return len(killed)


class TestPostgres(ControlContract, IntentContract):
    pass


async def test_a_store_of_a_newer_version_is_refused_in_one_sentence(store: Store, other: Connection, url: str) -> None:
    await store.connect()
    await other.execute(f"UPDATE {STATE.name} SET version = version + 1".encode())
    late = open_control(BackendUrl.parse(url), SystemClock())
    with pytest.raises(SchemaAhead) as refused:
        await late.open(create=True)
    await late.close()
    assert f"schema version {VERSION + 1}, but this datalayer knows only {VERSION}" in str(refused.value)


async def test_an_empty_database_is_no_control_store_unless_it_may_be_made(other: Connection, url: str) -> None:
    control = open_control(BackendUrl.parse(url), SystemClock())
    with pytest.raises(SchemaBehind, match="no tables"):
        await control.open(create=False)
    await control.close()


async def test_many_that_make_the_store_at_once_make_one(store: Store) -> None:
    clients = await asyncio.gather(*(store.connect() for _ in range(6)))
    assert len({await client.deployment() for client in clients}) == 1


async def test_an_admission_that_waited_for_the_fence_sees_it(store: Store, other: Connection, url: str) -> None:
    control = await store.connect()
    _, log = await gate(control)
    # the control: lock and look in one statement, whose snapshot is older than the lock it waits for
    naive = f"SELECT g.fence FROM (SELECT pg_advisory_xact_lock_shared({GATE_KEY})) AS l, {GATES.name} AS g".encode()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as mistaken:
        async with other.transaction():
            await other.execute(f"SELECT pg_advisory_xact_lock({GATE_KEY})".encode())
            waiting = asyncio.create_task(log.admit(record(), lead=0, create=False, deadline=None))
            looking = asyncio.create_task(mistaken.execute(naive))
            await until_waiting(url, ADMIT)
            await until_waiting(url, "SELECT g.fence", whose="TRUE")
            await other.execute(f"UPDATE {GATES.name} SET fence = 'sealed'".encode())
        assert await (await looking).fetchone() == ("open",), "the placing shows nothing: nobody could have been wrong"
    assert (await waiting).state is AdmitState.FENCED
    assert await log.journal.backlog() == 0


async def test_a_fence_waits_for_a_running_admission(store: Store, other: Connection, url: str) -> None:
    control = await store.connect()
    token, log = await gate(control)
    call = f"SELECT {ADMIT}('messages/1/target', 1, 'message', '\\x01', '\\x01', 5, 0, '[]', 0, false)".encode()
    async with other.transaction():
        await other.execute(call)
        with pytest.raises(Unavailable):
            await log.fence(token, 1, 60.0, 0.1)
        fencing = asyncio.create_task(log.fence(token, 1, 60.0, 5.0))
        await until_waiting(url, "pg_advisory_xact_lock(")
        assert not fencing.done(), "an admission is still running"
    await fencing
    assert await log.journal.backlog() == 1
    assert (await log.admit(record(), lead=0, create=False, deadline=None)).state is AdmitState.FENCED


async def test_a_seal_that_waited_past_the_end_of_its_fence_is_refused(
    store: Store, other: Connection, url: str
) -> None:
    control = await store.connect()
    token, log = await gate(control)
    await log.fence(token, 1, 0.2, 1.0)
    async with other.transaction():
        await other.execute(f"SELECT pg_advisory_xact_lock_shared({GATE_KEY})".encode())
        sealing = asyncio.create_task(log.seal(token, 1))
        await until_waiting(url, "pg_advisory_xact_lock(")
        await asyncio.sleep(0.25)
    with pytest.raises(DatalayerError, match="had lapsed"):
        await sealing


async def test_a_publish_that_waited_for_another_take_is_refused(store: Store, other: Connection, url: str) -> None:
    control = await store.connect()
    await control.ensure_routes({"messages": Place("main")})
    token = await coordinate(control)
    async with other.transaction():
        await other.execute(f"UPDATE {LEASES.name} SET token = token + 1, holder = 'bob'".encode())
        moved = Routing("messages", 0, Phase.DUAL, Place("main"), Place("cassandra", 1), 1)
        publishing = asyncio.create_task(control.publish(token, moved, actor="ann"))
        stepping = asyncio.create_task(control.record_step(token, "Fence", "doing"))
        await until_waiting(url, "INSERT INTO")
        await until_waiting(url, "SELECT")
        assert not publishing.done()
        assert not stepping.done()
    for task in (publishing, stepping):
        with pytest.raises(LostLease):
            await task
    assert (await control.routings())[1]["messages"].epoch == 1
    assert await control.steps("m1") == []


async def test_settle_leaves_a_key_that_is_being_written(store: Store, other: Connection) -> None:
    control = await store.connect()
    _, log = await gate(control)
    busy, quiet = record(key=b"b" * 32), record(key=b"q" * 32)
    for one in (busy, quiet):
        await log.admit(one, lead=0, create=False, deadline=None)
    async with other.transaction():
        await other.execute(f"UPDATE {INTENTS.name} SET version = version + 2 WHERE key = %s".encode(), (b"b" * 32,))
        async with asyncio.timeout(2):
            await log.journal.settle([busy, quiet])
    assert await log.journal.pending(5) == [busy._replace(version=102)]


async def test_a_gate_under_another_isolation_admits_nothing(store: Store, other: Connection) -> None:
    control = await store.connect()
    _, log = await gate(control)
    call = f"SELECT {ADMIT}('messages/1/target', 1, 'message', '\\x01', '\\x01', 5, 0, '[]', 0, false)".encode()
    await other.execute(b"SET default_transaction_isolation = 'repeatable read'")
    with pytest.raises(psycopg.errors.InvalidTransactionState, match="READ COMMITTED"):
        await other.execute(call)
    await other.execute(b"SET default_transaction_isolation = 'read committed'")
    assert await log.journal.backlog() == 0
    await other.execute(call)
    assert await log.journal.backlog() == 1


async def test_a_notification_ends_the_wait_long_before_a_poll_would(store: Store) -> None:
    one, two = await store.connect(), await store.connect()
    waiting = asyncio.create_task(one.wait_news(0, 60.0, poll_s=15.0))
    await asyncio.sleep(0.1)
    await two.ensure_routes({"messages": Place("main")})
    async with asyncio.timeout(5):
        assert await waiting == 1


async def test_news_are_heard_after_the_loss_of_every_connection(store: Store, other: Connection) -> None:
    one, two = await store.connect(), await store.connect()
    await one.ensure_routes({"messages": Place("main")})
    heard: list[int] = []

    async def watch() -> None:
        while not heard or heard[-1] == 1:
            try:
                heard.append(await two.wait_news(1, 60.0, poll_s=15.0))
            except Unavailable:
                continue

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.1)
    assert await kill_ours(other) >= 2
    async with asyncio.timeout(10):
        while True:
            try:
                await one.ensure_routes({"users": Place("main")})
                break
            except (OutcomeUnknown, Unavailable):
                continue
        await watching
    assert heard[-1] == 2


async def test_no_acknowledged_intent_is_lost_when_connections_are_killed(store: Store, other: Connection) -> None:
    control = await store.connect()
    _, log = await gate(control)
    admitted: list[Record] = []
    faults: list[DatalayerError] = []
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            try:
                answer = await log.admit(record(), lead=0, create=False, deadline=None)
            except (Unavailable, OutcomeUnknown) as error:
                faults.append(error)
                continue
            assert answer.record is not None
            admitted.append(answer.record)

    tasks = [asyncio.create_task(write()) for _ in range(8)]
    for _ in range(10):
        await asyncio.sleep(0.03)
        await kill_ours(other)
    stop.set()
    await asyncio.gather(*tasks)
    kept = {row.key: row for row in await log.journal.pending(100_000)}
    assert faults, "no connection was killed inside a call: the test shows nothing"
    assert all(kept[one.key] == one for one in admitted)
    assert len(kept) <= len(admitted) + len(faults)


async def test_no_error_shows_the_password(other: Connection) -> None:
    for url in (
        f"postgresql://nobody:swordfish-17@{where(other)}/postgres",
        "postgresql://u:swordfish-17@127.0.0.1:1/x",
    ):
        control = open_control(BackendUrl.parse(url), SystemClock())
        with pytest.raises(DatalayerError) as refused:
            await control.open(create=True)
        await control.close()
        error = refused.value
        assert "swordfish" not in f"{error!r} {error} {error.__cause__!r} {error.__context__!r} {control!r}"


def where(connection: Connection) -> str:
    return f"{connection.info.host}:{connection.info.port}"


def test_our_tables_carry_our_prefix() -> None:
    assert all(table.name.startswith(PREFIX) for table in (STATE, GATES, INTENTS, LEASES))
    assert LEASE == "migrate:messages"
