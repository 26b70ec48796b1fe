"""Replicas, standbys and poolers of the test servers do what they are trusted to do."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.servers import InstallFailed, NotControllable, ServerError, Servers, containers
from tests.servers.given import PGBOUNCER_VARIABLE, POSTGRES_VARIABLE, REPLICA_VARIABLE
from tests.servers.interface import PostgresPair
from tests.servers.pgbouncer import LocalPgBouncer
from tests.servers.pgbouncer.install import BINARY_VARIABLE, install_pgbouncer
from tests.servers.ports import is_free
from tests.servers.postgres import LocalPostgres, LocalReplica
from tests.servers.proxy import TcpProxy
from tests.servers.watchdog import look

ROOT = Path(__file__).parents[2]
# Where servers are given by address or come as containers there is no local starter to test.
__test__ = not (POSTGRES_VARIABLE in os.environ or containers.engine_answers())
pytestmark = pytest.mark.servers


@pytest.fixture
def local(servers: Servers) -> Servers:
    """The run's own: these tests leave what they share running."""
    return servers


@pytest.fixture
def pooler(local: Servers) -> LocalPgBouncer:
    found = local.pgbouncer()
    assert isinstance(found, LocalPgBouncer)
    return found


def eventually(holds: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)


def fetch(url: str, query: str, **options: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True, **options) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


# --- replicas ------------------------------------------------------------------------------------------------------


def test_four_primaries_and_the_replica_of_the_first_are_shared(local: Servers) -> None:
    primaries, pair = local.postgres(4), local.postgres_pair()
    assert local.postgres_pair() is pair
    assert pair.primary is primaries[0]
    identities = [fetch(server.url, "SELECT system_identifier FROM pg_control_system()") for server in primaries]
    assert len({identity[0] for identity in identities}) == 4
    assert fetch(pair.replica.url, "SELECT system_identifier FROM pg_control_system()") == identities[0]
    assert fetch(pair.replica.url, "SELECT pg_is_in_recovery()") == [(True,)]
    state = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'replica'"
    assert fetch(pair.primary.url, state) == [("async",)]


def test_a_paused_replica_lags_and_catches_up_when_resumed(local: Servers) -> None:
    pair = local.postgres_pair()
    url = pair.primary.create_database("pairs_lagging")
    fetch(url, "CREATE TABLE kept (id int)")
    fetch(url, "INSERT INTO kept VALUES (1)")
    pair.replica.await_caught_up()
    here = pair.replica.url_of(url)
    assert fetch(here, "SELECT id FROM kept") == [(1,)]
    pair.replica.pause_replay()
    before = pair.replica.lag_bytes()
    fetch(url, "INSERT INTO kept SELECT generate_series(2, 500)")
    assert pair.replica.lag_bytes() > before + 10_000
    assert fetch(here, "SELECT count(*) FROM kept") == [(1,)]
    pair.replica.resume_replay()
    pair.replica.await_caught_up()
    assert fetch(here, "SELECT count(*) FROM kept") == [(500,)]
    assert pair.replica.lag_bytes() < 10_000
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        fetch(here, "INSERT INTO kept VALUES (0)")


def test_a_replica_follows_again_after_either_side_was_killed(local: Servers) -> None:
    pair = local.postgres_pair()
    primary, replica = pair.primary, pair.replica
    assert isinstance(replica, LocalReplica)
    fetch(primary.url, "CREATE TABLE followed (id int)")
    replica.kill9()
    assert is_free(replica.host, replica.port)
    fetch(primary.url, "INSERT INTO followed VALUES (1)")
    replica.start()
    replica.await_caught_up()
    assert fetch(replica.url, "SELECT id FROM followed") == [(1,)]
    primary.kill9()
    assert fetch(replica.url, "SELECT id FROM followed") == [(1,)], "it serves reads alone"
    primary.start()
    replica.await_streaming()
    fetch(primary.url, "INSERT INTO followed VALUES (2)")
    replica.await_caught_up()
    assert fetch(replica.url, "SELECT count(*) FROM followed") == [(2,)]
    fetch(primary.url, "DROP TABLE followed")


# --- synchronous standbys ------------------------------------------------------------------------------------------


class Writer:
    """Numbers that were acknowledged, written one by one until the server goes."""

    def __init__(self, url: str) -> None:
        self.acknowledged: list[int] = []
        self.failed = False
        self._url = url
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                while True:
                    number = len(self.acknowledged)
                    connection.execute("INSERT INTO kept VALUES (%s)", (number,))
                    self.acknowledged.append(number)
        except psycopg.OperationalError:
            self.failed = True

    def join(self) -> None:
        self._thread.join(30)
        assert self.failed


