"""What every import shares: a file read in batches, what was found in it, and how far it is.

An import passes over the file once or twice: ``check`` reads every line and stores nothing, ``store`` reads again and
stores what is not there. Both read the next batch while this one is worked on; memory is bounded by two batches.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from datalayer.errors import DatalayerError, InvalidArgument
from datalayer.importing.files import BadLine, Lines, open_lines
from datalayer.importing.tally import Tally
from datalayer.routing.patience import persist

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from datalayer.clock import Clock

BATCH_BYTES: Final = 4 << 20
BAD_KEPT: Final = 1000
CALL_S: Final = 30.0
PATIENCE_S: Final = 60.0
T = TypeVar("T")


class BadLines(DatalayerError):
    """Lines of the file cannot be imported."""

    def __init__(self, bad: Sequence[BadLine], count: int) -> None:
        super().__init__(
            f"{count} {bad[0].unit}(s) cannot be imported, first {bad[0]}; nothing was imported",
            hint="mend the file, or leave such lines out with --on-error skip",
        )
        self.bad = tuple(bad)
        self.count = count


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is. ``checking``: lines are looked at and nothing is stored yet."""

    checking: bool
    lines: int
    new: int
    position_bytes: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did. ``complete``: the file was read to its end."""

    lines: int
    distinct: int
    new: int
    already: int
    repeated: int
    bad: tuple[BadLine, ...]
    bad_count: int
    differing: tuple[int, ...]
    """Lines whose id is stored with other content; what was stored first stays."""
    differing_count: int
    digest: str
    """Of the distinct records as they are stored now; the same on every store and after every import of the file."""
    ignored_keys: tuple[str, ...]
    complete: bool
    seconds: float


@dataclass(slots=True)
class Found:
    """What has been read so far."""

    lines: int = 0
    good: int = 0
    new: int = 0
    bad: list[BadLine] = field(default_factory=list)
    bad_count: int = 0
    differing: list[int] = field(default_factory=list)
    differing_count: int = 0
    ignored: set[str] = field(default_factory=set)

    def note(self, batch: Batch[Any]) -> None:
        """Count the lines of a batch."""
        self.lines += batch.read
        self.good += len(batch.lines)
        self.ignored |= batch.ignored
        for bad in batch.bad:
            self.note_bad(bad)

    def note_bad(self, bad: BadLine) -> None:
        """Count a line that cannot be imported; the first ones are kept."""
        self.bad_count += 1
        if len(self.bad) < BAD_KEPT:
            self.bad.append(bad)

    def note_differing(self, number: int) -> None:
        """Count a line whose id is stored with other content."""
        self.differing_count += 1
        if len(self.differing) < BAD_KEPT:
            self.differing.append(number)


class Line(NamedTuple, Generic[T]):
    """A good line and what it means."""

    number: int
    item: T


@dataclass(slots=True)
class Batch(Generic[T]):
    """Lines read together; made in a thread, and nobody else's until it is handed over."""

    read: int
    lines: list[Line[T]] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    ignored: frozenset[str] = frozenset()


def silent(_: Progress) -> None:
    """Report to nobody."""


class FileImporter(Generic[T]):
    """One import of one file; what a line is and how lines are stored is the affair of each kind of import."""

    batch_lines = 500

    def __init__(self, clock: Clock, path: Path, line_max_bytes: int, progress: Callable[[Progress], None]) -> None:
        self._clock = clock
        self._path = path
        self._line_max = line_max_bytes
        self._progress = progress
        self._began = clock.monotonic()
        self._unit = "line"

    @abstractmethod
    def _parse_line(self, raw: bytes, now_us: int) -> tuple[T, frozenset[str]]:
        """What a line means, and the keys of it that are not imported; InvalidArgument in one sentence."""

    @abstractmethod
    async def _store_batch(self, lines: list[Line[T]], found: Found, tally: Tally) -> None:
        """Look all of them up, store those that are not there, tally what is stored."""

    async def _check_batch(self, lines: list[Line[T]], found: Found) -> None:
        """Find good lines that cannot be stored all the same."""

    async def check(self) -> None:
        """Read every line and store nothing; BadLines when one is bad."""
        found = Found()
        with self._opened() as file:
            while (batch := await self._next(file)) is not None:
                found.note(batch)
                await self._check_batch(batch.lines, found)
                self._tell(file, found, checking=True)
        await self._check_end(found)
        if found.bad:
            raise BadLines(self._named(found), found.bad_count)

    async def _check_end(self, found: Found) -> None:
        """The same for what shows only when all lines have been read."""

    async def store(self) -> ImportReport:
        """Read every line again and store what is not there."""
        found = Found()
        with self._opened() as file, Tally() as tally:
            coming = asyncio.create_task(self._next(file))
            try:
                while (batch := await coming) is not None:
                    # The next batch is read while this one is stored.
                    coming = asyncio.create_task(self._next(file))
                    found.note(batch)
                    await self._store_batch(batch.lines, found, tally)
                    self._tell(file, found, checking=False)
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            distinct, digest = await asyncio.to_thread(tally.total)
            return self._report(found, distinct, digest, complete=file.broken is None)

    def _opened(self) -> Lines:
        file = self._open()
        self._unit = file.unit
        return file

    def _named(self, found: Found) -> tuple[BadLine, ...]:
        """What was found bad, in the order of the file."""
        return tuple(replace(bad, unit=self._unit) for bad in sorted(found.bad, key=lambda bad: bad.number))

    def _open(self) -> Lines:
        return open_lines(self._path, self._line_max)

    async def _next(self, file: Lines) -> Batch[T] | None:
        return await asyncio.to_thread(self._parse, file)

    def _parse(self, file: Lines) -> Batch[T] | None:
        """The next batch; None at the end of the file."""
        raw = file.batch(self.batch_lines, BATCH_BYTES)
        if not raw:
            return None
        now_us = self._clock.now_us()
        # The place where a file breaks off is named like a line, and is none.
        batch: Batch[T] = Batch(sum(item.number <= file.number for item in raw))
        for item in raw:
            if isinstance(item, BadLine):
                batch.bad.append(item)
                continue
            try:
                meant, ignored = self._parse_line(item.raw, now_us)
            except InvalidArgument as error:
                batch.bad.append(BadLine(item.number, error.message))
                continue
            batch.lines.append(Line(item.number, meant))
            batch.ignored |= ignored
        return batch

    async def _persist(self, call: Callable[[], Awaitable[Any]], line: int) -> Any:
        """Repeat what fails retryably: the id makes a repeat the same write."""
        return await persist(self._clock, call, f"the import stopped near line {line}", PATIENCE_S)

    def _tell(self, file: Lines, found: Found, *, checking: bool) -> None:
        seconds = self._clock.monotonic() - self._began
        self._progress(Progress(checking, found.lines, found.new, file.position, file.size, seconds))

    def _report(self, found: Found, distinct: int, digest: str, *, complete: bool) -> ImportReport:
        return ImportReport(
            lines=found.lines,
            distinct=distinct,
            new=found.new,
            already=distinct - found.new,
            repeated=found.good - distinct,
            bad=self._named(found),
            bad_count=found.bad_count,
            differing=tuple(found.differing),
            differing_count=found.differing_count,
            digest=digest,
            ignored_keys=tuple(sorted(found.ignored)),
            complete=complete,
            seconds=round(self._clock.monotonic() - self._began, 3),
        )
