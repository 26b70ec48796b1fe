"""Eager apply: bring acknowledged writes to the mirror soon, so that the journal stays short.

An optimisation and nothing else: correctness rests on the journal alone. Whatever goes wrong here, the journal keeps
the key, the caller never waits and never sees it (the one place where such errors are swallowed; they are counted).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from datalayer.errors import DatalayerError

if TYPE_CHECKING:
    from datalayer.domains.record import Record
    from datalayer.stores.base import Guard, Journal

QUEUE_MAX: Final = 2000
BATCH_MAX: Final = 200
APPLY_TIMEOUT_S: Final = 0.25
PAUSE_S: Final = 1.0


class EagerApplier:
    """A bounded queue in front of the mirror; one batch in flight."""

    def __init__(self, mirror: Guard, journal: Journal) -> None:
        self._mirror = mirror
        self._journal = journal
        self._queue: deque[Record] = deque()
        self._wake = asyncio.Event()
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.applied = 0
        self.failed = 0

    def offer(self, records: tuple[Record, ...]) -> None:
        """Queue the records of an acknowledged write; dropped when the queue is full (the journal has them)."""
        if len(self._queue) >= QUEUE_MAX or self._stopped.is_set():
            return
        self._queue.extend(records)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="datalayer-eager-apply")

    async def close(self) -> None:
        """Stop; what is queued stays in the journal."""
        self._stopped.set()
        self._wake.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self._stopped.is_set():
            await self._wake.wait()
            self._wake.clear()
            while self._queue and not self._stopped.is_set():
                batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
                if not await self._apply(batch):
                    self._queue.clear()
                    await self._pause()

    async def _apply(self, batch: list[Record]) -> bool:
        try:
            async with asyncio.timeout(APPLY_TIMEOUT_S):
                await self._mirror.apply(batch)
            await self._journal.settle(batch)
        except (DatalayerError, TimeoutError):
            self.failed += len(batch)
            return False
        self.applied += len(batch)
        return True

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(PAUSE_S):
                await self._stopped.wait()
        except TimeoutError:
            return
