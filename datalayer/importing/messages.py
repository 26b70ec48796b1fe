"""The importer: reads, looks what is there, appends what is not, counts.

It goes through the router like every application, so it may run during a migration. Each batch is looked up first: a
second import only reads. After a crash or a stop the same import goes on: what is stored is found and left alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from datalayer.clock import Deadline
from datalayer.domains.messages import Append, same_append
from datalayer.errors import AlreadyExists, DatalayerError, InvalidArgument, NotFinished
from datalayer.importing.files import BadLine, LineFile
from datalayer.importing.lines import message_of
from datalayer.importing.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from uuid import UUID

    from datalayer.clock import Clock
    from datalayer.layer import DataLayer
    from datalayer.stores.base import MessageReads
    from datalayer.types import Message

BATCH_LINES: Final = 500
BATCH_BYTES: Final = 4 << 20
BAD_KEPT: Final = 1000
CALL_S: Final = 30.0
PATIENCE_S: Final = 60.0
_ESCAPED: Final = 6
"""A byte of text is at most six of JSON."""
_LINE_ROOM: Final = 1 << 16


class BadLines(DatalayerError):
    """Lines of the file cannot be imported."""

    def __init__(self, bad: Sequence[BadLine], count: int) -> None:
        super().__init__(
            f"{count} line(s) cannot be imported, first {bad[0]}; nothing was imported",
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
    """Lines whose id is stored with another body or sender; what was stored first stays."""
    differing_count: int
    digest: str
    """Of the distinct messages as they are stored now; the same on every store and after every import of the file."""
    ignored_keys: tuple[str, ...]
    complete: bool
    seconds: float


@dataclass(slots=True)
class _Found:
    """What has been read so far."""

    lines: int = 0
    good: int = 0
    new: int = 0
    bad: list[BadLine] = field(default_factory=list)
    bad_count: int = 0
    differing: list[int] = field(default_factory=list)
    differing_count: int = 0
    ignored: set[str] = field(default_factory=set)

    def note(self, batch: _Batch) -> None:
        self.lines += batch.read
        self.good += len(batch.lines)
        self.ignored |= batch.ignored
        for bad in batch.bad:
            self.note_bad(bad)

    def note_bad(self, bad: BadLine) -> None:
        self.bad_count += 1
        if len(self.bad) < BAD_KEPT:
            self.bad.append(bad)

    def note_differing(self, number: int) -> None:
        self.differing_count += 1
        if len(self.differing) < BAD_KEPT:
            self.differing.append(number)


class _Line(NamedTuple):
    number: int
    append: Append


@dataclass(slots=True)
class _Batch:
    """Lines read together; made in a thread, and nobody else's until it is handed over."""

    read: int
    lines: list[_Line] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    ignored: frozenset[str] = frozenset()


def _silent(_: Progress) -> None: ...


async def import_messages(
    layer: DataLayer,
    path: Path,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    progress: Callable[[Progress], None] = _silent,
) -> ImportReport:
    """Store the messages of a file of JSON lines, plain or gzipped: conversation, sender, sent_at, body, id if any.

    ``stop`` checks the whole file first and stores nothing unless every line is good (BadLines); ``skip`` leaves bad
    lines out and names them. A line whose message is stored already changes nothing, also where its body differs: what
    was stored first stays, and the report names the line. ``progress`` is called between batches and may raise to stop the import there.

    Idempotent; memory is bounded whatever the size of the file. Raises NotFinished when the store does not answer for
    a minute: the same import goes on. InvalidArgument when the file cannot be opened.
    """
    importer = _Importer(layer, path, progress)
    if on_error == "stop":
        await importer.check()
    return await importer.store()


