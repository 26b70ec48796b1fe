"""All servers of one test run: started on first use, shared for the rest of the run, gone at its end.

Where a server comes from, in this order: an address in the environment, a container, a local install. To add a
product: a package with `install` (into the cache) and a class that owns a ServerProcess, a Protocol in
interface.py, and a method here that plans it, starts it and remembers it.
"""

import os
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.servers import containers
from tests.servers.cassandra import HEAP, LocalCassandra, LocalCassandraCluster, NodePlan, install_cassandra
from tests.servers.cassandra.cluster import ring_tokens
from tests.servers.errors import NotControllable
from tests.servers.given import (
    OPENSEARCH_VARIABLE,
    PGBOUNCER_VARIABLE,
    POSTGRES_VARIABLE,
    REDIS_CLUSTER_VARIABLE,
    REDIS_VARIABLE,
    S3_VARIABLE,
    given_cassandra,
    given_postgres,
    given_redis,
    given_redis_cluster,
    given_replica,
)
from tests.servers.interface import (
    CassandraCluster,
    CassandraServer,
    OpenSearchServer,
    PgBouncerServer,
    PostgresPair,
    PostgresServer,
    RedisCluster,
    RedisServer,
    S3Server,
)
from tests.servers.opensearch import GivenOpenSearch, LocalOpenSearch, install_opensearch
from tests.servers.pgbouncer import GivenPgBouncer, LocalPgBouncer, install_pgbouncer
from tests.servers.ports import LOOPBACK, PortLease, lease_port
from tests.servers.postgres import LocalPostgres, LocalReplica, install_postgres
from tests.servers.postgres.install import make_open_folder
from tests.servers.redis import LocalRedis, LocalRedisCluster, install_redis
from tests.servers.redis.cluster import CLUSTER_SETTINGS, NODES
from tests.servers.redis.server import RedisPlan
from tests.servers.s3 import GivenS3, LocalS3, install_s3
from tests.servers.watchdog import Watchdog

_NATIVE_PORT = 9042
_STORAGE_PORT = 7000
_C = TypeVar("_C", bound=containers.Container)
# JVMs that start on two cores compete with their own optimising compilers. For servers that are there for faults, not
# speed: rings, and nodes for one test alone.
_QUICK = ("-XX:TieredStopAtLevel=1",)


def _refuse_fresh(name: str, variable: str) -> None:
    if variable in os.environ:
        raise NotControllable(f"a server of its own for {name} is not to be had while {variable} is set")


