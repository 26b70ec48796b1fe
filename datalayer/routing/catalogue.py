"""The catalogue of media for the engine: whatever phase the catalogue's own move is in, and on whichever shards it lies.

The engine changes and walks rows at the authority, which always has the truth; a fence that refuses is waited out, and
a walk during which the catalogue's routing changed is made again by whoever needs it to be whole.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from datalayer.clock import Deadline
from datalayer.domains.catalogue import StoredObject, to_object
from datalayer.domains.record import Record
from datalayer.errors import ConfigurationError, Fenced, StaleRoute, Unavailable
from datalayer.routing.sharded import ShardedStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from uuid import UUID

    from datalayer.domains.catalogue import CatalogueMutation
    from datalayer.domains.record import Key
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing
    from datalayer.stores.base import ScanPage
    from datalayer.types import Media

CATALOGUE: Final = "catalogue"
CALL_S: Final = 30.0
WAIT_S: Final = 0.05
PAGE: Final = 500
RANGES: Final = 16


class Catalogue:
    """Reads and changes of the catalogue that no application asked for."""

    def __init__(self, places: Places) -> None:
        self._places = places

    async def routing(self) -> Routing:
        """Where the catalogue lies now, by the control store. ConfigurationError where it was placed nowhere."""
        _, routings = await self._places.control.routings()
        self._places.learn(routings)
        if CATALOGUE not in routings:
            raise ConfigurationError("the catalogue of media has no place yet", hint="open the application once")
        return routings[CATALOGUE]

    async def execute(self, mutation: CatalogueMutation) -> Any:
        """Run one mutation at the authority of its owner's part; the entity afterwards."""

        async def call(store: Any, deadline: Deadline) -> Any:
            return (await store.execute(mutation, deadline)).entity

        return await self._at(mutation.owner_id, call)

    async def object(self, owner_id: UUID, sha256: str) -> StoredObject | None:
        """One object."""

        async def call(store: Any, deadline: Deadline) -> StoredObject | None:
            found: StoredObject | None = await store.object(owner_id, sha256, deadline)
            return found

        found: StoredObject | None = await self._at(owner_id, call)
        return found

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        """Items and objects by their keys."""
        found: dict[Key, Record] = await (await self._store()).fetch(keys)
        return found

    async def known(self, owner_id: UUID, names: Sequence[UUID]) -> set[UUID]:
        """Those names that the catalogue knows."""

        async def call(store: Any, deadline: Deadline) -> Any:
            return await store.known([(owner_id, name) for name in names], deadline)

        return {name for _, name in await self._at(owner_id, call)}

    async def due(self, now_us: int, limit: int) -> list[StoredObject]:
        """Objects whose time to be deleted has come."""
        found: list[StoredObject] = []
        for store in await self._stores():
            found += await store.due(now_us, limit, self._deadline())
        return found[:limit]

    async def waiting(self, before_us: int, limit: int) -> list[Media]:
        """Items whose bytes have not come since."""
        found: list[Media] = []
        for store in await self._stores():
            found += await store.waiting(before_us, limit, self._deadline())
        return found[:limit]

    async def ranges(self, n: int) -> list[str]:
        """About ``n`` ranges that cover every row that there is now."""
        found: list[str] = await (await self._store()).plan_scan(n)
        return found

    async def page(self, range_: str, after: str | None, limit: int) -> tuple[list[StoredObject], str | None, bool]:
        """Live objects of the next rows of a range, where to go on, and whether the range is done."""
        page: ScanPage = await (await self._store()).scan(range_, after, limit)
        live = [to_object(record) for record in page.records if record.kind == "object" and not record.deleted]
        return live, page.after, page.done

    async def walk(self) -> AsyncGenerator[StoredObject, None]:
        """Every live object."""
        for range_ in await self.ranges(RANGES):
            after: str | None = None
            done = False
            while not done:
                found, after, done = await self.page(range_, after, PAGE)
                for one in found:
                    yield one

    async def _store(self) -> Any:
        """The catalogue as a whole; its slot groups are reached one by one."""
        place = (await self.routing()).authority
        await self._places.ensure_open(place)
        return self._places.store(CATALOGUE, place)

    async def _stores(self) -> list[Any]:
        store = await self._store()
        return [await store.store(group) for group in store.map.groups] if isinstance(store, ShardedStore) else [store]

    async def _at(self, owner_id: UUID, call: Callable[[Any, Deadline], Awaitable[Any]]) -> Any:
        """A call at the store where an owner's part lies; a cut-over is waited out."""
        deadline = self._deadline()
        while True:
            try:
                store = await self._store()
                if isinstance(store, ShardedStore):
                    store = await store.store(store.group_of(Record("media", owner_id.bytes * 2, 0, False, ())))
                return await call(store, deadline)
            except (Fenced, StaleRoute) as error:
                if deadline.passed:
                    raise Unavailable(f"the catalogue of media is being cut over: {error.message}") from error
                await asyncio.sleep(WAIT_S)

    def _deadline(self) -> Deadline:
        return Deadline(self._places.clock, CALL_S)
