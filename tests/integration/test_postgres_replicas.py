"""Where a server is in the log, pools that lead to one run of one server, and a primary that changes, on real Postgres."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.errors import OutcomeUnknown, Unavailable
from datalayer.settings import BackendUrl
from datalayer.stores.postgres.database import PostgresDatabase
from datalayer.stores.postgres.replicas import LogEnd, ReplicaDatabase
from tests.servers import Servers
from tests.servers.interface import PostgresPair
from tests.servers.proxy import TcpProxy

pytestmark = pytest.mark.servers
CLOCK = SystemClock()
PAGE = 8192
SHOWN = "SELECT count(*) FROM t"


def soon(timeout_s: float = 10.0) -> Deadline:
    return Deadline(CLOCK, timeout_s)


def told(url: str, *statements: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        found: list[tuple[object, ...]] = []
        for statement in statements:
            cursor = connection.execute(statement.encode())
            found = cursor.fetchall() if cursor.description else []
        return found


@pytest.fixture(scope="module")
def pair(servers: Servers) -> PostgresPair:
    return servers.fresh_postgres_pair("positions")


@pytest.fixture
def url(pair: PostgresPair) -> Iterator[str]:
    name = f"replicas_{uuid.uuid4().hex[:8]}"
    made = pair.primary.create_database(name)
    told(made, "CREATE TABLE t (id int PRIMARY KEY)")
    pair.replica.await_caught_up()
    yield made
    told(pair.primary.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def db(url: str) -> AsyncIterator[PostgresDatabase]:
    database = PostgresDatabase(BackendUrl.parse(url), name="main", pool_max=4)
    yield database
    await database.close()


@pytest.fixture
async def near(pair: PostgresPair, url: str) -> AsyncIterator[ReplicaDatabase]:
    database = replica_of(pair.replica.url_of(url))
    yield database
    await database.close()


def replica_of(url: str) -> ReplicaDatabase:
    return ReplicaDatabase(BackendUrl.parse(url), name="main replica", process="test", pool_max=4)


def several(first: str, second: str) -> BackendUrl:
    """The database of the first URL on the servers of both, in this order."""
    there = urlsplit(second)
    return BackendUrl.parse(first.replace("@", f"@{there.hostname}:{there.port},"))


# --- positions -----------------------------------------------------------------------------------------------------


async def test_an_idle_replica_is_exactly_where_its_primary_is(
    pair: PostgresPair, db: PostgresDatabase, near: ReplicaDatabase
) -> None:
    end = LogEnd(db)
    for number in range(20):
        await db.run("INSERT INTO t VALUES (%s)", (number,))
        asked = await end.ask(soon())
        await asyncio.to_thread(pair.replica.await_caught_up)
        found = await near.look(soon())
        assert found.position[:2] == asked[:2]
        assert found.position.lsn >= asked.lsn
    assert (await near.look(soon())).position == await end.ask(soon())


async def test_a_log_that_ends_with_a_page_does_not_make_a_replica_look_late(
    pair: PostgresPair, db: PostgresDatabase, near: ReplicaDatabase
) -> None:
    where = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"
    emit = "SELECT pg_logical_emit_message(false, 'x', repeat('y', %s))"
    await db.fetch(emit, (100,))
    for _ in range(200):
        before = (await db.fetch(where))[0][0]
        await db.fetch(emit, (1000,))
        after = (await db.fetch(where))[0][0]
        extra = after - before - 1000
        left = PAGE - after % PAGE
        if not 300 < left < 5000 or before // PAGE != after // PAGE:
            continue
        await db.fetch(emit, (left - extra,))
        if (await db.fetch(where))[0][0] % PAGE == 24:
            break
    else:
        raise AssertionError("the log never ended with a page")
    asked = await LogEnd(db).ask(soon())
    assert asked.lsn % PAGE == 0
    await db.fetch("SELECT pg_sleep(0)")
    flushed = "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint"
    async with asyncio.timeout(10):  # the log writer flushes what nobody waits for
        while (await db.fetch(flushed))[0][0] < asked.lsn:
            await asyncio.sleep(0.01)
        while (await near.look(soon())).position.lsn < asked.lsn:
            await asyncio.sleep(0.01)


async def test_a_role_without_any_privilege_learns_where_both_are(
    pair: PostgresPair, url: str, db: PostgresDatabase
) -> None:
    told(url, "DROP ROLE IF EXISTS plain", "CREATE ROLE plain LOGIN PASSWORD 'plain'")
    await asyncio.to_thread(pair.replica.await_caught_up)
    superuser = urlsplit(url).netloc.partition("@")[0]
    ours = PostgresDatabase(BackendUrl.parse(url.replace(superuser, "plain:plain")), name="main")
    theirs = replica_of(pair.replica.url_of(url).replace(superuser, "plain:plain"))
    try:
        end = await LogEnd(ours).ask(soon())
        assert (await theirs.look(soon())).position[:2] == end[:2]
    finally:
        await ours.close()
        await theirs.close()
        told(url, "DROP ROLE plain")


async def test_a_primary_is_no_replica_and_a_replica_no_primary(pair: PostgresPair, url: str) -> None:
    wrong = replica_of(url)
    with pytest.raises(Unavailable, match="no standby"):
        await wrong.look(soon())
    await wrong.close()
    standby = PostgresDatabase(BackendUrl.parse(pair.replica.url_of(url)), name="main")
    with pytest.raises(Unavailable, match="standby, or takes no writes"):
        await standby.fetch("SELECT 1")
    await standby.close()
    anyone = PostgresDatabase(BackendUrl.parse(pair.replica.url_of(url)), name="main", any_server=True)
    with pytest.raises(Unavailable, match="is a standby"):
        await LogEnd(anyone).ask(soon())
    await anyone.close()


# --- one run of one server -----------------------------------------------------------------------------------------


async def test_reads_wait_for_nobody_but_are_refused_before_the_first_look(near: ReplicaDatabase) -> None:
    with pytest.raises(Unavailable, match="has not been looked at"):
        await near.fetch(SHOWN)
    await near.look(soon())
    assert await near.fetch(SHOWN) == [(0,)]


async def test_a_restarted_replica_serves_nothing_before_it_was_looked_at_again(
    pair: PostgresPair, near: ReplicaDatabase
) -> None:
    first = await near.look(soon())
    assert await near.fetch(SHOWN) == [(0,)]
    await asyncio.to_thread(pair.replica.kill9)
    await asyncio.to_thread(pair.replica.start)
    with pytest.raises(Unavailable):
        await near.fetch(SHOWN)
    again = await near.look(soon())
    assert again.incarnation != first.incarnation
    assert await near.fetch(SHOWN) == [(0,)]


async def test_an_address_that_leads_to_another_replica_is_noticed_by_the_first_new_connection(
    servers: Servers, pair: PostgresPair, url: str
) -> None:
    other = servers.fresh_replica(pair.primary, f"other-{uuid.uuid4().hex[:6]}")
    try:
        await asyncio.to_thread(other.await_caught_up)
        with TcpProxy.before(pair.replica.url) as proxy:
            database = replica_of(proxy.url(pair.replica.url_of(url)))
            await database.look(soon())
            proxy.lead_to(other.url)
            with pytest.raises(Unavailable, match="another server"):
                await database.fetch(SHOWN)
            with pytest.raises(Unavailable, match="has not been looked at"):
                await database.fetch(SHOWN)
            await database.look(soon())
            assert await database.fetch(SHOWN) == [(0,)]
            await database.close()
    finally:
        await asyncio.to_thread(other.kill9)


async def test_a_look_that_is_late_ends_in_time_and_the_next_one_works(
    pair: PostgresPair, near: ReplicaDatabase
) -> None:
    await near.look(soon())
    pair.replica.pause()
    try:
        began = CLOCK.monotonic()
        with pytest.raises(Unavailable):
            await near.look(soon(0.2))
        assert CLOCK.monotonic() - began < 1.0
    finally:
        pair.replica.resume()
    await near.look(soon())
    assert await near.fetch(SHOWN) == [(0,)]


# --- the primary -----------------------------------------------------------------------------------------------------


async def test_of_several_hosts_the_one_that_takes_writes_is_used_and_tried_first_next_time(
    pair: PostgresPair, url: str
) -> None:
    database = PostgresDatabase(several(url, pair.replica.url), name="main", pool_max=2)
    await database.run("INSERT INTO t VALUES (1)")
    assert await database.fetch("SELECT pg_is_in_recovery()") == [(False,)]
    database.renew()
    pair.replica.pause()  # a host that hangs costs two seconds; the other one is asked before it now
    try:
        assert await database.fetch("SELECT 1", deadline=soon(1.0)) == [(1,)]
    finally:
        pair.replica.resume()
    await database.close()


async def test_connections_to_a_server_that_was_made_read_only_are_dropped_until_it_takes_writes(
    pair: PostgresPair, db: PostgresDatabase
) -> None:
    await asyncio.gather(*(db.fetch("SELECT pg_sleep(0.05)") for _ in range(3)))
    pids = await _sessions(db)
    assert len(pids) == 3
    told(pair.primary.url, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    try:
        async with asyncio.timeout(10):
            while (await db.fetch("SHOW default_transaction_read_only"))[0][0] != "on":
                await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="25006"):
            await db.run("INSERT INTO t VALUES (1)")
        with pytest.raises(Unavailable, match="takes no writes"):
            await db.run("INSERT INTO t VALUES (1)")
    finally:
        back = "SET default_transaction_read_only = off"
        told(pair.primary.url, back, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
    async with asyncio.timeout(10):
        while True:
            try:
                await db.run("INSERT INTO t VALUES (1)")
                break
            except Unavailable:
                await asyncio.sleep(0.01)
    assert not pids & await _sessions(db)


async def _sessions(db: PostgresDatabase) -> set[int]:
    rows = await db.fetch(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'datalayer/app' AND datname = current_database()"
    )
    return {int(row[0]) for row in rows}


async def test_a_commit_that_no_standby_confirmed_is_of_unknown_outcome(servers: Servers) -> None:
    synchronous = servers.fresh_postgres_pair("confirming", synchronous=True)
    told(synchronous.primary.url, "CREATE TABLE t (id int)")
    database = PostgresDatabase(BackendUrl.parse(synchronous.primary.url), name="main")
    await database.run("INSERT INTO t VALUES (0)")

    async def in_a_transaction() -> None:
        async with database.transaction(deadline=soon(0.3)) as tx:
            await tx.run("INSERT INTO t VALUES (1)")

    synchronous.replica.pause()
    try:
        with pytest.raises(OutcomeUnknown, match="did not confirm"):
            await database.run("INSERT INTO t VALUES (1)", deadline=soon(0.3))
        with pytest.raises(OutcomeUnknown, match="did not confirm"):
            await in_a_transaction()
        assert await database.fetch("SELECT count(*) FROM t") == [(3,)], "they were committed here all the same"
    finally:
        synchronous.replica.resume()
    await database.run("INSERT INTO t VALUES (2)")
    await database.close()
    synchronous.replica.kill9()
    synchronous.primary.kill9()
