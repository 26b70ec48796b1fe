"""Backfill: scan the source page by page, apply to the target, checkpoint after its acknowledgement.

Ranges are planned once, leased with fencing tokens to any number of workers, and each page is read while the one
before it is being applied. Redoing a page is harmless. Memory is bounded by two pages a worker: the page size follows
the bytes of the page before.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from datalayer.control.base import QuarantineRow
from datalayer.domains.record import dead
from datalayer.domains.registry import KINDS
from datalayer.errors import Quarantine
from datalayer.migrators.leased import CHUNK_TTL_S, work_through
from datalayer.routing.pages import PAGE_ROWS_FIRST, next_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from datalayer.clock import Clock
    from datalayer.control.base import Chunk, Control
    from datalayer.domains.record import Record
    from datalayer.migrators.options import Failpoints
    from datalayer.migrators.throttle import RateCap
    from datalayer.stores.base import Guard, Port, ScanPage

CHECKPOINT_EVERY_S: Final = 0.5
RANGES_PER_WORKER: Final = 8


@dataclass(slots=True)
class Copied:
    """What a backfill has done so far in this process."""

    rows: int = 0
    quarantined: int = 0


class Backfill:
    """Copies everything that one side holds now into the other."""

    def __init__(
        self,
        source: Port,
        target: Guard,
        control: Control,
        clock: Clock,
        *,
        migration_id: str,
        run_name: str,
        holder: str,
        cap: RateCap,
        failpoints: Failpoints,
        progress: Callable[[int], None],
    ) -> None:
        self._source = source
        self._target = target
        self._control = control
        self._clock = clock
        self._migration = migration_id
        self._holder = holder
        self._cap = cap
        self._failpoints = failpoints
        self._progress = progress
        self.run_name = run_name
        self.copied = Copied()
        self._page_rows = PAGE_ROWS_FIRST
        """What fitted last: a range goes on with it instead of beginning small again."""

    async def plan(self, workers: int) -> int:
        """Plan the ranges once, after the journal is on; how many rows were copied before this process began."""
        chunks = await self._control.chunks(self.run_name)
        if not chunks:
            ranges = await self._source.plan_scan(workers * RANGES_PER_WORKER)
            await self._control.plan_chunks(self.run_name, ranges)
        return sum(chunk.rows for chunk in chunks)

    async def run(self, workers: int) -> None:
        """Copy until every range is done. Raises what a store raises; running it again goes on."""
        await work_through(
            self._control, self._clock, self.run_name, holder=self._holder, workers=workers, work=self._copy
        )

    async def _copy(self, chunk: Chunk) -> None:
        limit = self._cap.bounded(self._page_rows)
        saved_at = self._clock.monotonic()
        coming = asyncio.ensure_future(self._source.scan(chunk.range, chunk.after, limit))
        try:
            while True:
                page: ScanPage = await coming
                limit = self._cap.bounded(next_limit(limit, page.records))
                if not page.done:
                    # Of a full page: the last few rows of a range say little.
                    self._page_rows = limit
                    coming = asyncio.ensure_future(self._source.scan(chunk.range, page.after, limit))
                await self._cap.take(len(page.records))
                await self._apply(page.records)
                await self._failpoints.reach("backfill.page")
                chunk = replace(chunk, after=page.after, rows=chunk.rows + len(page.records), done=page.done)
                now = self._clock.monotonic()
                if page.done or now - saved_at >= CHECKPOINT_EVERY_S:
                    await self._control.checkpoint(chunk, CHUNK_TTL_S)
                    saved_at = now
                if page.done:
                    return
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    async def _apply(self, records: list[Record]) -> None:
        if records and KINDS[records[0].kind].expiry is not None:
            now_us = self._clock.now_us()
            records = [record for record in records if not dead(KINDS[record.kind], record, now_us)]
        if not records:
            return
        try:
            await self._target.apply(records)
        except Quarantine as error:
            now = self._clock.now_us()
            rows = [
                QuarantineRow(r.kind, r.key, r.version, error.rejected[r.ident], now)
                for r in records
                if r.ident in error.rejected
            ]
            await self._control.quarantine(self._migration, rows)
            self.copied.quarantined += len(rows)
        self.copied.rows += len(records)
        self._progress(self.copied.rows)


def payload_of(bins: dict[int, tuple[int, int]]) -> str:
    """Digests by bin as the text of a chunk's payload."""
    return json.dumps({str(b): [count, format(total, "x")] for b, (count, total) in bins.items()})


def bins_of(payload: str) -> dict[int, tuple[int, int]]:
    """What ``payload_of`` wrote."""
    return {int(b): (count, int(total, 16)) for b, (count, total) in json.loads(payload or "{}").items()}
