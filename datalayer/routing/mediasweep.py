"""The sweep of media: what nobody refers to any more is deleted.

One process of the fleet does it at a time, under a lease: for economy, not for correctness. Every step may be done
twice. An object is given up in the catalogue first, which nobody can refer to from then on; its bytes go afterwards.
Bytes that no row knows are those of uploads that never came to an end: they go once no upload of that time can be
entered any more.

Errors are counted and what failed is left to the next round (the one place of this component that swallows them).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final
from uuid import UUID

from datalayer.domains.catalogue import UPLOAD_MAX_US, Detach, Forget, StoredObject
from datalayer.errors import Closed, ConfigurationError, Conflict, DatalayerError, LostLease, NotFound
from datalayer.ids import id_time_us
from datalayer.routing.catalogue import Catalogue
from datalayer.routing.holders import MEDIA, Holders, name_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from datalayer.routing.places import Places
    from datalayer.routing.router import Jitter
    from datalayer.stores.objects import ObjectInfo

log = logging.getLogger("datalayer.media")
LEASE: Final = "sweeper/media"
LEASE_TTL_S: Final = 60.0
SWEEP_S: Final = 30.0
DEEP_S: Final = 3600.0
"""Between two looks at every object in the stores."""
BATCH: Final = 200
KEPT_US: Final = 2 * UPLOAD_MAX_US
"""Bytes that no row knows are kept for so long."""


@dataclass(slots=True)
class Swept:
    """What a sweep has done."""

    deleted: int = 0
    """Objects that nobody referred to any more."""
    lapsed: int = 0
    """Items whose bytes never came."""
    orphans: int = 0
    """Bytes that no row knew."""
    unfinished: int = 0
    """Uploads that were cut off."""


class MediaSweep:
    """The sweep of one process."""

    def __init__(self, places: Places, process_id: str, jitter: Jitter) -> None:
        self._places = places
        self._process_id = process_id
        self._jitter = jitter
        self._catalogue = Catalogue(places)
        self._holders = Holders(places)
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._deep_at = float("-inf")
        self.errors = 0

    def start(self) -> None:
        """Sweep from now on, until ``stop``."""
        self._task = asyncio.create_task(self._forever(), name="datalayer-media-sweep")

    async def stop(self) -> None:
        """Sweep no more. Idempotent."""
        self._stopped.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _forever(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S * (0.75 + 0.5 * self._jitter())):
                    await self._stopped.wait()
            await self._try(self._leased())

    async def _leased(self) -> None:
        control = self._places.control
        _, routings = await control.routings()
        if MEDIA not in routings or self._stopped.is_set():
            return
        holder = await control.holder(LEASE)
        if holder is not None and holder[0] != self._process_id:
            return
        if await control.take(LEASE, self._process_id, LEASE_TTL_S) is None:
            return
        now = self._places.clock.monotonic()
        deep = now - self._deep_at >= DEEP_S
        await self.sweep(deep=deep)
        if deep:
            self._deep_at = now

    async def sweep(self, *, deep: bool = True, now_us: int | None = None) -> Swept:
        """One round. ``deep``: look for bytes that no row knows, too; ``now_us``: for whoever cannot wait."""
        now = self._places.clock.now_us() if now_us is None else now_us
        swept = Swept()
        while due := await self._catalogue.due(now, BATCH):
            done = swept.deleted
            for stored in due:
                await self._try(self._give_up(stored, swept))
            if swept.deleted == done:
                break
        for item in await self._catalogue.waiting(now - UPLOAD_MAX_US, BATCH):
            await self._catalogue.execute(Detach(item.owner_id, item.id, 0))
            swept.lapsed += 1
        if deep:
            _, routings = await self._places.control.routings()
            routing = routings[MEDIA]
            for place in (routing.authority, routing.mirror):
                if place is not None:
                    await self._try(self._orphans(name_of(place), now - KEPT_US, swept))
        return swept

    async def _give_up(self, stored: StoredObject, swept: Swept) -> None:
        try:
            gone = await self._catalogue.execute(Forget(stored.owner_id, stored.sha256, stored.name))
        except (Conflict, NotFound):
            return  # somebody refers to it again
        if gone.name != stored.name:
            return
        swept.deleted += 1
        for held in gone.held:
            with contextlib.suppress(ConfigurationError):
                await (await self._holders.store(held)).delete([gone.key])

    async def _orphans(self, held: str, before_us: int, swept: Swept) -> None:
        store = await self._holders.store(held)
        swept.unfinished += await store.clear(before_us)
        after = ""
        while page := await store.page(after, BATCH):
            after = page[-1].name
            old = [info for info in page if info.modified_us < before_us and _began(info) < before_us]
            for owner, infos in groupby(old, key=lambda info: info.name.partition("/")[0]):
                await self._delete_unknown(held, UUID(owner), [one.name for one in infos], swept)

    async def _delete_unknown(self, held: str, owner: UUID, names: list[str], swept: Swept) -> None:
        before = await self._catalogue.routing()
        uploads = {UUID(name.partition("/")[2]): name for name in names}
        known = await self._catalogue.known(owner, list(uploads))
        if (await self._catalogue.routing()).epoch != before.epoch:
            return  # the rows that were asked may have been those of a side that rules no more
        unknown = [name for upload, name in uploads.items() if upload not in known]
        if unknown:
            await (await self._holders.store(held)).delete(unknown)
            swept.orphans += len(unknown)

    async def _try(self, step: Awaitable[object]) -> None:
        try:
            await step
        except (Closed, LostLease):
            return
        except DatalayerError as error:
            self.errors += 1
            log.debug("media are not swept: %s", error.message)


def _began(info: ObjectInfo) -> int:
    return id_time_us(UUID(info.name.partition("/")[2]))
