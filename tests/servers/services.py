"""Redis, S3, OpenSearch and DynamoDB: one of each is shared by a run, and a test may have one of its own."""

import os
from collections.abc import Mapping
from pathlib import Path

from tests.servers.dynamodb import GivenDynamoDB, LocalDynamoDB, install_dynamodb
from tests.servers.given import (
    DYNAMODB_VARIABLE,
    OPENSEARCH_VARIABLE,
    REDIS_CLUSTER_VARIABLE,
    REDIS_VARIABLE,
    S3_VARIABLE,
    given_redis,
    given_redis_cluster,
)
from tests.servers.interface import DynamoDBServer, OpenSearchServer, RedisCluster, RedisServer, S3Server
from tests.servers.opensearch import GivenOpenSearch, LocalOpenSearch, install_opensearch
from tests.servers.redis import LocalRedis, LocalRedisCluster, install_redis
from tests.servers.redis.cluster import CLUSTER_SETTINGS, NODES
from tests.servers.redis.server import RedisPlan
from tests.servers.run import QUICK_JVM, Run, refuse_fresh
from tests.servers.s3 import GivenS3, LocalS3, install_s3


class Services(Run):
    """These four products; what is fresh raises NotControllable when the environment gives that server by URL."""

    def __init__(self) -> None:
        super().__init__()
        self._redis: RedisServer | None = None
        self._redis_cluster: RedisCluster | None = None
        self._s3: S3Server | None = None
        self._opensearch: OpenSearchServer | None = None
        self._dynamodb: DynamoDBServer | None = None

    def redis(self) -> RedisServer:
        """The shared single Redis of the run."""
        if self._redis is None:
            self._redis = given_redis() or self._start_redis("redis", {})
        return self._redis

    def fresh_redis(self, name: str, *, settings: Mapping[str, str] | None = None) -> LocalRedis:
        """A local Redis for one test alone, with its own settings as redis.conf writes them; 0.1 s."""
        refuse_fresh(name, REDIS_VARIABLE)
        return self._start_redis(name, settings or {})

    def redis_cluster(self) -> RedisCluster:
        """The shared Redis cluster of the run: three primaries with a replica each."""
        if self._redis_cluster is None:
            self._redis_cluster = given_redis_cluster() or self._start_redis_cluster("redis-cluster", {})
        return self._redis_cluster

    def fresh_redis_cluster(self, name: str, *, settings: Mapping[str, str] | None = None) -> LocalRedisCluster:
        """A local cluster for one test alone, free to be broken; about 2.5 s."""
        refuse_fresh(name, REDIS_CLUSTER_VARIABLE)
        return self._start_redis_cluster(name, settings or {})

    def s3(self) -> S3Server:
        """The shared S3 server of the run."""
        if self._s3 is None:
            given = os.environ.get(S3_VARIABLE)
            self._s3 = GivenS3(given) if given else self._start_s3("s3")
        return self._s3

    def fresh_s3(self, name: str) -> LocalS3:
        """A local S3 server for one test alone; 0.1 s."""
        refuse_fresh(name, S3_VARIABLE)
        return self._start_s3(name)

    def opensearch(self) -> OpenSearchServer:
        """The shared OpenSearch node of the run."""
        if self._opensearch is None:
            given = os.environ.get(OPENSEARCH_VARIABLE)
            self._opensearch = GivenOpenSearch(given) if given else self._start_opensearch("opensearch", ())
        return self._opensearch

    def fresh_opensearch(self, name: str) -> LocalOpenSearch:
        """A local OpenSearch node for one test alone, free to be broken; 3-10 s."""
        refuse_fresh(name, OPENSEARCH_VARIABLE)
        return self._start_opensearch(name, QUICK_JVM)

    def dynamodb(self) -> DynamoDBServer:
        """The shared DynamoDB Local of the run."""
        if self._dynamodb is None:
            given = os.environ.get(DYNAMODB_VARIABLE)
            self._dynamodb = GivenDynamoDB(given) if given else self._start_dynamodb("dynamodb")
        return self._dynamodb

    def fresh_dynamodb(self, name: str) -> LocalDynamoDB:
        """A DynamoDB Local for one test alone, free to be broken; 2-5 s."""
        refuse_fresh(name, DYNAMODB_VARIABLE)
        return self._start_dynamodb(name)

    def _forget(self) -> None:
        self._redis, self._redis_cluster, self._s3 = None, None, None
        self._opensearch, self._dynamodb = None, None

    def _start_redis(self, name: str, settings: Mapping[str, str]) -> LocalRedis:
        return self._started(self._place_redis(RedisPlan(name, self._lease().port, settings), install_redis()))

    def _start_redis_cluster(self, name: str, settings: Mapping[str, str]) -> LocalRedisCluster:
        binary, settings = install_redis(), {**CLUSTER_SETTINGS, **settings}
        plans = [
            RedisPlan(f"{name}-{number + 1}", self._lease().port, settings, bus_port=self._lease().port)
            for number in range(NODES)
        ]
        cluster = LocalRedisCluster([self._own(self._place_redis(plan, binary)) for plan in plans])
        cluster.start()
        return cluster

    def _place_redis(self, plan: RedisPlan, binary: Path) -> LocalRedis:
        return LocalRedis(plan, binary=binary, folder=self._new_folder(plan.name), mark=self._run)

    def _start_s3(self, name: str) -> LocalS3:
        binary = install_s3()
        folder, lease = self._new_folder(name), self._lease()
        return self._started(LocalS3(name, binary=binary, folder=folder, lease=lease, mark=self._run))

    def _start_opensearch(self, name: str, jvm_options: tuple[str, ...]) -> LocalOpenSearch:
        install = install_opensearch()
        folder, leases = self._new_folder(name), (self._lease(), self._lease())
        node = LocalOpenSearch(
            name, install=install, folder=folder, leases=leases, mark=self._run, jvm_options=jvm_options
        )
        return self._started(node)

    def _start_dynamodb(self, name: str) -> LocalDynamoDB:
        install = install_dynamodb()
        folder, lease = self._new_folder(name), self._lease()
        return self._started(LocalDynamoDB(name, install=install, folder=folder, lease=lease, mark=self._run))
