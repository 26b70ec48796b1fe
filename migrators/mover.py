"""Bringing objects of media to one place: what every stage of their move does."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from datalayer.control.base import QuarantineRow
from datalayer.domains.catalogue import Hold, StoredObject, object_key
from datalayer.errors import Corrupt, DatalayerError, NotFound, StaleRoute
from datalayer.migrators.leased import CHUNK_TTL_S
from datalayer.migrators.throttle import RateCap
from datalayer.routing.catalogue import Catalogue
from datalayer.routing.holders import Holders, name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from datalayer.control.base import Chunk
    from datalayer.migrators.work import Work
    from datalayer.routing.route import Place

PAGE: Final = 64
AT_ONCE: Final = 4
"""Objects that one worker brings at a time; large ones wait for each other in the store."""
RANGES_PER_WORKER: Final = 8
KEEP_S: Final = CHUNK_TTL_S / 3


class Mover:
    """Brings objects to one place."""

    def __init__(self, work: Work, target: Place, cap: RateCap | None = None) -> None:
        self.work = work
        self.target = name_of(target)
        self.catalogue = Catalogue(work.places)
        self.holders = Holders(work.places)
        self._cap = cap or RateCap(work.clock, None)

    async def lacking(self, stored: StoredObject) -> bool:
        """Whether the place has not got an object yet."""
        return self.target not in stored.held

    async def bring(self, stored: StoredObject) -> None:
        """Copy an object and enter that. One without right bytes anywhere is put into quarantine."""
        await self._cap.take(1)
        held = self.holders.ordered(stored, self.work.routing)
        try:
            await self.holders.copy(stored, held, self.target)
        except (Corrupt, NotFound) as error:
            if await self._lives(stored):
                await self._quarantine(stored, error.message)
            return
        await self.work.failpoints.reach("objects.copied")
        try:
            await self.catalogue.execute(Hold(stored.owner_id, stored.sha256, stored.name, add=self.target))
        except NotFound:  # it was given up meanwhile
            await (await self.holders.store(self.target)).delete([stored.key])
        await self.work.failpoints.reach("objects.entered")

    async def bring_all(self, objects: Iterable[StoredObject]) -> int:
        """Bring those that are lacking; how many they were."""
        lacking = [one for one in objects if self.target not in one.held]
        await together(lacking, self.bring)
        return len(lacking)

    async def walk(self) -> int:
        """Bring all that is lacking, once over the whole catalogue; how many they were."""
        done = 0
        async for page in whole(self.catalogue):
            done += await self.bring_all(page)
        return done

    async def _lives(self, stored: StoredObject) -> bool:
        now = await self.catalogue.object(stored.owner_id, stored.sha256)
        return now is not None and not now.deleted and now.name == stored.name

    async def _quarantine(self, stored: StoredObject, reason: str) -> None:
        key = object_key(stored.owner_id, stored.sha256)
        row = QuarantineRow("object", key, stored.version, reason, self.work.clock.now_us())
        await self.work.control.quarantine(self.work.migration.id, [row])


async def whole(catalogue: Catalogue) -> AsyncIterator[list[StoredObject]]:
    """Every live object, page by page. StaleRoute where the catalogue itself moved meanwhile: walk again."""
    before = await catalogue.routing()
    for range_ in await catalogue.ranges(RANGES_PER_WORKER):
        after: str | None = None
        done = False
        while not done:
            page, after, done = await catalogue.page(range_, after, PAGE)
            if page:
                yield page
    if (await catalogue.routing()).epoch != before.epoch:
        raise StaleRoute("the catalogue of media moved while it was walked over")


async def together(items: list[StoredObject], act: Callable[[StoredObject], Awaitable[None]]) -> None:
    """``act`` for all, a few at a time; the first error ends the others."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(item: StoredObject) -> None:
        async with room:
            await act(item)

    tasks = [asyncio.create_task(one(item)) for item in items]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def kept(work: Work, chunk: Chunk) -> AsyncIterator[None]:
    """Inside the block a chunk's lease is kept: one object may take longer than it lasts."""

    async def keep() -> None:
        while True:
            await asyncio.sleep(KEEP_S)
            with contextlib.suppress(DatalayerError):
                await work.control.checkpoint(chunk, CHUNK_TTL_S)

    task = asyncio.create_task(keep(), name="datalayer-keep-chunk")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def planned(work: Work, name: str) -> str:
    """A run over the catalogue as it lies now: another one when it has moved since, for ranges are its store's own."""
    catalogue = Catalogue(work.places)
    place = (await catalogue.routing()).authority
    run = f"{work.migration.id}/{name}" + (f"-{place.backend}-{place.attempt}" if place.attempt else "")
    if not await work.control.chunks(run):
        ranges = await catalogue.ranges(work.options.workers * RANGES_PER_WORKER)
        await work.control.plan_chunks(run, ranges)
    return run
