"""Redis servers: the binary, a probe that speaks its protocol, one server or a cluster of six."""

from tests.servers.redis.cluster import LocalRedisCluster
from tests.servers.redis.install import install_redis
from tests.servers.redis.server import LocalRedis

__all__ = ["LocalRedis", "LocalRedisCluster", "install_redis"]
