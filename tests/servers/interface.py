"""What tests see of a server, wherever it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Server(Protocol):
    """A real server. All calls block until done; start, stop, kill9 and resume may be repeated."""

    @property
    def url(self) -> str:
        """Where clients connect."""

    @property
    def controllable(self) -> bool:
        """False for a server given by URL: only url and the create calls work then."""

    def start(self) -> None:
        """Starts again over the same data, at the same URL, and waits until ready.

        Raises:
            StartFailed: it ended or did not answer in time; the message holds the end of its log.
            PortBusy: somebody else has taken its port meanwhile.
        """

    def stop(self) -> None:
        """Ends it in its own orderly way."""

    def kill9(self) -> None:
        """SIGKILL to all its processes; returns when they are gone and the port is free."""

    def pause(self) -> None:
        """SIGSTOP to all its processes: connections stay open and hang."""

    def resume(self) -> None:
        """SIGCONT to all its processes."""


class PostgresServer(Server, Protocol):
    """A Postgres cluster (in Postgres's sense: one postmaster and its databases)."""

    def create_database(self, name: str) -> str:
        """Makes an empty database and returns its URL."""


class PostgresReplica(PostgresServer, Protocol):
    """A streaming replica; create_database works once it is promoted."""

    def url_of(self, database_url: str) -> str:
        """The same database, read here."""

    def pause_replay(self) -> None:
        """From now on nothing new is shown here; it is received all the same."""

    def resume_replay(self) -> None:
        """Shows what has come in meanwhile; harmless when not paused."""

    def lag_bytes(self) -> int:
        """How much of the primary's log is not shown here yet."""

    def await_caught_up(self) -> None:
        """Returns when everything that the primary acknowledged before the call is shown here."""

    def promote(self) -> None:
        """Makes it a primary of its own; returns when it takes writes."""


@dataclass(frozen=True, slots=True)
class PostgresPair:
    """A cluster and its streaming replica."""

    primary: PostgresServer
    replica: PostgresReplica


class PgBouncerServer(Server, Protocol):
    """PgBouncer in transaction mode before every database of one server."""

    @property
    def server(self) -> PostgresServer:
        """What stands behind it."""

    def url_of(self, database_url: str) -> str:
        """The same database through the pooler, as any client takes it."""

    def library_url(self, database_url: str, *, direct: bool = False) -> str:
        """The same as a URL of a backend: ?pgbouncer=true, and with `direct` the way past the pooler."""

    def show(self, what: str) -> list[dict[str, Any]]:
        """Rows of SHOW `what` of the admin console: pools, servers, clients, config, version."""


class RedisServer(Server, Protocol):
    """A Redis server alone; its url names database 0."""

    def create_database(self) -> str:
        """The URL of a database that holds no key and was not handed out before."""


class RedisCluster(Server, Protocol):
    """Three Redis primaries with a replica each, steered as one or one by one."""

    @property
    def nodes(self) -> Sequence[Server]:
        """The nodes; none when the cluster was given by URL."""

    def primary_of(self, key: str) -> Server:
        """The node that serves this key now."""

    def await_failover(self, gone: Server) -> None:
        """Returns when another node serves what a killed or paused primary served, and all living nodes know."""

    def await_whole(self) -> None:
        """Waits until every node serves and every primary has its replica, for instance after one came back."""


class OpenSearchServer(Server, Protocol):
    """An OpenSearch node or cluster; its url names a prefix of indexes."""

    @property
    def endpoint(self) -> str:
        """Its address: http://host:port, or https."""

    def url_of(self, prefix: str) -> str:
        """The URL of a backend whose indexes begin with that prefix."""


class AwsServer(Server, Protocol):
    """A service that speaks one of Amazon's protocols."""

    @property
    def endpoint(self) -> str:
        """Its address: http://host:port."""

    @property
    def access_key(self) -> str:
        """Who may do everything."""

    @property
    def secret_key(self) -> str:
        """The secret of that key."""

    @property
    def region(self) -> str:
        """The region that requests are signed for."""


class DynamoDBServer(AwsServer, Protocol):
    """A DynamoDB; its url names a prefix of tables."""

    def url_of(self, prefix: str) -> str:
        """The URL of a backend whose tables begin with that prefix."""


class S3Server(AwsServer, Protocol):
    """An S3 service; its url names a bucket that is there."""

    def url_of(self, bucket: str) -> str:
        """The URL of a backend over that bucket."""

    def create_bucket(self, name: str) -> str:
        """Makes a bucket, when there is none of that name, and returns its URL."""


class CassandraServer(Server, Protocol):
    """A Cassandra node, or a whole ring steered as one."""

    def create_keyspace(self, name: str) -> str:
        """Makes a keyspace, when there is none of that name, and returns its URL."""


class CassandraCluster(CassandraServer, Protocol):
    """A ring whose nodes can be steered one by one."""

    @property
    def nodes(self) -> Sequence[CassandraServer]:
        """The nodes; none when the cluster was given by URL."""

    def await_whole(self) -> None:
        """Waits until every node reaches every replica, for instance after one came back."""
