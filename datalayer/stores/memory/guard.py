"""The client's journal and fence: the port's calls, each one step of the server."""

from __future__ import annotations

import zlib
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

from datalayer.domains.record import ROUTING_BYTES, Key, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datalayer.stores.base import GuardState, Journal, Token
    from datalayer.stores.memory.backend import MemoryBackend
    from datalayer.stores.memory.server import PlaceKey

T = TypeVar("T")


class MemoryJournal:
    """The journal of one place and attempt, over one client."""

    def __init__(self, backend: MemoryBackend, place: PlaceKey, attempt: int) -> None:
        self._backend: Final = backend
        self._server: Final = backend.server
        self._place: Final = place
        self._attempt: Final = attempt

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1)) -> list[Record]:
        number, of = part

        def effect() -> list[Record]:
            dirty = self._server.journal_records(self._place, self._attempt)
            mine = (record for record in dirty if of == 1 or zlib.crc32(record.key) % of == number)
            return list(islice(mine, limit))

        return await self._call("pending", effect, write=False)

    async def settle(self, seen: Sequence[Record]) -> None:
        await self._call("settle", lambda: self._server.settle(self._place, self._attempt, seen))

    async def backlog(self) -> int:
        return await self._call("backlog", lambda: len(self._journal()), write=False)

    async def dirty(self, routings: Sequence[bytes], keys: Sequence[Key] | None = None) -> bool:
        def effect() -> bool:
            journal = self._journal()
            if keys is not None:
                return any(key in journal for key in keys)
            wanted = set(routings)
            return any(key[1][:ROUTING_BYTES] in wanted for key in journal)

        return await self._call("dirty", effect, write=False)

    async def foreign_writers(self) -> list[str]:
        def effect() -> list[str]:
            return sorted(self._server.live_side(self._place, self._attempt).foreign)

        return await self._call("foreign_writers", effect, write=False)

    def _journal(self) -> dict[Key, int]:
        return self._server.live_side(self._place, self._attempt).journal

    async def _call(self, name: str, effect: Callable[[], T], *, write: bool = True) -> T:
        return await self._backend.call(f"journal.{name}", effect, domain=self._place[0], write=write)


class MemoryGuard:
    """Journal and fence of one place and attempt, over one client."""

    def __init__(self, backend: MemoryBackend, place: PlaceKey, attempt: int) -> None:
        self._backend: Final = backend
        self._server: Final = backend.server
        self._place: Final = place
        self._attempt: Final = attempt
        self.journal: Journal = MemoryJournal(backend, place, attempt)

    async def install(self, token: Token, *, sealed: bool) -> None:
        await self._call("install", lambda: self._server.install(self._place, self._attempt, token, sealed=sealed))

    async def apply(self, records: Sequence[Record]) -> None:
        def land(batch: Sequence[Record]) -> None:
            self._server.apply_as(self._place, self._attempt, batch)

        await self._call("apply", lambda: land(records), partial=lambda: land(records[: len(records) // 2]))

    async def fence(self, token: Token, flip: int, lapse_s: float, lock_timeout_s: float) -> None:
        await self._call("fence", lambda: self._server.fence(self._place, self._attempt, token, flip, lapse_s))

    async def seal(self, token: Token, flip: int) -> None:
        await self._call("seal", lambda: self._server.seal(self._place, self._attempt, token, flip))

    async def open(self, flip: int) -> None:
        await self._call("open", lambda: self._server.open(self._place, self._attempt, flip))

    async def state(self) -> GuardState:
        def effect() -> GuardState:
            return self._server.side(self._place, self._attempt).state(self._server.clock.monotonic())

        return await self._call("state", effect, write=False)

    async def repair(self, keys: Sequence[Key], ghosts: Sequence[Record], now_us: int) -> None:
        await self._call("repair", lambda: self._server.repair(self._place, self._attempt, keys, ghosts, now_us))

    async def remove(self, token: Token, *, keep_fence: bool) -> None:
        def effect() -> None:
            self._server.remove(self._place, self._attempt, token, keep_fence=keep_fence)

        await self._call("remove", effect)

    async def _call(
        self, name: str, effect: Callable[[], T], *, write: bool = True, partial: Callable[[], object] | None = None
    ) -> T:
        place = self._place[0]
        return await self._backend.call(f"guard.{name}", effect, domain=place, write=write, partial=partial)
