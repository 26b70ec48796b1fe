"""Journal and fence of one side of one attempt, as plain data: what triggers and their tables hold in a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.errors import MigrationError
from datalayer.stores.base import GuardState

if TYPE_CHECKING:
    from datalayer.domains.record import Key, Record
    from datalayer.stores.base import FenceState


class Side:
    """The guard of a place for one attempt.

    The flip number orders what coordinators and watchdogs do: an ``open`` of an earlier flip never undoes the fence
    of a later one.
    """

    __slots__ = ("_fence", "_until", "flip", "foreign", "installed", "journal", "tombs")

    def __init__(self) -> None:
        self.installed = False
        self.journal: Final[dict[Key, int]] = {}
        self.tombs: Final[dict[Key, int]] = {}
        self.foreign: Final[set[str]] = set()
        self.flip = 0
        self._fence: FenceState = "open"
        self._until = 0.0

    def fence_now(self, monotonic: float) -> FenceState:
        """What is in force; a lapsed fence is open."""
        return "open" if self._fence == "lapsing" and monotonic >= self._until else self._fence

    def install(self, *, sealed: bool) -> None:
        """Journal on. A guard that is on stays as it is, its fence too."""
        if not self.installed:
            self.installed = True
            self._fence = "sealed" if sealed else "open"

    def note(self, record: Record) -> None:
        """Enter what was written, while the journal is on."""
        if self.installed:
            self.journal[record.ident] = record.version

    def fence(self, flip: int, until: float) -> None:
        """Refuse writes until then; a seal is never weakened."""
        if not self.installed or flip < self.flip:
            msg = f"no guard to fence for flip {flip}"
            raise MigrationError(msg)
        if self._fence != "sealed":
            self.flip, self._fence, self._until = flip, "lapsing", until

    def seal(self, flip: int, monotonic: float) -> None:
        """Make the fence of this flip permanent."""
        now = self.fence_now(monotonic)
        if flip != self.flip or now == "open":
            msg = f"the fence of flip {flip} had lapsed before it was sealed"
            raise MigrationError(msg)
        self._fence = "sealed"

    def open(self, flip: int) -> None:
        """Accept writes again, unless a later flip has fenced since."""
        if flip >= self.flip:
            self.flip, self._fence = flip, "open"

    def remove(self, *, keep_fence: bool) -> None:
        """Journal off and forgotten."""
        self.installed = False
        self.journal.clear()
        self.tombs.clear()
        if not keep_fence:
            self._fence = "open"

    def state(self, monotonic: float) -> GuardState:
        """What is in force now."""
        return GuardState(self.installed, self.fence_now(monotonic), self.flip)
