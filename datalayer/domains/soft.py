"""Soft state: what its owners renew all the time and nobody misses once they stop - presence and typing.

A place of a soft domain maps a key (a user; a conversation) to items (devices; users who type), each the newest *beat*
heard of it. Of two beats of one item the newer version wins, and of equal versions the later end: the order in which
they arrive, and how often, changes nothing. Leaving is a beat without a lifetime (its end is 0), so a late beat of
before cannot bring an item back.

Versions and ends are of the clock of the process that beats, and readers compare ends with their own: one rule for
every store, also for those that have no clock or delete late. A difference of two machines' clocks lengthens or
shortens a lifetime by just that difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

SOFT_DOMAINS: Final = ("presence", "typing")
TTL_MAX_S: Final = 120.0
"""The longest lifetime of a beat: so long, a migration waits until both sides know everybody."""
TTL_MIN_S: Final = 1.0
ITEMS_MAX: Final = 100
"""Of one key; beyond that the one that was heard of longest ago gives way."""
LATE_US: Final = int((TTL_MAX_S + 60.0) * 1_000_000)
"""How long an item is kept after its end. A beat that lands later than that has ended itself, by a minute (so far may
machines' clocks differ): it brings nobody back who has left.
"""
KEEP_US: Final = {"presence": 30 * 24 * 3600 * 1_000_000, "typing": 0}
"""How long a key is kept after the end of all its items (LATE_US beside it): so long, last_seen is known."""


class Beat(NamedTuple):
    """One sign of life: microseconds since 1970 of when it was given and of when it ends; 0: the item has left."""

    key: UUID
    item: str
    version: int
    expires_us: int
    status: str = ""

    @property
    def rank(self) -> tuple[int, int]:
        """What decides between two beats of one item."""
        return (self.version, self.expires_us)


Entry = tuple[Beat, ...]
"""All that is kept of one key."""


def admit(entry: Iterable[Beat], beat: Beat) -> Entry | None:
    """The entry with this beat; None where it knows a newer one. The rule for every store.

    Items that ended LATE_US before the newest version are left out, but for the newest: it says when the key was heard
    of last.
    """
    kept = {one.item: one for one in entry}
    known = kept.get(beat.item)
    if known is not None and known.rank >= beat.rank:
        return None
    kept[beat.item] = beat
    newest = max(kept.values(), key=lambda one: one.version)
    alive = [one for one in kept.values() if max(one.version, one.expires_us) > newest.version - LATE_US]
    alive.sort(key=lambda one: one.version, reverse=True)
    return tuple(alive[:ITEMS_MAX])


def merge(*entries: Entry) -> Entry:
    """Of each item the newest beat that any of these entries knows."""
    kept: dict[str, Beat] = {}
    for entry in entries:
        for beat in entry:
            known = kept.get(beat.item)
            if known is None or known.rank < beat.rank:
                kept[beat.item] = beat
    return tuple(kept.values())


def end_of(entry: Entry) -> int:
    """When the last item of an entry ends or has ended; 0 of an empty one, and of one that every item has left."""
    return max((beat.expires_us for beat in entry), default=0)


def seen_of(entry: Entry) -> int:
    """When the key was heard of last; 0 of an empty entry."""
    return max((beat.version for beat in entry), default=0)
