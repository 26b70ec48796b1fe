"""The lease under which a process may read while a cut-over is near."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from datalayer.control.base import LEASE_DRIFT_S, LEASE_S
from datalayer.errors import LeaseExpired

if TYPE_CHECKING:
    from datalayer.clock import Clock, Deadline


class Lease:
    """Counted by the boot-time clock from before the renewal was sent, so that sleep and SIGSTOP use it up."""

    __slots__ = ("_clock", "_renewed", "until")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._renewed = asyncio.Event()
        self.until = 0.0

    @property
    def alive(self) -> bool:
        """Whether reading is safe now."""
        return self._clock.boottime() < self.until

    def renewed(self, sent_at: float) -> None:
        """A renewal sent at this boot time was granted."""
        self.until = sent_at + LEASE_S - LEASE_DRIFT_S
        self._renewed.set()
        self._renewed = asyncio.Event()

    async def wait(self, deadline: Deadline) -> None:
        """Return once the lease lives; LeaseExpired when the deadline passes first."""
        while not self.alive:
            renewed = self._renewed
            try:
                async with asyncio.timeout(max(deadline.remaining(), 0.0)):
                    await renewed.wait()
            except TimeoutError:
                raise LeaseExpired(hint="the control store did not answer; the call may be repeated") from None
