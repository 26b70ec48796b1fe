"""The importer of exported media: the bytes first, hashed on their way, then the item exactly as it was.

It goes through the routed write path like every application, so it may run while media or their catalogue move. The bytes
of an item lie in the folder beside the file and are needed only where the item is not stored yet; those that its owner has
already are not stored again. A line whose bytes are missing or wrong is a bad line, and leaves nothing. After a crash or a
stop the same import goes on.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, cast
from uuid import UUID

from datalayer.domains.catalogue import Restore
from datalayer.errors import Conflict, InvalidArgument, NotFound
from datalayer.exporting.objects import ObjectFolder
from datalayer.ids import IdSource
from datalayer.importing.files import BadLine
from datalayer.importing.reading import Found, ImportReport, Line, Progress, silent
from datalayer.importing.records import RecordImporter
from datalayer.layer import limits_of
from datalayer.repositories.intake import Arrived, Intake, check_size, check_type
from datalayer.routing.catalogue import Catalogue
from datalayer.routing.together import each

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from datalayer.domains.record import Key, Record
    from datalayer.layer import DataLayer

BATCH_LINES: Final = 64


async def import_media(
    layer: DataLayer,
    path: Path,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    progress: Callable[[Progress], None] = silent,
) -> ImportReport:
    """Store the items of an export of media, with their bytes, which lie in the folder FILE.objects.

    ``stop`` reads the file, and the bytes of every item that is not stored yet, first and stores nothing unless all of
    them are right (BadLines); ``skip`` leaves out what is bad. Idempotent; memory is bounded whatever the sizes. Raises
    as ``import_messages``.
    """
    importer = MediaImporter(layer, path, progress)
    if on_error == "stop":
        await importer.check()
    return await importer.store()


class MediaImporter(RecordImporter):
    """Items, with their bytes."""

    batch_lines = BATCH_LINES

    def __init__(self, layer: DataLayer, path: Path, progress: Callable[[Progress], None]) -> None:
        super().__init__(layer, "media", path, progress)
        self._folder = ObjectFolder(path)
        self._limits = limits_of(layer.settings)
        self._catalogue = Catalogue(layer.places)
        routers = (layer.router("catalogue"), layer.router("media"))
        self._intake = Intake(routers, layer.places, IdSource(layer.clock), self._limits)

    def _parse_line(self, raw: bytes, now_us: int) -> tuple[Record, frozenset[str]]:
        record, ignored = super()._parse_line(raw, now_us)
        if not record.deleted:
            if check_type(record.fields[4], self._limits) != record.fields[4]:
                raise InvalidArgument("content_type begins or ends with a space")
            check_size(cast("int", record.fields[3]), self._limits)
        return record, ignored

    async def _check_batch(self, lines: list[Line[Record]], found: Found) -> None:
        await super()._check_batch(lines, found)
        stored = await self._fetch([line.item.ident for line in lines], lines[0].number if lines else 0)
        missing = [line for line in lines if line.item.ident not in stored and not line.item.deleted]
        reasons = await each(_contents(missing), self._wrong)
        wrong = dict(zip(_contents(missing), reasons, strict=True))
        for line in missing:
            if (reason := wrong[_content(line.item)]) is not None:
                found.note_bad(BadLine(line.number, reason))

    async def _wrong(self, content: tuple[str, int]) -> str | None:
        """What is wrong with a content in the folder."""
        try:
            async for _ in self._folder.read(*content):
                pass
        except InvalidArgument as error:
            return error.message
        return None

    # --- store ------------------------------------------------------------------------------------------------------

    async def _fetch(self, keys: Sequence[Key], at: int) -> dict[Key, Record]:
        if not keys:
            return {}
        found: dict[Key, Record] = await self._persist(partial(self._catalogue.fetch, keys), at)
        return found

    async def _add(self, lines: Sequence[Line[Record]], stored: dict[Key, Record], at: int) -> dict[Key, str]:
        """Store items that are not there; why those were refused that were. Equal bytes of an owner come in once."""
        alike: dict[tuple[bytes, object], list[Line[Record]]] = {}
        for line in lines:
            alike.setdefault((line.item.key[:16], line.item.fields[2]), []).append(line)
        refused: dict[Key, str] = {}
        for some in await each(alike.values(), self._add_alike):
            refused |= some
        now = await self._fetch([line.item.ident for line in lines if line.item.ident not in refused], at)
        stored.update(now)
        return refused

    async def _add_alike(self, lines: Sequence[Line[Record]]) -> dict[Key, str]:
        refused: dict[Key, str] = {}
        for line in lines:
            try:
                await self._persist(partial(self._restore, line.item), line.number)
            except (InvalidArgument, Conflict) as error:
                refused[line.item.ident] = error.message
        return refused

    async def _restore(self, record: Record) -> None:
        """Enter an item, with the owner's own object of its content, or with the bytes of the folder."""
        owner = UUID(bytes=record.key[:16])
        _, _, sha256, size, content_type, filename, attributes = cast(
            "tuple[str, None, str, int, str, str | None, str]", record.fields
        )
        item = (owner, UUID(bytes=record.key[16:]), record.version, sha256, size, content_type, filename, attributes)
        kept = None if record.deleted else await self._catalogue.object(owner, sha256)
        if record.deleted or (kept is not None and not kept.deleted):
            with suppress(NotFound):  # the object was given up since
                await self._intake.enter(Restore(*item, deleted=record.deleted))
                return
        await self._intake.bring(
            owner,
            self._folder.read(sha256, size),
            size=size,
            content_type=content_type,
            enter=lambda arrived: _restored(item, arrived),
        )


def _restored(item: tuple[UUID, UUID, int, str, int, str, str | None, str], arrived: Arrived) -> Restore:
    assert (arrived.sha256, arrived.size) == item[3:5], "bytes are compared with their hash before the last of them"
    return Restore(*item, upload=arrived.upload, held=arrived.held)


def _content(record: Record) -> tuple[str, int]:
    return cast("tuple[str, int]", record.fields[2:4])


def _contents(lines: Sequence[Line[Record]]) -> list[tuple[str, int]]:
    return list(dict.fromkeys(_content(line.item) for line in lines))