def test_acknowledged_commits_survive_kill9_and_promotion(local: Servers) -> None:
    pair = local.fresh_postgres_pair("failover", synchronous=True)
    url = pair.primary.create_database("kept")
    fetch(url, "CREATE TABLE kept (id int)")
    with TcpProxy.before(url) as address:
        writer = Writer(address.url(url))
        eventually(lambda: len(writer.acknowledged) >= 200)
        pair.primary.kill9()
        writer.join()
        pair.replica.promote()
        address.lead_to(pair.replica.url)
        found = {number for (number,) in fetch(address.url(url), "SELECT id FROM kept")}
        assert found >= set(writer.acknowledged)
        assert len(found) <= len(writer.acknowledged) + 1, "at most the one whose answer was lost"
        fetch(address.url(url), "INSERT INTO kept VALUES (-1)")
    after = pair.replica.url_of(url)
    again = local.fresh_replica(pair.replica, "failover-again", synchronous=True)
    fetch(after, "INSERT INTO kept VALUES (-2)")
    again.await_caught_up()
    assert fetch(again.url_of(url), "SELECT id FROM kept WHERE id < 0 ORDER BY id") == [(-2,), (-1,)]
    pair.replica.kill9()
    pair.replica.start()
    assert fetch(pair.replica.url, "SELECT pg_is_in_recovery()") == [(False,)], "promoted for good"


def test_a_commit_waits_while_the_synchronous_standby_is_away(local: Servers) -> None:
    pair = local.fresh_postgres_pair("waiting", synchronous=True)
    fetch(pair.primary.url, "CREATE TABLE kept (id int)")
    pair.replica.pause_replay()
    fetch(pair.primary.url, "INSERT INTO kept VALUES (1)")  # received, though not shown
    pair.replica.resume_replay()
    pair.replica.kill9()
    committed = threading.Thread(target=fetch, args=(pair.primary.url, "INSERT INTO kept VALUES (2)"))
    committed.start()
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    eventually(lambda: fetch(pair.primary.url, waits) == [(1,)])
    assert committed.is_alive()
    pair.replica.start()
    committed.join(30)
    assert not committed.is_alive()
    pair.primary.kill9()
    pair.primary.start()
    assert fetch(pair.primary.url, "SELECT id FROM kept ORDER BY id") == [(1,), (2,)]
    assert fetch(pair.primary.url, "SHOW synchronous_standby_names") == [('FIRST 1 ("waiting-standby")',)]


def test_a_replica_that_missed_the_commit_would_be_noticed(local: Servers) -> None:
    """Control of the failover test: asynchronous and behind, a promoted replica has lost what was acknowledged."""
    pair = local.fresh_postgres_pair("careless")
    fetch(pair.primary.url, "CREATE TABLE kept (id int)")
    pair.replica.await_caught_up()
    pair.replica.pause()
    fetch(pair.primary.url, "INSERT INTO kept VALUES (1)")
    pair.primary.kill9()
    # What had reached the replica's socket would be read after all.
    pair.replica.kill9()
    pair.replica.start()
    pair.replica.promote()
    assert fetch(pair.replica.url, "SELECT id FROM kept") == []


# --- PgBouncer -----------------------------------------------------------------------------------------------------


