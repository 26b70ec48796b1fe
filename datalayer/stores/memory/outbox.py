"""An outbox of one place for one index: as plain data of the server, and as the client sees it."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, TypeVar

from datalayer.domains.movement import INDEXED
from datalayer.errors import StaleRoute
from datalayer.stores.base import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datalayer.domains.record import Key
    from datalayer.stores.memory.backend import MemoryBackend
    from datalayer.stores.memory.server import PlaceKey

T = TypeVar("T")


class Following:
    """What a table holds for one outbox."""

    __slots__ = ("_kinds", "entries", "since", "tombs")

    def __init__(self, domain: str) -> None:
        self._kinds = INDEXED[domain]
        self.entries: Final[dict[Key, Entry]] = {}
        self.since: Final[dict[Key, int]] = {}
        """When the index fell behind on a key, oldest first."""
        self.tombs: Final[dict[Key, int]] = {}

    def note(self, entry: Entry, now_us: int) -> None:
        """Enter what was written."""
        if entry.kind in self._kinds:
            since = entry.since or now_us
            self.entries[entry.ident] = entry._replace(since=since)
            self.since.setdefault(entry.ident, since)

    def settle(self, entry: Entry) -> None:
        """Clear a key up to a version."""
        standing = self.entries.get(entry.ident)
        if standing is not None and standing.version <= entry.version:
            del self.entries[entry.ident], self.since[entry.ident]


class MemoryOutbox:
    """The Outbox of one place, over one client."""

    def __init__(self, backend: MemoryBackend, place: PlaceKey, index: int) -> None:
        self._backend: Final = backend
        self._server: Final = backend.server
        self._place: Final = place
        self._index: Final = index

    async def install(self) -> None:
        def effect() -> None:
            self._server.table(self._place)
            following = self._server.following.setdefault(self._place, {})
            following.setdefault(self._index, Following(self._place[0]))

        await self._call("install", effect)

    async def remove(self) -> None:
        await self._call("remove", lambda: self._server.following.get(self._place, {}).pop(self._index, None))

    async def installed(self) -> bool:
        return await self._call(
            "installed", lambda: self._index in self._server.following.get(self._place, {}), write=False
        )

    async def enter(self, entries: Sequence[Entry]) -> None:
        def effect() -> None:
            held, now = self._held(), self._server.clock.now_us()
            for entry in entries:
                standing = held.entries.get(entry.ident)
                if standing is None or standing.version < entry.version:
                    held.note(entry, now)

        await self._call("enter", effect)

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1), every: bool = False) -> list[Entry]:
        del every  # always
        number, of = part

        def effect() -> list[Entry]:
            held = self._held()
            return [held.entries[key] for key in held.since if of == 1 or zlib.crc32(key[1]) % of == number][:limit]

        return await self._call("pending", effect, write=False)

    async def settle(self, entries: Sequence[Entry]) -> None:
        def effect() -> None:
            held = self._held()
            for entry in entries:
                held.settle(entry)

        await self._call("settle", effect)

    async def holds(self, keys: Sequence[Key]) -> bool:
        return await self._call("holds", lambda: any(key in self._held().entries for key in keys), write=False)

    async def lag(self, limit: int) -> tuple[int, int | None]:
        def effect() -> tuple[int, int | None]:
            since = self._held().since
            return min(len(since), limit), min(since.values(), default=None)

        return await self._call("lag", effect, write=False)

    def _held(self) -> Following:
        held = self._server.following.get(self._place, {}).get(self._index)
        if held is None:
            raise StaleRoute(f"index {self._index} does not follow {self._place[0]} of attempt {self._place[1]} here")
        return held

    async def _call(self, name: str, effect: Callable[[], T], *, write: bool = True) -> T:
        return await self._backend.call(f"outbox.{name}", effect, domain=self._place[0], write=write)
