"""The exporter: scans the store that serves a domain, page by page, into a file. Memory is bounded by two pages.

Each record is written as it was at some moment of the export; an export under traffic is no picture of one moment. A
domain that begins to be served from elsewhere meanwhile ends it: what had been read is thrown away.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from datalayer.domains.record import DIGEST_MODULUS, digest
from datalayer.domains.users import stands_for_nothing
from datalayer.errors import NotFinished, PreconditionFailed, StaleRoute
from datalayer.exporting.media import MediaBytes
from datalayer.exporting.objects import ObjectFolder
from datalayer.exporting.shapes import shapes_of, stored_in
from datalayer.exporting.sink import PartFile, open_sink
from datalayer.routing.pages import PAGE_ROWS_FIRST, next_limit
from datalayer.routing.patience import persist
from datalayer.routing.shards import base_domain
from datalayer.stores.base import Regional

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from pathlib import Path

    from datalayer.domains.record import Record
    from datalayer.exporting.sink import Sink
    from datalayer.layer import DataLayer
    from datalayer.routing.route import Place
    from datalayer.stores.base import Port, ScanPage

RANGES: Final = 8


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """How far an export is; ``estimate`` is the store's own guess of all."""

    records: int
    estimate: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What a file holds. ``digest`` is that of an import of it."""

    domain: str
    path: str
    records: int
    deleted: int
    """How many of them are tombstones."""
    digest: str
    size_bytes: int
    seconds: float
    objects: int = 0
    """Of media: how many contents this run wrote into the folder beside the file; others were there already."""
    objects_bytes: int = 0


def silent(_: ExportProgress) -> None:
    """Report to nobody."""


async def export_domain(
    layer: DataLayer,
    domain: str,
    path: Path,
    *,
    include_deleted: bool = False,
    overwrite: bool = False,
    progress: Callable[[ExportProgress], None] = silent,
) -> ExportReport:
    """Write what is stored of a domain to a file that ends in .jsonl, .jsonl.gz or .parquet.

    The file has its name only when it is whole and on the disk; a run that was killed leaves FILE.part, and the next
    one begins anew. The bytes of media lie in the folder FILE.objects, each content under its hash; what a killed run
    has left of them is used. Users who move to another home region meanwhile are there once. ``progress`` is called
    between pages and may raise to stop there. Raises InvalidArgument, PreconditionFailed (the file exists, or another
    export writes it), MissingDependencyError, Corrupt (bytes of media that no store has any more), NotFinished (the
    store did not answer for a minute, the domain moved, or the disk refuses).
    """
    exporter = _Exporter(layer, domain, progress, include_deleted=include_deleted)
    return await exporter.run(path, overwrite=overwrite)


class _Exporter:
    def __init__(
        self, layer: DataLayer, domain: str, progress: Callable[[ExportProgress], None], *, include_deleted: bool
    ) -> None:
        self._shapes = shapes_of(domain)
        self._layer = layer
        self._clock = layer.clock
        self._domain = domain
        self._progress = progress
        self._include_deleted = include_deleted
        self._began = layer.clock.monotonic()
        self._records = self._deleted = self._digest = 0
        self._bytes: MediaBytes | None = None

    async def run(self, path: Path, *, overwrite: bool) -> ExportReport:
        places = self._layer.places
        at = await self._lies()
        stored_as = stored_in(self._domain)
        place = at.get(stored_as)
        if place is None:
            raise PreconditionFailed(f"{self._domain} has no place: nothing was ever stored")
        await places.ensure_open(place)
        store: Port = places.store(stored_as, place)
        if stored_as != self._domain:
            self._bytes = MediaBytes(self._layer, ObjectFolder(path))
        with PartFile(path, overwrite=overwrite) as file:
            with file.writing():
                sink = await asyncio.to_thread(open_sink, file, self._domain, include_deleted=self._include_deleted)
            await self._scan(store, sink, file)
            if await self._lies() != at:
                raise self._moved()
            digest_hex = format(self._digest, "032x")
            with file.writing():
                await asyncio.to_thread(sink.finish, self._records, digest_hex)
        return ExportReport(
            self._domain,
            str(path),
            self._records,
            self._deleted,
            digest_hex,
            await asyncio.to_thread(os.path.getsize, path),
            round(self._clock.monotonic() - self._began, 3),
            *((0, 0) if self._bytes is None else (self._bytes.objects, self._bytes.size_bytes)),
        )

    async def _lies(self) -> Mapping[str, Place]:
        """Where the domain and its slot groups are served from."""
        _, routings = await self._layer.places.control.routings()
        return {
            name: routing.authority
            for name, routing in routings.items()
            if base_domain(name) == stored_in(self._domain)
        }

    async def _scan(self, store: Port, sink: Sink, file: PartFile) -> None:
        estimate = await self._persist(store.estimate)
        if self._bytes is not None:
            estimate //= 2  # for each item there is an object
        limit = PAGE_ROWS_FIRST
        scan = store.scan_homes if isinstance(store, Regional) else store.scan
        for range_ in await self._persist(lambda: store.plan_scan(RANGES)):
            after: str | None = None
            done = False
            while not done:
                page: ScanPage = await self._persist(lambda r=range_, a=after, n=limit: scan(r, a, n))  # type: ignore[misc]
                limit, after, done = next_limit(limit, page.records), page.after, page.done
                async for records in self._parts(page.records):
                    with file.writing():
                        await asyncio.to_thread(self._write, records, sink)
                    self._progress(ExportProgress(self._records, estimate, self._clock.monotonic() - self._began))

    async def _parts(self, records: list[Record]) -> AsyncGenerator[list[Record], None]:
        """What is written of a page, in parts: of media those whose bytes lie in the folder then."""
        wanted = self._wanted(records)
        if self._bytes is None:
            yield wanted
            return
        async with aclosing(self._bytes.bring(wanted)) as parts:
            async for part in parts:
                yield self._wanted(part)

    def _wanted(self, records: list[Record]) -> list[Record]:
        return [
            record
            for record in records
            if record.kind in self._shapes
            and (not record.deleted or (self._include_deleted and stands_for_nothing(record)))
        ]

    def _write(self, records: list[Record], sink: Sink) -> None:
        for record in records:
            shape = self._shapes[record.kind]
            self._records += 1
            self._deleted += record.deleted
            self._digest = (self._digest + digest(shape.kind, shape.normal(record))) % DIGEST_MODULUS
        sink.write(records)

    async def _persist(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Repeat what fails retryably for a minute."""
        try:
            return await persist(self._clock, call, f"the export stopped after {self._records} records")
        except StaleRoute:
            raise self._moved() from None

    def _moved(self) -> NotFinished:
        return NotFinished(
            f"{self._domain} moved while it was exported; what had been read is thrown away",
            hint="run it again when the move is over",
        )
