"""Presence and typing in the memory of one process: what other processes hear, it does not know."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from datalayer.domains.soft import KEEP_US, LATE_US, Beat, Entry, admit, end_of, seen_of
from datalayer.errors import Unavailable
from datalayer.stores.soft import SoftPage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.stores.memory.backend import MemoryBackend
    from datalayer.stores.soft import Ear

T = TypeVar("T")
SWEEP_EVERY: Final = 1000
"""Beats between two looks for keys that need not be kept any longer (more when there are more keys)."""


class SoftTable:
    """What is kept of one place, and who listens to it."""

    __slots__ = ("_beats", "_keep_us", "ears", "entries")

    def __init__(self, domain: str) -> None:
        self.entries: dict[UUID, Entry] = {}
        self.ears: list[Ear] = []
        self._keep_us = KEEP_US[domain] + LATE_US
        self._beats = 0

    def put(self, beat: Beat) -> None:
        """Keep a beat; those who listen are told when the key comes or goes by it."""
        known = self.entries.get(beat.key, ())
        entry = admit(known, beat)
        if entry is None:
            return
        self.entries[beat.key] = entry
        if (end_of(known) > beat.version) != (end_of(entry) > beat.version):
            for ear in self.ears:
                ear.hint(beat.key)
        self._beats += 1
        if self._beats >= max(SWEEP_EVERY, len(self.entries)):
            self._sweep(beat.version)

    def _sweep(self, now_us: int) -> None:
        self._beats = 0
        since = now_us - self._keep_us
        ended = [key for key, entry in self.entries.items() if max(end_of(entry), seen_of(entry)) < since]
        for key in ended:
            del self.entries[key]


class MemorySoft:
    """One soft domain at one place of an in-memory server."""

    pushes = True

    def __init__(self, backend: MemoryBackend, domain: str, attempt: int) -> None:
        self.reach: Literal["process", "network"] = backend.server.reach
        self._backend = backend
        self._place = (domain, attempt)

    @property
    def _table(self) -> SoftTable:
        return self._backend.server.soft_table(self._place)

    async def beat(self, beat: Beat, deadline: Deadline) -> None:
        await self._call("beat", lambda: self._table.put(beat), deadline)

    async def ends(self, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, int | None]:
        def effect() -> dict[UUID, int | None]:
            entries = self._table.entries
            return {key: end_of(entries.get(key, ())) for key in keys}

        return await self._read("ends", effect, keys, deadline)

    async def entries(self, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, Entry | None]:
        def effect() -> dict[UUID, Entry | None]:
            entries = self._table.entries
            return {key: entries.get(key, ()) for key in keys}

        return await self._read("entries", effect, keys, deadline)

    async def _read(
        self, name: str, effect: Callable[[], dict[UUID, T | None]], keys: Sequence[UUID], deadline: Deadline
    ) -> dict[UUID, T | None]:
        try:
            return await self._call(name, effect, deadline, write=False)
        except Unavailable:
            return dict.fromkeys(keys)

    async def apply(self, beats: Sequence[Beat]) -> None:
        def effect() -> None:
            for beat in beats:
                self._table.put(beat)

        await self._call("apply", effect)

    async def scan(self, after: str | None, limit: int) -> SoftPage:
        def effect() -> SoftPage:
            keys = sorted(key for key in self._table.entries if after is None or key.hex > after)
            page = keys[:limit]
            beats = [beat for key in page for beat in self._table.entries[key]]
            return SoftPage(beats, page[-1].hex if len(keys) > limit else None)

        return await self._call("scan", effect, write=False)

    async def listen(self, ear: Ear) -> None:
        table = self._table
        table.ears.append(ear)
        ear.connected()
        try:
            await asyncio.Event().wait()
        finally:
            table.ears.remove(ear)

    async def create(self) -> None:
        await self._call("create", lambda: self._table)

    async def drop(self) -> None:
        await self._call("drop", lambda: self._backend.server.drop_soft(self._place))

    async def empty(self) -> bool:
        return await self._call("empty", lambda: not self._table.entries, write=False)

    async def _call(
        self, name: str, effect: Callable[[], T], deadline: Deadline | None = None, *, write: bool = True
    ) -> T:
        return await self._backend.call(name, effect, deadline, domain=self._place[0], write=write)
