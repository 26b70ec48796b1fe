"""Real servers without Docker, as children of the test run. See README.md."""

from tests.servers.errors import InstallFailed, NotControllable, PortBusy, ServerError, StartFailed
from tests.servers.interface import (
    CassandraCluster,
    CassandraServer,
    DynamoDBServer,
    OpenSearchServer,
    PgBouncerServer,
    PostgresPair,
    PostgresReplica,
    PostgresServer,
    RedisCluster,
    RedisServer,
    S3Server,
    Server,
)
from tests.servers.servers import Servers

__all__ = [
    "CassandraCluster",
    "CassandraServer",
    "DynamoDBServer",
    "InstallFailed",
    "NotControllable",
    "OpenSearchServer",
    "PgBouncerServer",
    "PortBusy",
    "PostgresPair",
    "PostgresReplica",
    "PostgresServer",
    "RedisCluster",
    "RedisServer",
    "S3Server",
    "Server",
    "ServerError",
    "Servers",
    "StartFailed",
]