def test_pgbouncer_serves_transactions_of_many_clients_over_few_sessions(
    local: Servers, pooler: LocalPgBouncer
) -> None:
    assert local.pgbouncer() is pooler
    url = pooler.url_of(pooler.server.create_database("pairs_pooled"))
    fetch(url, "CREATE TABLE kept (id int)")

    async def client(number: int) -> int:
        async with await psycopg.AsyncConnection.connect(url, prepare_threshold=None) as connection:
            pids = set()
            for _ in range(3):
                cursor = await connection.execute("SELECT pg_backend_pid()")
                await connection.execute("INSERT INTO kept VALUES (%s)", (number,))
                again = await connection.execute("SELECT pg_backend_pid()")
                first, second = await cursor.fetchone(), await again.fetchone()
                assert first == second, "one transaction, one session"
                assert first is not None
                pids.add(first[0])
                await connection.commit()
            return len(pids)

    async def everybody() -> None:
        assert all(await asyncio.gather(*(client(number) for number in range(40))))

    asyncio.run(everybody())
    assert fetch(url, "SELECT count(*), count(DISTINCT id) FROM kept") == [(120, 40)]
    sessions = fetch(url, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'pairs_pooled'")[0][0]
    assert 1 <= sessions <= 5
    (pool,) = [pool for pool in pooler.show("pools") if pool["database"] == "pairs_pooled"]
    assert pool["pool_mode"] == "transaction"


def test_pgbouncer_hands_a_session_with_its_settings_to_the_next_client(local: Servers) -> None:
    """What makes SET a fault behind it: the control of the tests that the library leaks nothing."""
    one = local.fresh_pgbouncer("one-session", local.postgres(1)[0], settings={"default_pool_size": "1"})
    with psycopg.connect(one.url, autocommit=True) as first, psycopg.connect(one.url, autocommit=True) as second:
        first.execute("SET lock_timeout = 4321")
        assert second.execute("SHOW lock_timeout").fetchone() == ("4321ms",)
        first.execute("PREPARE leaked AS SELECT 1")
        assert second.execute("SELECT name FROM pg_prepared_statements").fetchall() == [("leaked",)]
    one.stop()
    assert not one.running
    assert is_free(one.host, one.port)


def test_pgbouncer_comes_back_after_kill9_and_leads_to_a_server_that_came_back(local: Servers) -> None:
    server = local.postgres(2)[1]
    pooler = local.pgbouncer(server)
    assert pooler is not local.pgbouncer()
    assert isinstance(pooler, LocalPgBouncer)
    identity = "SELECT system_identifier FROM pg_control_system()"
    expected = fetch(server.url, identity)
    assert fetch(pooler.url, identity) == expected
    pooler.kill9()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        fetch(pooler.url, "SELECT 1")
    pooler.start()
    server.kill9()
    server.start()

    def answers() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            return fetch(pooler.url, identity) == expected
        return False

    eventually(answers)


def test_the_library_is_told_of_the_pooler_in_the_url(pooler: LocalPgBouncer) -> None:
    server = pooler.server
    assert isinstance(server, LocalPostgres)
    database = server.url.replace("/postgres", "/app")
    base = f"postgresql://postgres:secret@127.0.0.1:{pooler.port}/app"
    assert pooler.library_url(database) == f"{base}?pgbouncer=true"
    assert pooler.library_url(database, direct=True) == f"{base}?pgbouncer=true&direct=127.0.0.1:{server.port}"


# --- given ones, and the end of a run ------------------------------------------------------------------------------


def test_given_addresses_are_used(local: Servers, pooler: LocalPgBouncer, monkeypatch: pytest.MonkeyPatch) -> None:
    pair: PostgresPair = local.postgres_pair()
    monkeypatch.setenv(POSTGRES_VARIABLE, pair.primary.url)
    with Servers() as servers, pytest.raises(NotControllable, match=REPLICA_VARIABLE):
        servers.postgres_pair()
    monkeypatch.setenv(REPLICA_VARIABLE, pair.replica.url)
    with Servers() as servers:
        given = servers.postgres_pair()
        assert (given.primary.url, given.replica.url) == (pair.primary.url, pair.replica.url)
        given.replica.pause_replay()
        fetch(given.primary.url, "CREATE TABLE given_lag AS SELECT generate_series(1, 1000)")
        assert given.replica.lag_bytes() > 10_000
        fetch(given.primary.url, "DROP TABLE given_lag")
        given.replica.resume_replay()
        given.replica.await_caught_up()
        with pytest.raises(NotControllable):
            given.replica.kill9()
        with pytest.raises(NotControllable):
            servers.fresh_replica(given.primary, "more")
        before_given = servers.pgbouncer()
        assert before_given.controllable
        assert fetch(before_given.url, "SELECT 1") == [(1,)]
        monkeypatch.setenv(PGBOUNCER_VARIABLE, pooler.url)
    with Servers() as servers:
        given_pooler = servers.pgbouncer()
        assert given_pooler.library_url(pair.primary.url) == pooler.library_url(pair.primary.url)
        assert given_pooler.show("version")
        with pytest.raises(NotControllable):
            given_pooler.pause()


def test_a_missing_pgbouncer_fails_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(BINARY_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(InstallFailed, match=f"{BINARY_VARIABLE}=.*nowhere"):
        install_pgbouncer()


def test_a_replica_that_cannot_copy_says_why(local: Servers) -> None:
    primary = local.fresh_postgres("dead")
    primary.kill9()
    with pytest.raises(ServerError, match=r"pg_basebackup(?s:.*)refused"):
        local.fresh_replica(primary, "orphan")


CHILD = """
    import signal
    from tests.servers import Servers
    servers = Servers()
    pair = servers.fresh_postgres_pair("dying", synchronous=True)
    pooler = servers.fresh_pgbouncer("dying-pooler", pair.primary)
    pair.replica.pause()
    print(*(f"{one.pid} {one.port}" for one in (pair.primary, pair.replica, pooler)), flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_replica_and_no_pooler_outlives_a_session_that_dies(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        said = [int(word) for word in child.stdout.readline().split()]
    assert len(said) == 6
    pids, ports = said[::2], said[1::2]
    assert all(look(pid) for pid in pids)
    child.send_signal(number)
    child.wait(30)
    eventually(lambda: not any(look(pid) for pid in pids))
    eventually(lambda: all(is_free("127.0.0.1", port) for port in ports))
