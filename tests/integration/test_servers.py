"""The starter of real servers keeps its promises: data survives kills, nothing survives the run."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cassandra import ConsistencyLevel
from cassandra.cluster import Cluster, Session
from cassandra.query import SimpleStatement

from tests.servers import NotControllable, PortBusy, Servers, StartFailed, containers
from tests.servers.cassandra import LocalCassandra, LocalCassandraCluster
from tests.servers.given import CASSANDRA_VARIABLE, POSTGRES_VARIABLE
from tests.servers.ports import is_free, lease_port
from tests.servers.postgres import LocalPostgres
from tests.servers.proxy import TcpProxy
from tests.servers.watchdog import look

ROOT = Path(__file__).parents[2]
# Where servers are given by address or come as containers there is no local starter to test.
__test__ = not (POSTGRES_VARIABLE in os.environ or CASSANDRA_VARIABLE in os.environ or containers.engine_answers())
pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def local() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture(scope="module")
def postgres(local: Servers) -> LocalPostgres:
    server = local.postgres(1)[0]
    assert isinstance(server, LocalPostgres)
    return server


@pytest.fixture(scope="module")
def node(local: Servers) -> LocalCassandra:
    server = local.cassandra()
    assert isinstance(server, LocalCassandra)
    return server


@contextlib.contextmanager
def cql(node: LocalCassandra) -> Iterator[Session]:
    patience = {"connect_timeout": 60, "control_connection_timeout": 60}
    cluster = Cluster([node.host], port=node.port, protocol_version=5, **patience)
    try:
        session = cluster.connect()
        session.default_timeout = 60
        yield session
    finally:
        cluster.shutdown()


def eventually(holds: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


def fetch(url: str, query: str, **options: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True, **options) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def test_postgres_clusters_are_shared_and_distinct(local: Servers) -> None:
    first, second = local.postgres(2)
    assert [first, second] == local.postgres(2)
    identities = [fetch(server.url, "SELECT system_identifier FROM pg_control_system()") for server in (first, second)]
    assert identities[0] != identities[1]
    assert fetch(first.url, "SHOW wal_level") == [("logical",)]


def test_postgres_kill9_and_start_keep_committed_rows(postgres: LocalPostgres) -> None:
    url = postgres.create_database("kill9")
    fetch(url, "CREATE TABLE kept AS SELECT 1 AS id")
    with psycopg.connect(url) as open_transaction:
        open_transaction.execute("INSERT INTO kept VALUES (2)")
        backend = open_transaction.info.backend_pid
        postmaster = postgres.pid
        postgres.kill9()
        assert look(postmaster) is None
        assert look(backend) is None
        assert is_free(postgres.host, postgres.port)
        with pytest.raises(psycopg.OperationalError):
            open_transaction.execute("SELECT 1")
    postgres.start()
    assert fetch(url, "SELECT id FROM kept") == [(1,)]


def test_postgres_stop_and_start_may_be_repeated(postgres: LocalPostgres) -> None:
    postgres.stop()
    postgres.stop()
    assert not postgres.running
    postgres.start()
    pid = postgres.pid
    postgres.start()
    assert postgres.pid == pid
    assert fetch(postgres.url, "SELECT 1") == [(1,)]


def test_postgres_pause_hangs_open_connections_and_resume_answers_them(postgres: LocalPostgres) -> None:
    answers: list[list[tuple[Any, ...]]] = []
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        asked = threading.Thread(target=lambda: answers.append(connection.execute("SELECT 7").fetchall()))
        postgres.pause()
        try:
            asked.start()
            asked.join(0.4)
            assert not answers
            with pytest.raises(psycopg.OperationalError):
                fetch(postgres.url, "SELECT 1", connect_timeout=2)
        finally:
            postgres.resume()
        asked.join(30)
    assert answers == [[(7,)]]


def test_a_taken_port_is_refused_by_name(local: Servers) -> None:
    server = local.fresh_postgres("taken")
    assert isinstance(server, LocalPostgres)
    server.kill9()
    with socket.create_server((server.host, server.port)), pytest.raises(PortBusy, match=f"taken.*:{server.port}"):
        server.start()
    server.start()
    server.stop()


def test_a_server_that_cannot_start_says_why(local: Servers) -> None:
    with pytest.raises(StartFailed, match="no_such_setting"):
        local.fresh_postgres("broken", settings={"no_such_setting": "1"})


def test_cassandra_kill9_and_start_keep_acknowledged_rows(node: LocalCassandra) -> None:
    node.create_keyspace("kill9")
    with cql(node) as session:
        session.execute("CREATE TABLE kill9.kept (id int PRIMARY KEY)")
        for number in range(100):
            session.execute("INSERT INTO kill9.kept (id) VALUES (%s)", [number])
        node.kill9()
    assert is_free(node.host, node.port)
    node.start()
    with cql(node) as session:
        assert {row.id for row in session.execute("SELECT id FROM kill9.kept")} == set(range(100))


def test_cassandra_pause_hangs_and_resume_answers(node: LocalCassandra) -> None:
    with cql(node) as session:
        node.pause()
        try:
            answer = session.execute_async("SELECT key FROM system.local")
            settled = threading.Event()
            answer.add_callbacks(lambda _: settled.set(), lambda _: settled.set())
            assert not settled.wait(0.4)
        finally:
            node.resume()
        assert answer.result().one().key == "local"


def test_cassandra_stops_in_order_and_nodetool_speaks(node: LocalCassandra) -> None:
    node.stop()
    assert not node.running
    node.start()
    assert f"UN  {node.host}" in node.nodetool("status")


def test_a_ring_serves_quorum_without_one_node(local: Servers) -> None:
    ring = local.cassandra_cluster(3)
    assert isinstance(ring, LocalCassandraCluster)
    assert ring.create_keyspace("quorum").endswith("/quorum?local_dc=datacenter1&replication=3")
    first, _, third = ring.nodes
    with cql(first) as session:
        session.execute("CREATE TABLE quorum.kept (id int PRIMARY KEY)")
        third.kill9()
        for number in range(50):
            insert = SimpleStatement(
                f"INSERT INTO quorum.kept (id) VALUES ({number})", consistency_level=ConsistencyLevel.QUORUM
            )
            session.execute(insert)
        third.start()
        ring.await_whole()
        everything = SimpleStatement("SELECT id FROM quorum.kept", consistency_level=ConsistencyLevel.ALL)
        assert {row.id for row in session.execute(everything)} == set(range(50))
    ring.stop()


# What a test session does, with a fork that keeps every descriptor open, and a server that is paused.
CHILD = """
    import os, signal
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup, which a child inherits
    from tests.servers import Servers
    servers = Servers()
    paused, other = servers.postgres(2)
    paused.pause()
    cassandra = servers.cassandra()
    fork = os.fork()
    if fork == 0:
        signal.pause()
    pids = [paused.pid, other.pid, cassandra.pid]
    print(fork, servers._folder, *pids, paused.port, other.port, cassandra.port, flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_outlives_a_session_that_dies(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        said = child.stdout.readline().split()
        assert len(said) == 8, said
        fork, folder, *rest = said
        numbers = [int(word) for word in rest]
        pids, ports = numbers[:3], numbers[3:]
        try:
            assert all(look(pid) for pid in pids)
            child.send_signal(number)
            child.wait(30)
            eventually(lambda: not any(look(pid) for pid in pids))
            eventually(lambda: all(is_free("127.0.0.1", port) for port in ports))
            eventually(lambda: not Path(folder).exists())
        finally:
            os.kill(int(fork), signal.SIGKILL)


def test_closing_ends_the_servers_and_the_watchdog() -> None:
    with Servers() as servers:
        server = servers.postgres(1)[0]
        assert isinstance(server, LocalPostgres)
        pid, folder = server.pid, server.data.parents[1]
        watchdogs = subprocess.run(
            ["pgrep", "-f", f"watchdog.py {os.getpid()} .*{folder}"], capture_output=True, text=True, check=True
        ).stdout.split()
    assert look(pid) is None
    assert [look(int(pid)) for pid in watchdogs] == [None]
    assert not folder.exists()
    assert is_free(server.host, server.port)


def test_a_given_postgres_is_used_and_not_steered(postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, postgres.url)
    with Servers() as servers:
        first, second = servers.postgres(2)
        assert first.url == postgres.url
        assert fetch(second.url, "SELECT current_database()") == [(second.url.rsplit("/", 1)[1],)]
        assert servers.postgres(2)[1].url == second.url
        assert not first.controllable
        with pytest.raises(NotControllable, match=rf"127.0.0.1:{postgres.port} .* cannot be killed") as refusal:
            first.kill9()
        assert "secret" not in str(refusal.value)


def test_a_given_cassandra_is_used(node: LocalCassandra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CASSANDRA_VARIABLE, node.url)
    with Servers() as servers:
        assert servers.cassandra_cluster(3).url == node.url
        assert "/given?" in servers.cassandra().create_keyspace("given")


def test_two_installers_install_once_and_clear_leftovers(tmp_path: Path) -> None:
    (tmp_path / "thing.partial-dead").mkdir()
    script = """
        import sys, time
        from pathlib import Path
        from tests.servers.cache import installed
        def build(folder):
            time.sleep(0.3)
            (folder / "file").write_text("whole")
            print("built", flush=True)
        assert (installed("thing", build) / "file").read_text() == "whole"
    """
    environment = {**os.environ, "DATALAYER_SERVERS_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    installers = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [installer.communicate(timeout=60)[0] for installer in installers]
    assert [installer.returncode for installer in installers] == [0, 0, 0]
    assert "".join(outputs) == "built\n"
    assert {path.name for path in tmp_path.iterdir()} == {"thing", "thing.lock"}


def test_leased_ports_are_kept_apart() -> None:
    first = lease_port()
    second = lease_port(preferred=[first.port])
    try:
        assert second.port != first.port
    finally:
        first.release()
        second.release()


def test_stack_prints_the_toml_and_ends_with_sigint(tmp_path: Path) -> None:
    target = tmp_path / "stack.toml"
    command = [sys.executable, "-m", "tests.servers", "stack", "--with", "redis,s3", "--toml", str(target)]
    stack = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually(lambda: target.exists() or stack.poll() is not None, timeout_s=300)
    assert stack.poll() is None, stack.communicate()
    settings = tomllib.loads(target.read_text())
    url = settings["backends"]["main"]["url"]
    assert fetch(url, "SELECT current_database()") == [("datalayer",)]
    assert settings["backends"]["cassandra"]["url"].startswith("cassandra://127.0.0.1:")
    assert settings["backends"]["redis"]["url"].startswith("redis://127.0.0.1:")
    assert settings["backends"]["s3"]["url"].startswith("s3://")
    stack.send_signal(signal.SIGINT)
    printed, _ = stack.communicate(timeout=60)
    assert stack.returncode == 0
    assert tomllib.loads(printed) == settings
    assert not target.exists()
    with pytest.raises(psycopg.OperationalError):
        fetch(url, "SELECT 1")


@pytest.fixture
def proxy(postgres: LocalPostgres) -> Iterator[TcpProxy]:
    with TcpProxy.before(postgres.url) as proxy:
        yield proxy


def test_proxy_passes_and_adds_latency(proxy: TcpProxy, postgres: LocalPostgres) -> None:
    url = proxy.url(postgres.url)
    with psycopg.connect(url, autocommit=True) as connection:
        blob = connection.execute("SELECT repeat('x', 3000000)").fetchone()
        assert blob is not None
        assert len(blob[0]) == 3_000_000
        assert proxy.connections == 1
        proxy.delay(0.1)
        began = time.monotonic()
        connection.execute("SELECT 1")
        assert time.monotonic() - began >= 0.2
    eventually(lambda: proxy.connections == 0)


def test_proxy_cut_resets_and_refuses_until_restored(proxy: TcpProxy, postgres: LocalPostgres) -> None:
    url = proxy.url(postgres.url)
    with psycopg.connect(url) as connection:
        connection.execute("SELECT 1")
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        fetch(url, "SELECT 1")
    proxy.restore()
    assert fetch(url, "SELECT 1") == [(1,)]


def test_proxy_drop_resets_and_serves_new_connections(proxy: TcpProxy, postgres: LocalPostgres) -> None:
    url = proxy.url(postgres.url)
    with psycopg.connect(url) as connection:
        connection.execute("SELECT 1")
        proxy.drop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert fetch(url, "SELECT 1") == [(1,)]


def test_proxy_hang_accepts_answers_nothing_and_delivers_after_restore(
    proxy: TcpProxy, postgres: LocalPostgres
) -> None:
    url = proxy.url(postgres.url)
    answers: list[list[tuple[Any, ...]]] = []
    with psycopg.connect(url, autocommit=True) as connection:
        proxy.hang()
        with pytest.raises(psycopg.OperationalError):
            fetch(url, "SELECT 1", connect_timeout=2)
        asked = threading.Thread(target=lambda: answers.append(connection.execute("SELECT 7").fetchall()))
        asked.start()
        asked.join(0.3)
        assert not answers
        proxy.restore()
        asked.join(30)
    assert answers == [[(7,)]]


def test_proxy_hang_replies_commits_and_loses_the_answer(proxy: TcpProxy, postgres: LocalPostgres) -> None:
    direct = postgres.create_database("unknown_outcome")
    fetch(direct, "CREATE TABLE kept (id int)")
    failures: list[Exception] = []

    def insert(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        try:
            connection.execute("INSERT INTO kept VALUES (1)")
        except psycopg.OperationalError as error:
            failures.append(error)

    with psycopg.connect(proxy.url(direct), autocommit=True) as connection:
        proxy.hang_replies()
        writer = threading.Thread(target=insert, args=(connection,))
        writer.start()
        eventually(lambda: fetch(direct, "SELECT id FROM kept") == [(1,)])
        assert writer.is_alive()
        proxy.cut()
        writer.join(30)
    assert len(failures) == 1
