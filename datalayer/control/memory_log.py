"""Gate and intents of one side of one attempt, as plain data."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from datalayer.control.base import AdmitState, Admitted
from datalayer.control.rules import spread_of
from datalayer.errors import MigrationError, StaleRoute
from datalayer.stores.base import GuardState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.domains.record import Key, Record
    from datalayer.stores.base import FenceState


class MemoryLog:
    """Each method is one step of the server, so none runs while the gate is being closed."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.installed = False
        self.intents: Final[dict[Key, Record]] = {}
        self._fence: FenceState = "open"
        self._flip = 0
        self._until = 0.0
        self._floor = 0

    def admit(self, record: Record, lead: int, now: float, *, create: bool) -> Admitted:
        """Check the gate, allot the version, keep the intent."""
        if not self.installed:
            return Admitted(AdmitState.STALE, None)
        if self.fence_now(now) != "open":
            return Admitted(AdmitState.FENCED, None)
        pending = self.intents.get(record.ident)
        if create and pending is not None:
            return Admitted(AdmitState.EXISTS, pending)
        if pending is not None and pending.deleted and not record.deleted:
            return Admitted(AdmitState.DELETED, pending)
        version = record.version if create else max(record.version, self._floor + 2 + lead)
        if pending is not None:
            version = max(version, pending.version + 2 + (0 if pending.deleted else lead))
        admitted = record._replace(version=version)
        self.intents[record.ident] = admitted
        return Admitted(AdmitState.ADMITTED, admitted)

    def install(self, *, sealed: bool) -> None:
        """Make the gate."""
        if not self.installed:
            self.installed = True
            self._fence = "sealed" if sealed else "open"

    def fence(self, flip: int, until: float) -> None:
        """Close it until then; a seal is never weakened."""
        if not self.installed or flip < self._flip:
            raise MigrationError(f"{self.name} has no gate to close for flip {flip}")
        if self._fence != "sealed":
            self._fence, self._flip, self._until = "lapsing", flip, until

    def seal(self, flip: int, now: float) -> None:
        """Close it for good."""
        if self.fence_now(now) == "open" or flip != self._flip:
            raise MigrationError(f"the fence of flip {flip} on {self.name} had lapsed before it was sealed")
        self._fence = "sealed"

    def open(self, flip: int) -> None:
        """Open it, unless a later flip has fenced since."""
        if not self.installed:
            raise MigrationError(f"{self.name} has no gate to open")
        if flip >= self._flip:
            self._fence, self._flip = "open", flip

    def set_floor(self, version: int) -> None:
        """Raise the floor."""
        if not self.installed:
            raise MigrationError(f"{self.name} has no gate")
        self._floor = max(self._floor, version)

    def remove(self, *, keep_fence: bool) -> None:
        """Forget the intents."""
        self.installed = False
        self.intents.clear()
        if keep_fence:
            self._fence = "sealed"
        else:
            self._fence, self._flip, self._floor = "open", 0, 0

    def fence_now(self, now: float) -> FenceState:
        """What is in force; a lapsed fence is open."""
        return "open" if self._fence == "lapsing" and now >= self._until else self._fence

    def state(self, now: float) -> GuardState:
        """What is in force."""
        return GuardState(self.installed, self.fence_now(now), self._flip)

    # the journal
    def live(self) -> dict[Key, Record]:
        """The intents; StaleRoute when the gate is gone."""
        if not self.installed:
            raise StaleRoute(f"there is no journal {self.name} any more")
        return self.intents

    def pending(self, limit: int, part: tuple[int, int], after: Key | None) -> list[Record]:
        """At most ``limit`` intents in key order behind ``after``, going on from the start."""
        number, of = part
        mine = sorted(r.ident for r in self.live().values() if spread_of(r.routing) % of == number)
        ahead = [key for key in mine if after is None or key > after]
        order = ahead + [key for key in mine if after is not None and key <= after]
        return [self.intents[key] for key in islice(order, limit)]

    def settle(self, seen: Sequence[Record]) -> None:
        """Clear what is at exactly the version applied."""
        for record in seen:
            pending = self.intents.get(record.ident)
            if pending is not None and pending.version == record.version:
                del self.intents[record.ident]

    def dirty(self, routings: Sequence[bytes], keys: Sequence[Key] | None) -> bool:
        """Whether one of them has an intent."""
        if keys is not None:
            return any(key in self.live() for key in keys)
        wanted = set(routings)
        return any(record.routing in wanted for record in self.live().values())