class Servers:
    """Starts real servers as children of this process and ends them with it, however it ends.

    Nothing happens before the first server is asked for. A server that cannot be started raises; no call skips.
    """

    def __init__(self, *, cassandra_heap: str = HEAP) -> None:
        """``cassandra_heap``: of each local node, as Java writes it."""
        self._cassandra_heap = cassandra_heap
        self._run = uuid.uuid4().hex[:12]
        self._owner = os.getpid()
        self._cleanup = ExitStack()
        self._folder: Path | None = None
        self._folders = 0
        self._postgres: list[PostgresServer] = []
        self._pair: PostgresPair | None = None
        self._poolers: dict[str, PgBouncerServer] = {}
        self._cassandra: CassandraServer | None = None
        self._rings: dict[int, CassandraCluster] = {}
        self._redis: RedisServer | None = None
        self._redis_cluster: RedisCluster | None = None
        self._s3: S3Server | None = None
        self._opensearch: OpenSearchServer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills all servers of this run and removes their data; does nothing in a fork of the owner."""
        if os.getpid() != self._owner:
            return
        self._cleanup.close()
        self._folder = None
        self._postgres, self._cassandra, self._rings = [], None, {}
        self._pair, self._poolers = None, {}
        self._redis, self._redis_cluster = None, None
        self._s3, self._opensearch = None, None

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
        _refuse_fresh(name, POSTGRES_VARIABLE)
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

    def redis(self) -> RedisServer:
        """The shared single Redis of the run."""
        if self._redis is None:
            self._redis = given_redis() or self._start_redis("redis", {})
        return self._redis

    def fresh_redis(self, name: str, *, settings: Mapping[str, str] | None = None) -> LocalRedis:
        """A local Redis for one test alone, with its own settings as redis.conf writes them; 0.1 s.

        Raises:
            NotControllable: the run uses a server given by URL.
        """
        _refuse_fresh(name, REDIS_VARIABLE)
        return self._start_redis(name, settings or {})

    def redis_cluster(self) -> RedisCluster:
        """The shared Redis cluster of the run: three primaries with a replica each."""
        if self._redis_cluster is None:
            self._redis_cluster = given_redis_cluster() or self._start_redis_cluster("redis-cluster", {})
        return self._redis_cluster

    def fresh_redis_cluster(self, name: str, *, settings: Mapping[str, str] | None = None) -> LocalRedisCluster:
        """A local cluster for one test alone, free to be broken; about 2.5 s.

        Raises:
            NotControllable: the run uses a cluster given by URL.
        """
        _refuse_fresh(name, REDIS_CLUSTER_VARIABLE)
        return self._start_redis_cluster(name, settings or {})

    def s3(self) -> S3Server:
        """The shared S3 server of the run."""
        if self._s3 is None:
            given = os.environ.get(S3_VARIABLE)
            self._s3 = GivenS3(given) if given else self._start_s3("s3")
        return self._s3

    def fresh_s3(self, name: str) -> LocalS3:
        """A local S3 server for one test alone; 0.1 s.

        Raises:
            NotControllable: the run uses a service given by URL.
        """
        _refuse_fresh(name, S3_VARIABLE)
        return self._start_s3(name)

    def _start_s3(self, name: str) -> LocalS3:
        binary = install_s3()
        server = LocalS3(name, binary=binary, folder=self._new_folder(name), lease=self._lease(), mark=self._run)
        self._cleanup.callback(server.kill9)
        server.start()
        return server

    def opensearch(self) -> OpenSearchServer:
        """The shared OpenSearch node of the run."""
        if self._opensearch is None:
            given = os.environ.get(OPENSEARCH_VARIABLE)
            self._opensearch = GivenOpenSearch(given) if given else self._start_opensearch("opensearch", ())
        return self._opensearch

    def fresh_opensearch(self, name: str) -> LocalOpenSearch:
        """A local OpenSearch node for one test alone, free to be broken; 3-10 s.

        Raises:
            NotControllable: the run uses a server given by URL.
        """
        _refuse_fresh(name, OPENSEARCH_VARIABLE)
        return self._start_opensearch(name, _QUICK)

    def _start_opensearch(self, name: str, jvm_options: tuple[str, ...]) -> LocalOpenSearch:
        install = install_opensearch()
        folder, leases = self._new_folder(name), (self._lease(), self._lease())
        node = LocalOpenSearch(
            name, install=install, folder=folder, leases=leases, mark=self._run, jvm_options=jvm_options
        )
        self._cleanup.callback(node.kill9)
        node.start()
        return node

    def _start_redis(self, name: str, settings: Mapping[str, str]) -> LocalRedis:
        server = self._place_redis(RedisPlan(name, self._lease().port, settings), install_redis())
        server.start()
        return server

    def _start_redis_cluster(self, name: str, settings: Mapping[str, str]) -> LocalRedisCluster:
        binary, settings = install_redis(), {**CLUSTER_SETTINGS, **settings}
        plans = [
            RedisPlan(f"{name}-{number + 1}", self._lease().port, settings, bus_port=self._lease().port)
            for number in range(NODES)
        ]
        cluster = LocalRedisCluster([self._place_redis(plan, binary) for plan in plans])
        cluster.start()
        return cluster

    def _place_redis(self, plan: RedisPlan, binary: Path) -> LocalRedis:
        server = LocalRedis(plan, binary=binary, folder=self._new_folder(plan.name), mark=self._run)
        self._cleanup.callback(server.kill9)
        return server

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
        ring = LocalCassandraCluster(self._plan_nodes(count, jvm_options=_QUICK))
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

    def _contain(self, container: _C) -> _C:
        self._cleanup.callback(container.remove)
        container.start()
        return container

    def _lease(self, *hosts: str, preferred: int | None = None) -> PortLease:
        lease = lease_port(hosts or (LOOPBACK,), preferred=[] if preferred is None else [preferred])
        self._cleanup.callback(lease.release)
        return lease

    def _new_folder(self, name: str) -> Path:
        if self._folder is None:
            self._folder = make_open_folder("datalayer-servers-")
            # Released last, the watchdog sweeps up what a failed start left and removes the folder.
            self._cleanup.callback(Watchdog(self._run, self._folder).release)
        # Numbered, because a server that failed to start may be asked for again.
        self._folders += 1
        folder = self._folder / f"{self._folders:02}-{name}"
        folder.mkdir()
        return folder
