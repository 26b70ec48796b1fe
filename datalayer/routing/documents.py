"""Messages and users as a search index would hold them: the port that a new index is filled from and compared with.

A range names the place that it was planned at. That goes on holding what it held when the journal of a move was drained,
so a scan may end there after the domain has moved on: what was written since is in the outboxes. Keys are read where the
domains lie now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from datalayer.domains.movement import INDEXED
from datalayer.domains.registry import DOMAINS
from datalayer.domains.search import document_of
from datalayer.errors import InvalidArgument
from datalayer.routing.route import Place
from datalayer.stores.base import ScanPage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datalayer.domains.record import Key, Kind, Record
    from datalayer.routing.indexer import IndexWriter
    from datalayer.routing.places import Places

SOURCE_KINDS: Final = {"message_doc": ("messages", "message"), "user_doc": ("users", "user")}
"""Of which domain's records of which kind a document is made."""
_MARK: Final = " "


class Documents:
    """What an index should hold. Of ``Port`` it has what a copy and a comparison need."""

    def __init__(self, places: Places) -> None:
        self.kinds: Sequence[Kind] = DOMAINS["search"].kinds
        self._places = places

    async def plan_scan(self, n: int) -> list[str]:
        """Ranges that together cover every document that should exist now."""
        ranges = []
        for domain in self._domains():
            place = self._places.routing_of(domain).authority
            found = await (await self._store(domain, place)).plan_scan(n)
            ranges += [_MARK.join((domain, place.backend, str(place.attempt), range_)) for range_ in found]
        return ranges

    async def scan(self, range_: str, after: str | None, limit: int) -> ScanPage:
        """The documents of the next ``limit`` records of a range."""
        parts = range_.split(_MARK, 3)
        if len(parts) < 4 or parts[0] not in INDEXED:
            raise InvalidArgument("the range of a scan is damaged")
        store = await self._store(parts[0], Place(parts[1], int(parts[2])))
        page: ScanPage = await store.scan(parts[3], after, limit)
        return ScanPage(documents_of(page.records), page.after, page.done)

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        """The documents of those keys whose records exist."""
        found: dict[Key, Record] = {}
        for kind, (domain, source) in SOURCE_KINDS.items():
            mine = [(source, key) for name, key in keys if name == kind]
            if mine and domain in self._places.routings:
                store = await self._store(domain, self._places.routing_of(domain).authority)
                records: dict[Key, Record] = await store.fetch(mine)
                found |= {document.ident: document for document in documents_of(records.values())}
        return found

    async def estimate(self) -> int:
        """About how many records there are."""
        counts = [
            await (await self._store(domain, self._places.routing_of(domain).authority)).estimate()
            for domain in self._domains()
        ]
        return sum(counts)

    def _domains(self) -> list[str]:
        return [domain for domain in INDEXED if domain in self._places.routings]

    async def _store(self, domain: str, place: Place) -> Any:
        await self._places.ensure_open(place)
        return self._places.store(domain, place)


def documents_of(records: Iterable[Record]) -> list[Record]:
    """The documents of those records that have one."""
    made = (document_of(record) for record in records)
    return [document for document in made if document is not None]


class Behind:
    """What of a Journal a comparison asks: whether the index is known to be behind on a key."""

    def __init__(self, writer: IndexWriter) -> None:
        self._writer = writer

    async def dirty(self, routings: Sequence[bytes], keys: Sequence[Key] | None = None) -> bool:
        """Whether any place has an entry of these documents' records."""
        del routings
        wanted = [(*SOURCE_KINDS[kind], key) for kind, key in keys or ()]
        for leaf, outbox in await self._writer.outboxes():
            mine = [(kind, key) for domain, kind, key in wanted if domain == leaf.domain]
            if mine and await outbox.holds(mine):
                return True
        return False
