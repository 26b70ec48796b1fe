"""Who is there, on which devices, and since when not."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

from datalayer.domains.record import check_text
from datalayer.domains.soft import TTL_MAX_S, TTL_MIN_S, Beat, seen_of
from datalayer.errors import InvalidArgument, Unavailable
from datalayer.repositories.arguments import as_ids, as_uuid, deadline_of
from datalayer.repositories.watching import presences
from datalayer.types import Device, Presence, from_us

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from datetime import datetime
    from uuid import UUID

    from datalayer.clock import Clock, Deadline
    from datalayer.repositories.limits import Limits
    from datalayer.repositories.watching import Watching
    from datalayer.routing.soft import SoftSides
    from datalayer.types import Transition

IDS_MAX: Final = 10_000
NAME_BYTES: Final = 64


class Versions:
    """Times of beats: the clock's, and of one process never the same twice, nor back."""

    __slots__ = ("_clock", "_last")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = 0

    def next(self) -> int:
        """Microseconds since 1970."""
        self._last = max(self._last + 1, self._clock.now_us())
        return self._last


class PresenceRepository:
    """Heartbeats of users' devices, and who is online. Each method ends by its deadline (default of the settings, 5 s).

    Writers raise Unavailable or OutcomeUnknown when the store does not answer: the next heartbeat makes it good.
    Readers of many do not: whom the store says nothing about is UNKNOWN. Times are of the clocks of the machines that
    beat; a difference to the reader's clock lengthens or shortens a lifetime by as much.
    """

    def __init__(self, sides: SoftSides, watching: Watching, clock: Clock, limits: Limits) -> None:
        self._sides = sides
        self._watching = watching
        self._clock = clock
        self._limits = limits
        self._versions = Versions(clock)

    async def heartbeat(
        self,
        user_id: UUID | str,
        *,
        device: str = "default",
        ttl: float = 45.0,
        status: str = "",
        timeout: float | None = None,
    ) -> None:
        """The user is there, on this device, for ``ttl`` seconds (1 to 120): beat again in a third of it.

        ``device`` and ``status`` are at most 64 bytes of printable text. Repeating is harmless. Of two processes that
        beat for one device the later one counts.
        """
        user, name = as_uuid(user_id, "user_id"), as_name(device, "device")
        lifetime_us = as_ttl(ttl)
        said = as_name(status, "status", empty=True)
        version = self._versions.next()
        beat = Beat(user, name, version, version + lifetime_us, said)
        await self._sides.put(beat, self._deadline(timeout))

    async def leave(self, user_id: UUID | str, *, device: str = "default", timeout: float | None = None) -> None:
        """The user has left this device, as from now; a heartbeat that was given before counts no more. Idempotent."""
        user, name = as_uuid(user_id, "user_id"), as_name(device, "device")
        version = self._versions.next()
        await self._sides.put(Beat(user, name, version, 0), self._deadline(timeout))

    async def online(self, ids: Iterable[UUID | str], *, timeout: float | None = None) -> dict[UUID, Presence]:
        """Of each of at most 10,000 users: ONLINE while any device beats, OFFLINE, or UNKNOWN where the store, or the
        node of it that knows the user, does not answer. One round trip a node.
        """
        wanted = as_ids(ids, "ids", IDS_MAX)
        if not wanted:
            return {}
        now = self._clock.now_us()
        return presences(await self._sides.ends(wanted, now, self._deadline(timeout)), now)

    async def last_seen(self, ids: Iterable[UUID | str], *, timeout: float | None = None) -> dict[UUID, datetime]:
        """When each of at most 10,000 users was heard of last: a heartbeat or a leave, kept for 30 days after it ended.

        Those never heard of are left out. Unavailable when a node that must be asked does not answer.
        """
        wanted = as_ids(ids, "ids", IDS_MAX)
        if not wanted:
            return {}
        found = await self._sides.entries(wanted, self._deadline(timeout))
        silent = sum(entry is None for entry in found.values())
        if silent:
            raise Unavailable(f"{silent} of {len(found)} users cannot be looked up: their store does not answer")
        return {user: from_us(seen_of(entry)) for user, entry in found.items() if entry}

    async def devices(self, user_id: UUID | str, *, timeout: float | None = None) -> tuple[Device, ...]:
        """The devices on which the user is there, heard of last first (at most 100). Unavailable."""
        user = as_uuid(user_id, "user_id")
        entry = (await self._sides.entries([user], self._deadline(timeout)))[user]
        if entry is None:
            raise Unavailable(f"the devices of {user} are not known: the store does not answer")
        now = self._clock.now_us()
        alive = sorted((beat for beat in entry if beat.expires_us > now), key=lambda beat: beat.version, reverse=True)
        return tuple(Device(b.item, from_us(b.version), from_us(b.expires_us), b.status) for b in alive)

    async def watch(
        self, ids: Iterable[UUID | str], *, known: Mapping[UUID, Presence] | None = None
    ) -> AsyncIterator[Transition]:
        """Whoever of at most 10,000 users comes or goes, as it happens, until the caller stops.

        Only changes are given, from what was true at the first step; with ``known``, an answer of ``online``, from that:
        nothing between the two calls is missed. Over a reconnect, and for a reader who is slow, what changed and changed
        back is not told. While the store does not answer nothing is told.
        """
        wanted = as_ids(ids, "ids", IDS_MAX)
        async for transition in self._watching.watch(wanted, known or {}):
            yield transition

    def _deadline(self, timeout: float | None) -> Deadline:
        return deadline_of(self._clock, timeout, self._limits)


def as_name(value: object, what: str, *, empty: bool = False) -> str:
    """A short printable text. InvalidArgument."""
    if type(value) is str and (value or empty) and len(value) <= NAME_BYTES and value.isascii() and value.isprintable():
        return value  # nearly always, and every heartbeat passes here
    text = check_text(value, what, NAME_BYTES)
    if not text and not empty:
        raise InvalidArgument(f"{what} is empty")
    if any(unicodedata.category(char) in {"Cc", "Zl", "Zp"} for char in text):
        raise InvalidArgument(f"{what} contains a control character")
    return text


def as_ttl(ttl: object) -> int:
    """A lifetime in microseconds. InvalidArgument."""
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not TTL_MIN_S <= ttl <= TTL_MAX_S:
        raise InvalidArgument(f"ttl is {ttl!r}; it must be from {TTL_MIN_S:g} to {TTL_MAX_S:g} seconds")
    return int(ttl * 1_000_000)
