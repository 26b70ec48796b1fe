"""All servers of one test run: started on first use, shared for the rest of the run, gone at its end."""

import os
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.cassandra import LocalCassandra, LocalCassandraCluster, NodePlan
from tests.servers.cassandra import install as install_cassandra
from tests.servers.cassandra.cluster import ring_tokens
from tests.servers.given import given_cassandra, given_postgres
from tests.servers.interface import CassandraCluster, CassandraServer, PostgresServer
from tests.servers.ports import LOOPBACK, PortLease, lease_port
from tests.servers.postgres import LocalPostgres
from tests.servers.postgres import install as install_postgres
from tests.servers.postgres.install import make_open_folder
from tests.servers.watchdog import Watchdog, kill_marked

_NATIVE_PORT = 9042
_STORAGE_PORT = 7000


class Servers:
    """Starts real servers as children of this process and ends them with it, however it ends.

    Nothing happens before the first server is asked for. A server that cannot be started raises; no call skips.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex[:12]
        self._owner = os.getpid()
        self._folder: Path | None = None
        self._watchdog: Watchdog | None = None
        self._leases: list[PortLease] = []
        self._postgres: list[PostgresServer] = []
        self._cassandra: CassandraServer | None = None
        self._clusters: dict[int, CassandraCluster] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills all servers of this run and removes their data; nothing in a fork of the owner."""
        if os.getpid() != self._owner:
            return
        if self._watchdog is not None:
            kill_marked(self._mark)
            self._watchdog.release()
            self._watchdog = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        while self._leases:
            self._leases.pop().release()

    def postgres(self, count: int = 1, *, port: int | None = None) -> list[PostgresServer]:
        """The first `count` shared Postgres clusters of the run, those missing started side by side."""
        if given := given_postgres(count, run=self._mark):
            return list(given)
        missing = count - len(self._postgres)
        if missing > 0:
            first = len(self._postgres)
            self._postgres += self._start_postgres(
                [f"postgres-{first + number}" for number in range(missing)], port=port, settings={}
            )
        return self._postgres[:count]

    def fresh_postgres(self, name: str, *, settings: Mapping[str, str] | None = None) -> PostgresServer:
        """A cluster for one test alone, with its own settings if need be; about 0.2 s."""
        return self._start_postgres([name], port=None, settings=settings or {})[0]

    def cassandra(self) -> CassandraServer:
        """The shared single Cassandra node of the run."""
        if given := given_cassandra():
            return given
        if self._cassandra is None:
            node = self._plan_cassandra(1)[0]
            node.start()
            self._cassandra = node
        return self._cassandra

    def cassandra_cluster(self, count: int = 3) -> CassandraCluster:
        """The shared Cassandra ring of that many nodes (three or more), on 127.0.0.1 and up."""
        if given := given_cassandra():
            return given
        if count not in self._clusters:
            cluster = LocalCassandraCluster(self._plan_cassandra(count))
            cluster.start()
            self._clusters[count] = cluster
        return self._clusters[count]

    def _start_postgres(
        self, names: list[str], *, port: int | None, settings: Mapping[str, str]
    ) -> list[PostgresServer]:
        install = install_postgres()
        servers = [
            LocalPostgres(
                name,
                install=install,
                folder=self._new_folder(name),
                lease=self._lease(preferred=port if number == 0 else None),
                mark=self._mark,
                settings=settings,
            )
            for number, name in enumerate(names)
        ]
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(LocalPostgres.start, servers))
        return list(servers)

    def _plan_cassandra(self, count: int) -> list[LocalCassandra]:
        install = install_cassandra()
        hosts = [f"127.0.0.{number}" for number in range(1, count + 1)]
        native = self._lease(*hosts, preferred=_NATIVE_PORT).port
        storage = self._lease(*hosts, preferred=_STORAGE_PORT).port
        nodes = []
        for number, host in enumerate(hosts):
            name = f"cassandra-{count}-{number + 1}"
            plan = NodePlan(
                name=name,
                cluster=f"datalayer-{self._mark}-{count}",
                host=host,
                native_port=native,
                storage_port=storage,
                jmx_port=self._lease().port,
                seeds=hosts,
                tokens=ring_tokens(number, count),
            )
            folder = self._new_folder(name)
            nodes.append(LocalCassandra(plan, install=install, folder=folder, mark=self._mark))
        return nodes

    def _lease(self, *hosts: str, preferred: int | None = None) -> PortLease:
        lease = lease_port(hosts or (LOOPBACK,), preferred=[] if preferred is None else [preferred])
        self._leases.append(lease)
        return lease

    def _new_folder(self, name: str) -> Path:
        if self._folder is None:
            self._folder = make_open_folder("datalayer-servers-")
            self._watchdog = Watchdog(self._mark, self._folder)
        folder = self._folder / name
        folder.mkdir()
        return folder
