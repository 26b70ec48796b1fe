"""The bytes of exported items of media: each content is in the folder before a line of the file names it.

Applications go on meanwhile. An item that was deleted, and whose bytes have gone, is exported as it is then. Contents that
an earlier run has left whole are compared with their hash and not fetched again.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID

from datalayer.domains.catalogue import READY, StoredObject
from datalayer.errors import Corrupt, DatalayerError, NotFound
from datalayer.routing.catalogue import Catalogue
from datalayer.routing.holders import MEDIA, Holders
from datalayer.routing.patience import persist
from datalayer.routing.together import AT_ONCE, each

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from datalayer.domains.record import Record
    from datalayer.exporting.objects import ObjectFolder
    from datalayer.layer import DataLayer

TRIES: Final = 3
"""How often an item is looked up whose bytes are in no place that its object names: they may just have moved."""
SEEN_MAX: Final = 1 << 17


class MediaBytes:
    """Brings the bytes of items into a folder; counts the contents that it has written."""

    def __init__(self, layer: DataLayer, folder: ObjectFolder) -> None:
        self._layer = layer
        self._catalogue = Catalogue(layer.places)
        self._holders = Holders(layer.places)
        self._folder = folder
        self._seen: set[bytes] = set()
        self.objects = self.size_bytes = 0

    async def bring(self, records: Sequence[Record]) -> AsyncGenerator[list[Record], None]:
        """The items, a few at a time, whose bytes the folder has then. Items that wait for their bytes are left out.

        Corrupt where no place has the right bytes; NotFinished where the disk refuses, or no store answers for a minute.
        """
        for at in range(0, len(records), AT_ONCE):
            alike: dict[object, list[Record]] = {}
            for record in records[at : at + AT_ONCE]:
                if record.fields[0] == READY:
                    alike.setdefault(record.fields[2], []).append(record)
            with self._folder.writing():
                found = await each(alike.values(), self._bring_alike)
            yield [record for some in found for record in some]

    async def _bring_alike(self, records: Sequence[Record]) -> list[Record]:
        """Items of one content, one after the other: the first writes it."""
        stopped = f"the export stopped after {self.objects} contents"
        found = [
            record if record.deleted else await persist(self._layer.clock, partial(self._bring, record), stopped)
            for record in records
        ]
        return [record for record in found if record is not None]

    async def _bring(self, record: Record) -> Record | None:
        """The item with its bytes in the folder; as it is now where they are nowhere any more."""
        owner, item = UUID(bytes=record.key[:16]), UUID(bytes=record.key[16:])
        sha256, size = cast("tuple[str, int]", record.fields[2:4])
        if bytes.fromhex(sha256) in self._seen:
            return record
        told: DatalayerError = NotFound(f"owner {owner} has no object of this content")
        if await self._folder.has(sha256, size):
            self._note(sha256)
            return record
        for _ in range(TRIES):
            stored = await self._catalogue.object(owner, sha256)
            if stored is not None and not stored.deleted:
                try:
                    await self._write(stored)
                except (NotFound, Corrupt) as error:
                    told = error
                else:
                    return record
            now = (await self._catalogue.fetch([record.ident])).get(record.ident)
            if now is None or now.deleted:
                return now
        raise Corrupt(
            f"media {item} of owner {owner} cannot be exported: {told.message}",
            hint="restore its bytes from a copy, or delete the item",
        ) from told

    async def _write(self, stored: StoredObject) -> None:
        held = self._holders.ordered(stored, self._layer.router(MEDIA).routing)
        self.size_bytes += await self._folder.write(stored.sha256, self._holders.whole(stored, held))
        self.objects += 1
        self._note(stored.sha256)

    def _note(self, sha256: str) -> None:
        if len(self._seen) < SEEN_MAX:
            self._seen.add(bytes.fromhex(sha256))
