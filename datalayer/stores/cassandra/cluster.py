"""The driver's Cluster for a URL: every choice that differs from the driver's defaults, with its reason."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import (
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    FallthroughRetryPolicy,
    TokenAwarePolicy,
)
from cassandra.query import tuple_factory

if TYPE_CHECKING:
    from datalayer.settings import BackendUrl

DEFAULT_PORT: Final = 9042
# Every supported server speaks version 4. Version 5 adds checksums to each frame, computed in Python: dearer, and
# TCP or TLS has one already.
PROTOCOL_VERSION: Final = 4
CONNECT_TIMEOUT_S: Final = 5.0
HEARTBEAT_S: Final = 5.0
# A killed and restarted single node is usable again within about a second of its port opening.
RECONNECT_FIRST_S: Final = 0.1
RECONNECT_MAX_S: Final = 0.5
# The driver sends and receives in pieces of 4 KiB, one system call each: 35 % of a batch's time in the client.
RECEIVE_BYTES: Final = 64 * 1024
SEND_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """Where a keyspace is, in the words of its URL."""

    url: BackendUrl
    keyspace: str
    local_dc: str | None
    replication: int

    @classmethod
    def of(cls, url: BackendUrl) -> Target:
        """The target of a parsed URL."""
        local_dc = url.options.get("local_dc")
        return cls(url, url.database, str(local_dc) if local_dc else None, int(url.options.get("replication", 1)))

    @property
    def contact(self) -> str:
        """The hosts, for messages."""
        return ",".join(map(str, self.url.hosts))


class _Connection(Cluster.connection_class):  # type: ignore[misc]
    """The driver's own choice for this Python (libev where it is compiled in), with larger pieces."""

    in_buffer_size = RECEIVE_BYTES
    out_buffer_size = SEND_BYTES

    @property
    def _socket_writable(self) -> bool:
        """Whether the driver may queue another request.

        libev's reactor says no while the socket takes nothing more (one large request is enough). Then every other
        request fails at once with ConnectionBusy, or goes to another host where there is one, and its number and its
        place in flight are never given back. So a request that has to wait for the socket just waits, as long as its
        own time lasts. What it has queued stays in memory until the socket takes it or the heartbeat, unanswered for
        two periods, ends the connection.
        """
        return True

    @_socket_writable.setter
    def _socket_writable(self, _: bool) -> None:
        """What the reactor saw is not kept."""


def build(target: Target) -> Any:
    """A Cluster, not yet connected."""
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(target.local_dc or "")),
        # Retries are the caller's, within its deadline; the driver's own would repeat a write behind our back.
        retry_policy=FallthroughRetryPolicy(),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
        serial_consistency_level=ConsistencyLevel.LOCAL_SERIAL,
        row_factory=tuple_factory,
    )
    url = target.url
    return Cluster(
        contact_points=[(host.name, host.port or DEFAULT_PORT) for host in url.hosts],
        port=url.hosts[0].port or DEFAULT_PORT,
        auth_provider=None if url.user is None else PlainTextAuthProvider(url.user, url.password or ""),
        ssl_context=_tls(url),
        protocol_version=PROTOCOL_VERSION,
        connection_class=_Connection,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        reconnection_policy=ExponentialReconnectionPolicy(RECONNECT_FIRST_S, RECONNECT_MAX_S, max_attempts=None),
        compression=False,
        connect_timeout=CONNECT_TIMEOUT_S,
        control_connection_timeout=CONNECT_TIMEOUT_S,
        idle_heartbeat_interval=HEARTBEAT_S,
        idle_heartbeat_timeout=HEARTBEAT_S,
        monitor_reporting_enabled=False,
    )


def _tls(url: BackendUrl) -> ssl.SSLContext | None:
    """Verified by default: a context without a CA file uses the system's."""
    options = url.options
    if not options.get("tls", False) and "ca" not in options:
        return None
    context = ssl.create_default_context(cafile=str(options["ca"]) if "ca" in options else None)
    if "cert" in options:
        context.load_cert_chain(str(options["cert"]), str(options["key"]) if "key" in options else None)
    return context
