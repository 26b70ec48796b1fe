"""Cassandra nodes that form one ring."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.servers.cassandra import probe
from tests.servers.cassandra.keyspace import cassandra_url, create_keyspace
from tests.servers.cassandra.server import LocalCassandra
from tests.servers.errors import ServerError, StartFailed

_TOKENS_PER_NODE = 16
_FIRST_TOKEN = -(2**63)
_REPLICATION = 3
_JOIN_TIMEOUT_S = 180.0
_POLL_S = 0.2
# A table that every ring keeps in three copies.
_REPLICATED = "SELECT * FROM system_distributed.view_build_status LIMIT 1"


def ring_tokens(node: int, nodes: int) -> list[int]:
    """The node's sixteen tokens: those of all nodes alternate and split the ring evenly."""
    step = 2**64 // (_TOKENS_PER_NODE * nodes)
    return [_FIRST_TOKEN + step * (slot * nodes + node) for slot in range(_TOKENS_PER_NODE)]


class LocalCassandraCluster:
    """Nodes of our own on 127.0.0.1 and up; each may be killed, stopped and paused alone."""

    controllable = True

    def __init__(self, nodes: Sequence[LocalCassandra]) -> None:
        if len(nodes) < _REPLICATION:
            raise ServerError(f"a ring has {_REPLICATION} nodes or more, not {len(nodes)}")
        self.nodes = list(nodes)
        self.url = cassandra_url([node.host for node in nodes], nodes[0].port, replication=_REPLICATION)

    def start(self) -> None:
        """Starts all nodes at one time and waits until each can reach all the others."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(LocalCassandra.start, self.nodes))
        self.await_whole()

    def stop(self) -> None:
        """An orderly stop of all nodes."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(LocalCassandra.stop, self.nodes))

    def kill9(self) -> None:
        """A crash of all nodes."""
        for node in self.nodes:
            node.kill9()

    def pause(self) -> None:
        """Stops all nodes in their tracks."""
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        """Lets all nodes go on."""
        for node in self.nodes:
            node.resume()

    def create_keyspace(self, name: str) -> str:
        """Makes a keyspace with three replicas, when there is none of that name, and returns its URL."""
        return create_keyspace(self.url, name)

    def await_whole(self) -> None:
        """Waits until every node reaches every replica, for instance after one came back.

        Raises:
            StartFailed: not within three minutes.
        """
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        for node in self.nodes:
            while (error := probe.execute(node.host, node.port, _REPLICATED, probe.Consistency.ALL)) is not None:
                if time.monotonic() > deadline:
                    raise StartFailed(f"{node.name} does not reach all replicas: {error}")
                time.sleep(_POLL_S)
