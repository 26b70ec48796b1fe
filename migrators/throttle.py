"""How fast a backfill may go: the operator's cap, changeable while it runs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import DatalayerError, NotFinished

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from datalayer.clock import Clock
    from datalayer.control.base import Control

FOLLOW_S: Final = 0.4


class RateCap:
    """At most so many rows a second, over all workers of this process. Rows are paid for after they were granted."""

    def __init__(self, clock: Clock, rows_per_s: float | None) -> None:
        self._clock = clock
        self._rows_per_s = rows_per_s
        self._owed = 0.0
        self._at = clock.monotonic()
        self._changed = asyncio.Event()
        self._paused: str | None = None

    @property
    def rows_per_s(self) -> float | None:
        """The cap in force, or None."""
        return self._rows_per_s

    def bounded(self, rows: int) -> int:
        """At most ``rows``, so few that the pages of 64 workers, one after the other, stay within a lease."""
        return rows if self._rows_per_s is None else max(1, min(rows, int(self._rows_per_s / 16)))

    def change(self, rows_per_s: float | None) -> None:
        """Another cap from now on, also for those who wait."""
        if rows_per_s == self._rows_per_s:
            return
        self._owed = self._left(self._clock.monotonic())
        self._rows_per_s = rows_per_s
        self._wake()

    def pause(self, migration_id: str) -> None:
        """Let nobody through any more: ``take`` raises NotFinished."""
        self._paused = migration_id
        self._wake()

    async def take(self, rows: int) -> None:
        """Return when ``rows`` more may be applied. NotFinished once the migration is paused."""
        while True:
            if self._paused is not None:
                raise NotFinished(f"{self._paused} is paused", hint="datalayer migrations resume")
            now = self._clock.monotonic()
            owed = self._left(now)
            if owed <= 0 or self._rows_per_s is None:
                self._owed, self._at = float(rows), now
                return
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(owed / self._rows_per_s):
                    await changed.wait()

    def _left(self, now: float) -> float:
        """The rows that are not paid for yet."""
        if self._rows_per_s is not None:
            self._owed = max(0.0, self._owed - (now - self._at) * self._rows_per_s)
        else:
            self._owed = 0.0
        self._at = now
        return self._owed

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


@contextlib.asynccontextmanager
async def following(control: Control, migration_id: str, domain: str, cap: RateCap) -> AsyncIterator[None]:
    """Inside the block the cap is what the control store keeps with the migration, and so is pausing."""
    task = asyncio.create_task(_follow(control, migration_id, domain, cap), name="datalayer-throttle")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _follow(control: Control, migration_id: str, domain: str, cap: RateCap) -> None:
    while True:
        await asyncio.sleep(FOLLOW_S)
        try:
            found = await control.migrations(domain)
        except DatalayerError:
            # The operator's last word stays in force; the backfill itself notices that the control store is away.
            continue
        kept = next(migration for migration in found if migration.id == migration_id)
        cap.change(kept_rate(kept.options))
        if kept.paused:
            cap.pause(migration_id)


def kept_rate(options: Mapping[str, Any]) -> float | None:
    """The cap among the options kept with a migration."""
    rate = options.get("rate_rows_per_s")
    return None if rate is None else float(rate)
