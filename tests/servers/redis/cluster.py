"""Six Redis servers that form one cluster: three primaries with a replica each."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.servers.errors import ServerError, StartFailed
from tests.servers.interface import Server
from tests.servers.local import LocalGroup
from tests.servers.redis.server import LocalRedis

PRIMARIES = 3
NODES = 2 * PRIMARIES
_SLOTS = 16_384
_TIMEOUT_S = 60.0
_POLL_S = 0.02
# Of every node, beside those of a server alone.
CLUSTER_SETTINGS = {
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    "cluster-node-timeout": "500",
    # A replica stands for election however long it has not heard of its primary.
    "cluster-replica-validity-factor": "0",
    # Each primary keeps its one replica.
    "cluster-allow-replica-migration": "no",
    "databases": "1",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One node as another sees it: a line of CLUSTER NODES."""

    id: str
    port: int
    flags: frozenset[str]
    primary: str
    linked: bool
    slots: tuple[range, ...]


def members(node: LocalRedis) -> list[Member]:
    """All nodes as that one sees them."""
    found = []
    for line in node.text("CLUSTER", "NODES").splitlines():
        identity, address, flags, primary, _, _, _, link, *slots = line.split()
        port = int(address.partition("@")[0].rpartition(":")[2])
        spans = tuple(_span(text) for text in slots if not text.startswith("["))
        found.append(Member(identity, port, frozenset(flags.split(",")), primary, link == "connected", spans))
    return found


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


class LocalRedisCluster(LocalGroup[LocalRedis]):
    """A cluster of our own; each node may be killed, stopped and paused alone.

    A primary acknowledges before its replica has the write, so a failover may lose the last ones: it is Redis that
    does. A primary that comes back after a failover is the replica of its successor.
    """

    def __init__(self, nodes: Sequence[LocalRedis]) -> None:
        if len(nodes) != NODES:
            raise ServerError(f"a Redis cluster has {NODES} nodes here, not {len(nodes)}")
        super().__init__(nodes)
        self.url = "redis+cluster://" + ",".join(f"{node.host}:{node.port}" for node in nodes)
        self._formed = False

    def start(self) -> None:
        """Starts all nodes at one time, makes them one cluster when they are new, and waits until it is whole."""
        self._start_nodes()
        if not self._formed:
            self._form()
            self._formed = True
        self.await_whole()

    def primary_of(self, key: str) -> LocalRedis:
        """The node that serves this key now; ask it with all nodes up or after await_failover()."""
        alive = self._alive()[0]
        slot = alive.ask("CLUSTER", "KEYSLOT", key)
        for member in members(alive):
            if any(slot in span for span in member.slots):
                return next(node for node in self.nodes if node.port == member.port)
        raise ServerError(f"no node of the cluster at {alive.host}:{alive.port} serves slot {slot}")

    def await_failover(self, gone: Server) -> None:
        """Waits until every living node knows who serves the slots of a primary that was killed or paused.

        Raises:
            ServerError: not within a minute.
        """
        lost = next(node for node in self.nodes if node is gone)
        self._until(f"{lost.name} replaced", lambda: all(self._replaced(node, lost) for node in self._alive(lost)))

    def await_whole(self) -> None:
        """Waits until every node serves and every primary has its replica, for instance after one came back.

        Raises:
            StartFailed: not within a minute.
        """
        try:
            self._until("whole", lambda: all(map(self._is_whole, self.nodes)))
        except ServerError as error:
            raise StartFailed(str(error)) from None

    def _alive(self, *but: LocalRedis) -> list[LocalRedis]:
        return [node for node in self.nodes if node.running and node not in but]

    def _form(self) -> None:
        primaries, replicas = self.nodes[:PRIMARIES], self.nodes[PRIMARIES:]
        for number, node in enumerate(primaries):
            first, last = number * _SLOTS // PRIMARIES, (number + 1) * _SLOTS // PRIMARIES - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            for other in self.nodes[:number]:
                other.ask("CLUSTER", "MEET", node.host, str(node.port), str(node.bus_port))
        self._until("acquainted", lambda: all(map(self._knows_all, self.nodes)))
        for primary, replica in zip(primaries, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.text("CLUSTER", "MYID"))

    def _knows_all(self, node: LocalRedis) -> bool:
        seen = members(node)
        return len(seen) == NODES and not any("handshake" in member.flags for member in seen)

    def _is_whole(self, node: LocalRedis) -> bool:
        seen = members(node)
        serving = [member for member in seen if member.slots]
        following = {member.primary for member in seen if "slave" in member.flags}
        healthy = not any(member.flags & {"fail", "fail?", "handshake", "noaddr"} for member in seen)
        if not healthy or len(serving) != PRIMARIES or following != {member.id for member in serving}:
            return False
        link = node.text("INFO", "replication")
        linked = "master_link_status:up" in link if "role:slave" in link else "connected_slaves:1" in link
        # Until it is rewritten after a resync, the file of a replica holds nothing of what it shows.
        durable = "aof_rewrite_in_progress:0" in node.text("INFO", "persistence")
        return linked and durable and "cluster_state:ok" in node.text("CLUSTER", "INFO")

    def _replaced(self, node: LocalRedis, gone: LocalRedis) -> bool:
        holds = any(member.port == gone.port and member.slots for member in members(node))
        return not holds and "cluster_state:ok" in node.text("CLUSTER", "INFO")

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while not holds():
            if time.monotonic() > deadline:
                seen = self._alive()[0].text("CLUSTER", "NODES")
                raise ServerError(f"the Redis cluster is not {what} after {_TIMEOUT_S:.0f} s:\n{seen}")
            time.sleep(_POLL_S)
