"""Servers that somebody else runs, named by environment variables."""

import os
from collections.abc import Sequence
from typing import NoReturn
from urllib.parse import urlsplit

from tests.servers.cassandra.keyspace import create_keyspace
from tests.servers.errors import NotControllable
from tests.servers.interface import PostgresServer, Server
from tests.servers.postgres.replica import ReplicaBySql
from tests.servers.postgres.server import create_database
from tests.servers.redis.server import empty_database

POSTGRES_VARIABLE = "DATALAYER_TEST_POSTGRES_URL"
REPLICA_VARIABLE = "DATALAYER_TEST_POSTGRES_REPLICA_URL"
PGBOUNCER_VARIABLE = "DATALAYER_TEST_PGBOUNCER_URL"
CASSANDRA_VARIABLE = "DATALAYER_TEST_CASSANDRA_URL"
REDIS_VARIABLE = "DATALAYER_TEST_REDIS_URL"
REDIS_CLUSTER_VARIABLE = "DATALAYER_TEST_REDIS_CLUSTER_URL"
S3_VARIABLE = "DATALAYER_TEST_S3_URL"
DYNAMODB_VARIABLE = "DATALAYER_TEST_DYNAMODB_URL"
OPENSEARCH_VARIABLE = "DATALAYER_TEST_OPENSEARCH_URL"


class Given:
    """Its address is known, and nothing else can be done to it."""

    controllable = False

    def __init__(self, url: str) -> None:
        self.url = url

    def start(self) -> None:
        self._refuse("started")

    def stop(self) -> None:
        self._refuse("stopped")

    def kill9(self) -> None:
        self._refuse("killed")

    def pause(self) -> None:
        self._refuse("paused")

    def resume(self) -> None:
        self._refuse("resumed")

    def _refuse(self, verb: str) -> NoReturn:
        address = urlsplit(self.url).netloc.rpartition("@")[2]
        raise NotControllable(f"the server at {address} was given by URL and cannot be {verb} from here")


class GivenPostgres(Given):
    """A Postgres given by URL; its user needs the right to make databases."""

    def create_database(self, name: str) -> str:
        """Makes an empty database and returns its URL."""
        return create_database(self.url, name)


class GivenReplica(ReplicaBySql, GivenPostgres):
    """A streaming replica given by URL; its user needs the right to pause replay and to promote."""

    def __init__(self, url: str, primary: PostgresServer) -> None:
        super().__init__(url)
        self.primary = primary


class GivenCassandra(Given):
    """A Cassandra given by URL, one node or many; its keyspaces are left behind."""

    nodes: Sequence["GivenCassandra"] = ()

    def create_keyspace(self, name: str) -> str:
        """Makes a keyspace, when there is none of that name, and returns its URL."""
        return create_keyspace(self.url, name)

    def await_whole(self) -> None:
        """Refused: the nodes are not known one by one."""
        self._refuse("watched")


class GivenRedis(Given):
    """A Redis given by URL; tests use its databases that hold no key, and leave keys in them."""

    _databases = 0

    def create_database(self) -> str:
        """The URL of a database that holds no key and was not handed out before."""
        url, self._databases = empty_database(self.url, self._databases + 1)
        return url


class GivenRedisCluster(Given):
    """A Redis cluster given by URL; its nodes are not known one by one."""

    nodes: Sequence[Server] = ()

    def primary_of(self, key: str) -> Server:
        """Refused."""
        return self._refuse("searched")

    def await_failover(self, gone: Server) -> None:
        """Refused."""
        self._refuse("watched")

    def await_whole(self) -> None:
        """Refused."""
        self._refuse("watched")


def given_postgres(first: int, count: int, *, run: str) -> list[GivenPostgres]:
    """The Postgres servers of the environment, from `first` up to `count`; empty when it names none.

    Where it names fewer than asked for, the rest are new databases on the same servers, in turn.
    """
    urls = [url.strip() for url in os.environ.get(POSTGRES_VARIABLE, "").split(",") if url.strip()]
    if not urls:
        return []
    servers = [GivenPostgres(url) for url in urls[first:count]]
    for number in range(max(first, len(urls)), count):
        url = create_database(urls[number % len(urls)], f"datalayer_{run}_{number}")
        servers.append(GivenPostgres(url))
    return servers


def given_replica(primary: PostgresServer) -> GivenReplica | None:
    """The replica of the first given Postgres, or None when the environment gives no Postgres at all.

    Raises:
        NotControllable: one of the two is given without the other.
    """
    urls = [os.environ.get(variable) for variable in (POSTGRES_VARIABLE, REPLICA_VARIABLE)]
    if urls[1] and urls[0]:
        return GivenReplica(urls[1], primary)
    if any(urls):
        raise NotControllable(f"give {POSTGRES_VARIABLE} and {REPLICA_VARIABLE}, the replica of its first, or neither")
    return None


def given_cassandra() -> GivenCassandra | None:
    """The Cassandra of the environment, if it names one."""
    url = os.environ.get(CASSANDRA_VARIABLE)
    return GivenCassandra(url) if url else None


def given_redis() -> GivenRedis | None:
    """The Redis of the environment, if it names one."""
    url = os.environ.get(REDIS_VARIABLE)
    return GivenRedis(url) if url else None


def given_redis_cluster() -> GivenRedisCluster | None:
    """The Redis cluster of the environment, if it names one."""
    url = os.environ.get(REDIS_CLUSTER_VARIABLE)
    return GivenRedisCluster(url) if url else None
