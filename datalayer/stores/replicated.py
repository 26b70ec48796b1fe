"""The ports of a backend whose writes are shipped as a log, and of its read replicas.

A position in the log is the only measure: no clock of a server is compared with another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.clock import Deadline


class LogPosition(NamedTuple):
    """How far a server is: byte ``lsn`` of a timeline of a system. Positions of one timeline are comparable."""

    system: int
    timeline: int
    lsn: int


class ReplicaLook(NamedTuple):
    """What a replica says of itself: what it has replayed, and which run of which server says so.

    ``timeline`` is one that the replica is known to have reached, 0 where it does not tell. A change of
    ``incarnation`` means that what was known before is void.
    """

    position: LogPosition
    incarnation: str


class ReplicaServer(Protocol):
    """One read replica."""

    name: str
    """Where it is, without a secret."""

    size: int
    """How many reads it may serve for this process at once."""

    @property
    def in_use(self) -> int:
        """How many it serves now."""
        ...

    async def look(self, deadline: Deadline) -> ReplicaLook:
        """Ask where it is. Unavailable when it does not answer or is no replica (any more).

        Reads that begin later see at least this position, or fail.
        """
        ...

    def store(self, domain: str, attempt: int) -> Any:
        """The typed reads of a domain's place here."""
        ...


@runtime_checkable
class Positioned(Protocol):
    """A backend that can say where its log ends."""

    async def position(self, deadline: Deadline) -> LogPosition:
        """The end of the log: whatever was acknowledged before this call lies before it."""
        ...


@runtime_checkable
class Replicated(Positioned, Protocol):
    """A backend with read replicas, maybe none. They are closed with it."""

    @property
    def replicas(self) -> Sequence[ReplicaServer]:
        """All that are configured, also those that are down."""
        ...
