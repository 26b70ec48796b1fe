"""Which replica may serve a read, and when none may.

Two facts are gathered, each with the time of this process at which the question was *sent*: where the primary's log
ended, and how far each replica has replayed it. From them follows everything, and no clock of a server is read:

- What was acknowledged before the primary was asked lies before its answer. So a write of this process is covered by
  the first answer to a question sent after it, and a replica that has replayed that far shows it (I3).
- A replica that has replayed the primary's answer of time t shows all that was acknowledged before t: it is at most
  now - t behind. An idle primary answers the same position again and again, and its replicas stay fresh.

Positions are compared on one timeline of one system only. After a failover what was known of the old timeline is
void: a replica counts again once it says that it has reached the new one, and an old token demands all that the new
primary had when it was first asked. The same floor serves a flip: replicas are used at rest only, and for every read
under a routing they must have replayed a position of its authority that was asked for after the routing was adopted.

Nothing here waits or asks; ``replicareads`` does.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datalayer.routing.consistency import Position
    from datalayer.stores.replicated import LogPosition, ReplicaLook

SAMPLES_MAX: Final = 4096
"""A quarter of an hour of a busy primary; a replica that lags by more lags by more than anybody can say."""
UNKNOWN_S: Final = math.inf


@dataclass(slots=True)
class Standing:
    """What is known of one replica."""

    name: str
    system: int = 0
    timeline: int = 0
    incarnation: str = ""
    replayed: int = -1
    looked_at: float = -math.inf
    trouble: str = "not asked yet"
    """Why it serves nothing now; empty while it may."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a read must see: everything since a routing was adopted, own writes, and the positions of tokens."""

    epoch: int
    since: float
    """Time after which the primary must have been asked: the routing's adoption, the caller's last write."""
    positions: Sequence[Position] = ()


@dataclass(slots=True)
class Standings:
    """One backend's replicas against its primary."""

    replicas: dict[str, Standing]
    system: int = 0
    timeline: int = 0
    primary_trouble: str = "not asked yet"
    _asked: list[float] = field(default_factory=list)
    _lsns: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, names: Iterable[str]) -> Standings:
        """Nothing is known yet."""
        return cls({name: Standing(name) for name in names})

    # --- what was seen ----------------------------------------------------------------------------------------------

    def saw_primary(self, asked_at: float, end: LogPosition) -> bool:
        """Whether the primary's log has moved since it was last seen."""
        if end.system == self.system and end.timeline < self.timeline:
            # The old primary still answers after a failover: what it says is not the truth any more.
            self.primary_trouble = f"it is on timeline {end.timeline}, but timeline {self.timeline} has begun"
            return False
        self.primary_trouble = ""
        if (end.system, end.timeline) != (self.system, self.timeline):
            self.system, self.timeline = end.system, end.timeline
            self._forget()
        elif self._lsns and end.lsn < self._lsns[-1]:
            self._forget()  # it crashed before that much of its log was written down
        if self._lsns and self._lsns[-1] == end.lsn:
            self._asked[-1] = max(asked_at, self._asked[-1])
            return False
        if self._asked and asked_at <= self._asked[-1]:
            return True  # two questions at once: the older one's answer adds nothing
        self._asked.append(asked_at)
        self._lsns.append(end.lsn)
        if len(self._lsns) > SAMPLES_MAX:
            del self._asked[0], self._lsns[0]
        return True

    def primary_lost(self, why: str) -> None:
        """The primary does not answer. Its replicas serve on until their lag, which now grows, is too much."""
        self.primary_trouble = why

    def saw_replica(self, name: str, now: float, look: ReplicaLook) -> bool:
        """Whether the replica has moved since it was last seen."""
        known = self.replicas[name]
        end = look.position
        if look.incarnation != known.incarnation or end.system != known.system or end.lsn < known.replayed:
            known.incarnation, known.system, known.timeline = look.incarnation, end.system, 0
        moved = end.lsn != known.replayed
        # What it has reached once it does not leave in this run, also while it does not tell.
        known.timeline = max(known.timeline, end.timeline)
        known.replayed = end.lsn
        known.looked_at = now
        known.trouble = ""
        return moved

    def lost(self, name: str, why: str) -> None:
        """A replica failed: it serves nothing until it has been looked at again."""
        self.replicas[name].trouble = why

    def _forget(self) -> None:
        self._asked.clear()
        self._lsns.clear()

    # --- what follows from it ---------------------------------------------------------------------------------------

    def floor(self, since: float) -> int | None:
        """A position that covers everything acknowledged up to this time; None when it was not asked for since."""
        # Strictly after: at the very same instant, the question may have been on its way before the answer to a write.
        at = bisect_right(self._asked, since)
        return self._lsns[at] if at < len(self._lsns) else None

    def needed(self, demand: Demand) -> int | None:
        """What a replica must have replayed to serve this read; None: only the primary can."""
        needed = self.floor(demand.since)
        if needed is None:
            return None
        for position in demand.positions:
            if position.epoch > demand.epoch:
                return None  # from a process that has heard of a newer routing
            if position.system == self.system:
                if position.timeline > self.timeline:
                    return None  # from one that has heard of a failover
                if position.timeline == self.timeline:
                    needed = max(needed, position.lsn)
                # Of an older timeline: what survived lay before the new primary's first answer.
            elif position.epoch == demand.epoch:
                return None  # the same routing, but another server: no telling which one is right
            # Of an older routing's authority: all of it was here before this routing was published.
        return needed

    def lag_s(self, name: str, now: float) -> float:
        """At most how old what this replica shows is, seconds; infinite when that cannot be said."""
        known = self.replicas[name]
        at = bisect_right(self._lsns, known.replayed)
        return UNKNOWN_S if at == 0 else max(0.0, now - self._asked[at - 1])

    def lag_bytes(self, name: str) -> int | None:
        """How much of the primary's log a replica has not replayed, as far as was heard."""
        known = self.replicas[name]
        return max(0, self._lsns[-1] - known.replayed) if self._lsns and known.replayed >= 0 else None

    def trouble(self, name: str) -> str:
        """Why a replica may serve nothing at all now, lag apart; empty when it may."""
        known = self.replicas[name]
        if known.trouble or not self.timeline:
            return known.trouble or self.primary_trouble
        if known.system != self.system:
            return "it is no replica of this primary: another system identifier"
        if known.timeline != self.timeline:
            return f"it is on timeline {known.timeline}, the primary on {self.timeline}"
        return ""

    def able(self, needed: int, max_lag_s: float, now: float) -> list[str]:
        """Those that may serve a read: sound, beyond the position, and not behind by more than the bound."""
        # Within the bound is who has replayed the first position that was asked for within it.
        at = bisect_left(self._asked, now - max_lag_s)
        if at == len(self._asked):
            return []
        needed = max(needed, self._lsns[at])
        return [name for name, known in self.replicas.items() if known.replayed >= needed and not self.trouble(name)]


def cost(in_use: int, lag_s: float, max_lag_s: float, chance: float) -> float:
    """The replica with the least is taken: the idler and the fresher the better, by lot among equals."""
    return (in_use + 1) * (1 + lag_s / max_lag_s) * (1 + 0.2 * chance)
