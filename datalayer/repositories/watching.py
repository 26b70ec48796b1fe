"""Watches who comes and goes, for all watchers of one process over one subscription.

A hint of the store only says where to look: what a watcher is told is always what a read found, so that nothing rests
on a message that may be lost. An end that passes is nobody's message; it is looked up when it is due. After every
connection of the subscription all is read again, and the difference told.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from typing import TYPE_CHECKING, Final

from datalayer.clock import Deadline
from datalayer.errors import DatalayerError
from datalayer.types import Presence, Transition, from_us

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence
    from uuid import UUID

    from datalayer.clock import Clock
    from datalayer.routing.places import Route
    from datalayer.routing.soft import SoftSides

POLL_S: Final = 1.0
"""Where the store gives no hints, and while it does not answer."""
REFRESH_S: Final = 30.0
"""A look without a hint, where there are hints."""
READ_S: Final = 2.0
RETRY_S: Final = 0.2
LATE_US: Final = 1_000
AT_ONCE: Final = 2_000


class Watching:
    """All watchers of one process."""

    def __init__(self, sides: SoftSides, clock: Clock) -> None:
        self._sides = sides
        self._clock = clock
        self._watchers: list[_Watcher] = []
        self._counts: dict[UUID, int] = {}
        self._due: dict[UUID, int] = {}
        """When each watched user is looked up next: microseconds."""
        self._heap: list[tuple[int, UUID]] = []
        self._wake = asyncio.Event()
        self._grown = asyncio.Event()
        self._deaf = True
        self._tasks: list[asyncio.Task[None]] = []

    # --- what a subscription of a store sees (stores.soft.Ear) -------------------------------------------------------

    @property
    def keys(self) -> Collection[UUID]:
        """Whoever is watched."""
        return self._counts

    def hint(self, key: UUID) -> None:
        """Look this user up now."""
        if key in self._counts:
            self._look_at(key, 0)

    def connected(self) -> None:
        """Look everybody up: hints may have been missed."""
        self._deaf = False
        for key in self._counts:
            self._look_at(key, 0)

    async def changed(self) -> None:
        """Wait until more users are watched; also by whoever came since the last call returned."""
        await self._grown.wait()
        self._grown.clear()

    # --- watchers ----------------------------------------------------------------------------------------------------

    async def watch(self, ids: Sequence[UUID], known: Mapping[UUID, Presence]) -> AsyncIterator[Transition]:
        """Changes of these users' presence, first those from what was ``known``."""
        watcher = _Watcher(ids, known)
        self._enter(watcher)
        try:
            while news := await watcher.news():
                for transition in news:
                    yield transition
        finally:
            self._leave(watcher)

    def _enter(self, watcher: _Watcher) -> None:
        self._watchers.append(watcher)
        for key in watcher.ids:
            self._counts[key] = self._counts.get(key, 0) + 1
            self._look_at(key, 0)
        self._grown.set()
        if not self._tasks:
            self._deaf = True
            self._tasks = [
                asyncio.create_task(self._look_forever(), name="datalayer-watch"),
                asyncio.create_task(self._listen_forever(), name="datalayer-listen"),
            ]

    def _leave(self, watcher: _Watcher) -> None:
        self._watchers.remove(watcher)
        for key in watcher.ids:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
                self._due.pop(key, None)
        if not self._watchers:
            for task in self._tasks:
                task.cancel()
            self._tasks = []
            self._heap = []

    async def stop(self) -> None:
        """End every watch: nothing more is told."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for watcher in self._watchers:
            watcher.end()

    # --- looking -----------------------------------------------------------------------------------------------------

    def _look_at(self, key: UUID, at_us: int) -> None:
        self._due[key] = at_us
        heapq.heappush(self._heap, (at_us, key))
        if at_us == 0:
            self._wake.set()

    async def _look_forever(self) -> None:
        while True:
            self._wake.clear()
            keys = self._take_due()
            if keys:
                await self._look(keys)
                continue
            wait_s = POLL_S
            if self._heap:
                wait_s = min(POLL_S, max(0.0, (self._heap[0][0] - self._clock.now_us()) / 1e6))
            await _wait(self._wake, wait_s)

    def _take_due(self) -> list[UUID]:
        now = self._clock.now_us()
        keys: list[UUID] = []
        while self._heap and self._heap[0][0] <= now and len(keys) < AT_ONCE:
            at_us, key = heapq.heappop(self._heap)
            if self._due.get(key) == at_us:
                del self._due[key]
                keys.append(key)
        return keys

    async def _look(self, keys: Sequence[UUID]) -> None:
        now = self._clock.now_us()
        try:
            found = await self._sides.ends(keys, now, Deadline(self._clock, READ_S))
        except DatalayerError:
            # Nothing is told of whom nothing is known; the caller's own calls raise the reason.
            found = dict.fromkeys(keys)
        for key, presence in presences(found, now).items():
            end = found[key] or 0
            if key not in self._counts:
                continue
            if presence is not Presence.UNKNOWN:
                self._tell(key, presence, now if presence is Presence.ONLINE else min(now, end or now))
            if self._due.get(key) is None:
                self._look_at(key, self._next_look(presence, now, end))

    def _next_look(self, presence: Presence, now: int, end: int) -> int:
        pace_s = POLL_S if self._deaf or presence is Presence.UNKNOWN else REFRESH_S
        at_us = now + int(pace_s * 1e6)
        return min(at_us, end + LATE_US) if presence is Presence.ONLINE else at_us

    def _tell(self, key: UUID, presence: Presence, at_us: int) -> None:
        for watcher in self._watchers:
            if key in watcher.ids:
                watcher.tell(key, presence, at_us)

    # --- hints -------------------------------------------------------------------------------------------------------

    async def _listen_forever(self) -> None:
        while True:
            # Polled meanwhile, and all is read again once there is a connection.
            with contextlib.suppress(DatalayerError):
                await self._listen(self._sides.route)
            self._deaf = True
            await asyncio.sleep(RETRY_S)

    async def _listen(self, route: Route) -> None:
        """Listen at the authority of this route until another one is in force."""
        if not route.authority.pushes:
            self._deaf = True
            while self._sides.route is route:
                await asyncio.sleep(RETRY_S)
            return
        listening = asyncio.ensure_future(route.authority.listen(self))
        try:
            while self._sides.route is route and not listening.done():
                await asyncio.wait({listening}, timeout=RETRY_S)
            if listening.done():
                await listening
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


class _Watcher:
    """One caller's watch: what it was told last of each user, and what it is to be told next."""

    __slots__ = ("_ended", "_told", "_waiting", "_wake", "ids")

    def __init__(self, ids: Sequence[UUID], known: Mapping[UUID, Presence]) -> None:
        self.ids = frozenset(ids)
        self._told = {key: known[key] for key in self.ids if key in known}
        self._waiting: dict[UUID, Transition] = {}
        self._wake = asyncio.Event()
        self._ended = False

    def tell(self, key: UUID, presence: Presence, at_us: int) -> None:
        """What a read found. Bounded by the number of users: of one who comes and goes only the last state waits."""
        told = self._told.setdefault(key, presence)
        if told is presence:
            self._waiting.pop(key, None)
        elif (waiting := self._waiting.get(key)) is None or waiting.presence is not presence:
            self._waiting[key] = Transition(key, presence, from_us(at_us))
            self._wake.set()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._wake.set()

    async def news(self) -> list[Transition]:
        """The changes since the last call, at least one; none when the watch was ended."""
        while not self._waiting and not self._ended:
            self._wake.clear()
            await self._wake.wait()
        news, self._waiting = list(self._waiting.values()), {}
        for transition in news:
            self._told[transition.user_id] = transition.presence
        return news


def presences(ends: Mapping[UUID, int | None], now: int) -> dict[UUID, Presence]:
    """What ends of lifetimes mean at an instant."""
    unknown, online, offline = Presence.UNKNOWN, Presence.ONLINE, Presence.OFFLINE
    return {key: unknown if end is None else online if end > now else offline for key, end in ends.items()}


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
