"""All servers of one test run: started on first use, shared for the rest of the run, gone at its end.

Where a server comes from, in this order: an address in the environment, a container, a local install. To add a
product: a package with `install` (into the cache) and a class that owns a ServerProcess, a Protocol in
interface.py, and a method here that plans it, starts it and remembers it.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tests.servers import containers
from tests.servers.cassandra import HEAP, LocalCassandra, LocalCassandraCluster, NodePlan, install_cassandra
from tests.servers.cassandra.cluster import ring_tokens
from tests.servers.errors import NotControllable
from tests.servers.given import (
    PGBOUNCER_VARIABLE,
    POSTGRES_VARIABLE,
    given_cassandra,
    given_postgres,
    given_replica,
)
from tests.servers.interface import (
    CassandraCluster,
    CassandraServer,
    PgBouncerServer,
    PostgresPair,
    PostgresServer,
)
from tests.servers.pgbouncer import GivenPgBouncer, LocalPgBouncer, install_pgbouncer
from tests.servers.postgres import LocalPostgres, LocalReplica, install_postgres
from tests.servers.run import QUICK_JVM, refuse_fresh
from tests.servers.services import Services

_NATIVE_PORT = 9042
_STORAGE_PORT = 7000


class Servers(Services):
    """Starts real servers as children of this process and ends them with it, however it ends.

    Nothing happens before the first server is asked for. A server that cannot be started raises; no call skips.
    """

    def __init__(self, *, cassandra_heap: str = HEAP) -> None:
        """``cassandra_heap``: of each local node, as Java writes it."""
        super().__init__()
        self._cassandra_heap = cassandra_heap
        self._postgres: list[PostgresServer] = []
        self._pair: PostgresPair | None = None
        self._poolers: dict[str, PgBouncerServer] = {}
        self._cassandra: CassandraServer | None = None
        self._rings: dict[int, CassandraCluster] = {}

    def postgres(self, count: int = 1, *, port: int | None = None) -> list[PostgresServer]:
        """The first `count` shared Postgres clusters of the run, those missing started side by side."""
        have = len(self._postgres)
        if have < count:
            if given := given_postgres(have, count, run=self._run):
                self._postgres += given
            elif containers.engine_answers():
                for _ in range(have, count):
                    self._postgres.append(self._contain(containers.DockerPostgres(self._lease(preferred=port))))
            else:
                names = [f"postgres-{number}" for number in range(have, count)]
                self._postgres += self._start_postgres(names, port=port, settings={})
        return self._postgres[:count]

    def fresh_postgres(self, name: str, *, settings: Mapping[str, str] | None = None) -> PostgresServer:
        """A local cluster for one test alone, with its own settings if need be; about 0.2 s.

        Raises:
            NotControllable: the run uses servers given by URL.
        """
        refuse_fresh(name, POSTGRES_VARIABLE)
        return self._start_fresh(name, settings or {})

    def postgres_pair(self) -> PostgresPair:
        """The first shared cluster and its asynchronous streaming replica; promote the replicas of other pairs only.

        The primary is postgres(1)[0], except where that is a container: then it is a local cluster of its own.

        Raises:
            NotControllable: a Postgres is given by URL, and no replica of it.
        """
        if self._pair is None:
            primary = self.postgres(1)[0]
            replica = given_replica(primary)
            if replica is not None:
                self._pair = PostgresPair(primary, replica)
            else:
                local = primary if isinstance(primary, LocalPostgres) else self._start_fresh("pair-primary", {})
                self._pair = PostgresPair(local, self._start_replica(local, "replica", synchronous=False))
        return self._pair

    def fresh_postgres_pair(
        self, name: str, *, synchronous: bool = False, settings: Mapping[str, str] | None = None
    ) -> PostgresPair:
        """A local cluster and its replica for one test alone, free to be killed and promoted; about a second.

        With `synchronous`, a commit is acknowledged when it is flushed on both.

        Raises:
            NotControllable: the run uses servers given by URL.
        """
        primary = self.fresh_postgres(name, settings=settings)
        return PostgresPair(primary, self.fresh_replica(primary, f"{name}-standby", synchronous=synchronous))

    def fresh_replica(self, primary: PostgresServer, name: str, *, synchronous: bool = False) -> LocalReplica:
        """One more replica of a local cluster (ten at most), for instance of one that was promoted.

        Raises:
            NotControllable: the primary does not run locally.
        """
        if not isinstance(primary, LocalPostgres):
            raise NotControllable(f"{name} cannot be made: its primary was not started locally")
        return self._start_replica(primary, name, synchronous=synchronous)

    def pgbouncer(self, server: PostgresServer | None = None) -> PgBouncerServer:
        """The shared PgBouncer before that server (before the first shared one when not told); 0.1 s."""
        behind = server or self.postgres(1)[0]
        if behind.url not in self._poolers:
            given = os.environ.get(PGBOUNCER_VARIABLE)
            if given and behind is self.postgres(1)[0]:
                self._poolers[behind.url] = GivenPgBouncer(given, behind)
            else:
                self._poolers[behind.url] = self.fresh_pgbouncer(f"pgbouncer-{len(self._poolers)}", behind)
        return self._poolers[behind.url]

    def fresh_pgbouncer(
        self, name: str, server: PostgresServer, *, settings: Mapping[str, str] | None = None
    ) -> LocalPgBouncer:
        """A PgBouncer for one test alone, with its own settings if need be; the server may be a given one."""
        install = install_pgbouncer()
        pooler = LocalPgBouncer(
            name,
            server=server,
            install=install,
            folder=self._new_folder(name),
            lease=self._lease(),
            mark=self._run,
            settings=settings or {},
        )
        self._cleanup.callback(pooler.kill9)
        pooler.start()
        return pooler

    def cassandra(self) -> CassandraServer:
        """The shared single Cassandra node of the run."""
        if self._cassandra is None:
            self._cassandra = given_cassandra() or self._start_cassandra()
        return self._cassandra

    def cassandra_cluster(self, count: int = 3) -> CassandraCluster:
        """The shared Cassandra ring of that many nodes (three or more), on 127.0.0.1 and up."""
        if count not in self._rings:
            self._rings[count] = given_cassandra() or self._start_ring(count)
        return self._rings[count]

    def _forget(self) -> None:
        super()._forget()
        self._postgres, self._cassandra, self._rings = [], None, {}
        self._pair, self._poolers = None, {}

    def _start_postgres(
        self, names: list[str], *, port: int | None, settings: Mapping[str, str]
    ) -> list[LocalPostgres]:
        install = install_postgres()
        servers = [
            LocalPostgres(
                name,
                install=install,
                folder=self._new_folder(name),
                lease=self._lease(preferred=port if number == 0 else None),
                mark=self._run,
                settings=settings,
            )
            for number, name in enumerate(names)
        ]
        for server in servers:
            self._cleanup.callback(server.kill9)
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(LocalPostgres.start, servers))
        return servers

    def _start_fresh(self, name: str, settings: Mapping[str, str]) -> LocalPostgres:
        return self._start_postgres([name], port=None, settings=settings)[0]

    def _start_replica(self, primary: LocalPostgres, name: str, *, synchronous: bool) -> LocalReplica:
        folder, lease = self._new_folder(name), self._lease()
        install = install_postgres()
        replica = LocalReplica(name, primary=primary, install=install, folder=folder, lease=lease, mark=self._run)
        self._cleanup.callback(replica.kill9)
        replica.start()
        replica.await_streaming()
        if synchronous:
            replica.make_synchronous()
        return replica

    def _start_cassandra(self) -> CassandraServer:
        if containers.engine_answers():
            return self._contain(containers.DockerCassandra(self._lease(preferred=_NATIVE_PORT)))
        node = self._plan_nodes(1, jvm_options=())[0]
        node.start()
        return node

    def _start_ring(self, count: int) -> CassandraCluster:
        ring = LocalCassandraCluster(self._plan_nodes(count, jvm_options=QUICK_JVM))
        ring.start()
        return ring

    def _plan_nodes(self, count: int, *, jvm_options: tuple[str, ...]) -> list[LocalCassandra]:
        install = install_cassandra()
        hosts = [f"127.0.0.{number}" for number in range(1, count + 1)]
        native = self._lease(*hosts, preferred=_NATIVE_PORT).port
        storage = self._lease(*hosts, preferred=_STORAGE_PORT).port
        nodes = []
        for number, host in enumerate(hosts):
            name = f"cassandra-{number + 1}-of-{count}"
            plan = NodePlan(
                name=name,
                cluster=f"datalayer-{self._run}-{count}",
                host=host,
                native_port=native,
                storage_port=storage,
                jmx_port=self._lease().port,
                seeds=hosts,
                tokens=ring_tokens(number, count),
                jvm_options=jvm_options,
                heap=self._cassandra_heap,
            )
            nodes.append(LocalCassandra(plan, install=install, folder=self._new_folder(name), mark=self._run))
        for node in nodes:
            self._cleanup.callback(node.kill9)
        return nodes