class _Importer:
    def __init__(self, layer: DataLayer, path: Path, progress: Callable[[Progress], None]) -> None:
        self._router = layer.router("messages")
        self._clock: Clock = layer.clock
        self._body_max = layer.settings.limits.body_max_bytes
        self._path = path
        self._progress = progress
        self._began = self._clock.monotonic()

    async def check(self) -> None:
        """Read every line and store nothing; BadLines when one is bad."""
        found = _Found()
        with self._open() as file:
            while (batch := await self._next(file)) is not None:
                found.note(batch)
                self._tell(file, found, checking=True)
        if found.bad:
            raise BadLines(found.bad, found.bad_count)

    async def store(self) -> ImportReport:
        """Read every line again and store what is not there."""
        found = _Found()
        with self._open() as file, Tally() as tally:
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

    def _open(self) -> LineFile:
        try:
            return LineFile(self._path, self._body_max * _ESCAPED + _LINE_ROOM)
        except OSError as error:
            raise InvalidArgument(f"{self._path} cannot be read: {error.strerror}") from None

    async def _next(self, file: LineFile) -> _Batch | None:
        return await asyncio.to_thread(self._parse, file)

    def _parse(self, file: LineFile) -> _Batch | None:
        """The next batch; None at the end of the file."""
        raw = file.batch(BATCH_LINES, BATCH_BYTES)
        if not raw:
            return None
        now_us = self._clock.now_us()
        # The place where a file breaks off is named like a line, and is none.
        batch = _Batch(sum(item.number <= file.number for item in raw))
        for item in raw:
            if isinstance(item, BadLine):
                batch.bad.append(item)
                continue
            try:
                append, ignored = message_of(item.raw, body_max_bytes=self._body_max, now_us=now_us)
            except InvalidArgument as error:
                batch.bad.append(BadLine(item.number, error.message))
                continue
            batch.lines.append(_Line(item.number, append))
            batch.ignored |= ignored
        return batch

    async def _store_batch(self, lines: list[_Line], found: _Found, tally: Tally) -> None:
        """Look all of them up, append those that are not there. One message is one write, whatever the line count."""
        first: dict[tuple[UUID, UUID], _Line] = {}
        for line in lines:
            first.setdefault((line.append.conversation_id, line.append.id), line)
        at = lines[0].number if lines else 0
        stored = await self._persist(partial(self._look_up, list(first)), at)
        missing = [line for key, line in first.items() if key not in stored]
        appends = (self._persist(partial(self._append, line.append), line.number) for line in missing)
        appended = await asyncio.gather(*appends, return_exceptions=True)
        for line, message in zip(missing, appended, strict=True):
            if isinstance(message, BaseException):
                raise message
            stored[line.append.conversation_id, line.append.id] = message
        found.new += len(missing)
        for line in lines:
            message = stored[line.append.conversation_id, line.append.id]
            tally.add(message)
            if not message.deleted and not same_append(line.append, message):
                found.note_differing(line.number)

    async def _look_up(self, keys: list[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], Message]:
        if not keys:
            return {}

        def call(store: MessageReads, deadline: Deadline) -> Any:
            return store.get_many(keys, deadline)

        routings = list(dict.fromkeys(conversation.bytes for conversation, _ in keys))
        found: list[Message] = await self._router.read(routings, call, Deadline(self._clock, CALL_S))
        return {(message.conversation_id, message.id): message for message in found}

    async def _append(self, append: Append) -> Message:
        try:
            message: Message = await self._router.write(append, Deadline(self._clock, CALL_S))
        except AlreadyExists:
            # Somebody else stored it since the look-up, with another body.
            key = (append.conversation_id, append.id)
            return (await self._look_up([key]))[key]
        return message

    async def _persist(self, call: Callable[[], Awaitable[Any]], line: int) -> Any:
        """Repeat what fails retryably: the id makes a repeat the same write."""
        until = self._clock.monotonic() + PATIENCE_S
        pause_s = 0.05
        while True:
            try:
                return await call()
            except DatalayerError as error:
                if not error.retryable:
                    raise
                if self._clock.monotonic() >= until:
                    raise NotFinished(f"the import stopped near line {line}: {error.message}") from error
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.4)

    def _tell(self, file: LineFile, found: _Found, *, checking: bool) -> None:
        seconds = self._clock.monotonic() - self._began
        self._progress(Progress(checking, found.lines, found.new, file.position, file.size, seconds))

    def _report(self, found: _Found, distinct: int, digest: str, *, complete: bool) -> ImportReport:
        return ImportReport(
            lines=found.lines,
            distinct=distinct,
            new=found.new,
            already=distinct - found.new,
            repeated=found.good - distinct,
            bad=tuple(sorted(found.bad, key=lambda bad: bad.number)),
            bad_count=found.bad_count,
            differing=tuple(found.differing),
            differing_count=found.differing_count,
            digest=digest,
            ignored_keys=tuple(sorted(found.ignored)),
            complete=complete,
            seconds=round(self._clock.monotonic() - self._began, 3),
        )
