"""The purger: takes out sessions that expired long ago, where the store does not drop them by itself.

One process of the fleet does it at a time, under a lease: for economy, not for correctness, because whoever reads
judges a session by its own expiry. Only at rest: the guard of a migration would take it for a hard delete by a foreign
program, and enter a tombstone. A migration that begins meanwhile meets a few such, of sessions that nobody can use.

Errors are counted; what failed is left to the next round (the one place of this component that swallows them).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from datalayer.domains.record import EXPIRY_GRACE_US
from datalayer.errors import Closed, DatalayerError, LostLease

if TYPE_CHECKING:
    from datalayer.clock import Clock
    from datalayer.control.base import Control
    from datalayer.routing.router import Jitter, Router

log = logging.getLogger("datalayer.purger")
LEASE: Final = "sessions/purge"
LEASE_TTL_S: Final = 180.0
ROUND_S: Final = 60.0
PAGE: Final = 1000
PAGES_MAX: Final = 200
"""Of one round; the next one goes on."""


class Purger:
    """The purge of one open DataLayer."""

    def __init__(self, router: Router, control: Control, clock: Clock, process_id: str, jitter: Jitter) -> None:
        self._router = router
        self._control = control
        self._clock = clock
        self._process_id = process_id
        self._jitter = jitter
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.errors = 0
        self.taken = 0
        """How many records this process has taken out."""

    def start(self) -> None:
        """Purge from now on, until ``stop``."""
        self._task = asyncio.create_task(self._forever(), name="datalayer-purger")

    async def stop(self) -> None:
        """Purge no more. Idempotent."""
        self._stopped.set()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _forever(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_S * (0.75 + 0.5 * self._jitter())):
                    await self._stopped.wait()
            try:
                await self._leased()
            except (Closed, LostLease):
                continue
            except DatalayerError as error:
                self.errors += 1
                log.debug("expired sessions stay for now: %s", error.message)

    async def _leased(self) -> None:
        if self._stopped.is_set() or not self._router.serves:
            return
        holder = await self._control.holder(LEASE)
        if holder is not None and holder[0] != self._process_id:
            return
        if await self._control.take(LEASE, self._process_id, LEASE_TTL_S) is not None:
            # kept between rounds, so that one process goes on: it runs out by itself when that one is gone
            await self.purge()

    async def purge(self) -> int:
        """Take out what may go now, a bounded number of pages; how many records there were."""
        taken = 0
        for _ in range(PAGES_MAX):
            route = self._router.route
            if not route.routing.at_rest:
                break
            before_us = self._clock.now_us() - EXPIRY_GRACE_US
            looked, gone = await route.authority.purge(before_us, PAGE)
            taken += gone
            # an index of which little is to go is looked at again later
            if looked < PAGE or gone * 10 < looked:
                break
        self.taken += taken
        return taken
