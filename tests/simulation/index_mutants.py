"""Planted mistakes of what keeps search in step, each as a patch of the real engine; lives with an index must notice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from datalayer.domains.record import Record
from datalayer.migrators import projection
from datalayer.migrators.plan import PLAN, Action, Stage
from datalayer.migrators.projection import Act
from datalayer.migrators.verify import Verifier
from datalayer.routing import indexer
from datalayer.routing.indexes import Indexes, Leaf
from datalayer.routing.lastwriter import Entering
from datalayer.routing.route import Place
from datalayer.stores.base import Entry
from datalayer.stores.memory.server import MemoryServer
from datalayer.testing.simulation.world import Pair

Patch = Callable[[pytest.MonkeyPatch], None]
SQL = Pair("transactional", "transactional")
OUT = Pair("transactional", "last_writer")
BACK = Pair("last_writer", "transactional")


@dataclass(frozen=True)
class IndexMutant:
    name: str
    patch: Patch
    pair: Pair = SQL


def _without(patch: pytest.MonkeyPatch, *actions: Action) -> None:
    for stage, planned in list(PLAN.items()):
        patch.setitem(PLAN, stage, tuple(action for action in planned if action not in actions))


def entry_outside_the_transaction(patch: pytest.MonkeyPatch) -> None:
    """The writer dies between its commit and its entry, now and then."""
    inner, count = MemoryServer.follow, iter(range(1 << 30))

    def sometimes(self: MemoryServer, place: Any, entry: Entry) -> None:
        if next(count) % 9:
            inner(self, place, entry)

    patch.setattr(MemoryServer, "follow", sometimes)


def settled_by_the_row_taken(patch: pytest.MonkeyPatch) -> None:
    inner = indexer.IndexWriter._bring

    async def taken(self: Any, leaf: Leaf, entries: Sequence[Entry]) -> list[Entry]:
        return [one._replace(version=1 << 62) for one in await inner(self, leaf, entries)]

    patch.setattr(indexer.IndexWriter, "_bring", taken)


def targets_outbox_on_too_late(patch: pytest.MonkeyPatch) -> None:
    _without(patch, Action.JOIN_INDEXES)


def left_source_not_handed_over(patch: pytest.MonkeyPatch) -> None:
    _without(patch, Action.LEAVE_SOURCE)


def only_the_authoritys_outbox_is_drained(patch: pytest.MonkeyPatch) -> None:
    _without(patch, Action.LEAVE_SOURCE, Action.LEAVE_TARGET)

    def leaves(self: Indexes, domain: str | None = None) -> list[Leaf]:
        names = ("messages", "users") if domain is None else (domain,)
        return [Leaf(name, self._places.routing_of(name).authority) for name in names]

    patch.setattr(Indexes, "leaves", leaves)


def index_filled_before_it_follows(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(projection.PLAN, Stage.START, (Act.CHECK_TARGET, Act.CREATE_INDEX, Act.PUBLISH_DUAL))
    patch.setitem(projection.PLAN, Stage.BACKFILL, (Act.AWAIT_WRITERS, Act.FILL, Act.FOLLOW_SOURCES, Act.CATCH_UP))
    patch.setitem(projection.PLAN, Stage.VERIFY, (Act.VERIFY,))
    patch.setattr(Verifier, "judge", _nothing_differs)


async def _nothing_differs(*_: Any, **__: Any) -> tuple[list[Any], list[Any]]:
    return [], []


def deletes_are_not_brought(patch: pytest.MonkeyPatch) -> None:
    inner = indexer.IndexWriter._apply

    async def living(self: Any, documents: list[Record]) -> Any:
        return await inner(self, [one for one in documents if not one.deleted])

    patch.setattr(indexer.IndexWriter, "_apply", living)


def absent_taken_for_gone(patch: pytest.MonkeyPatch) -> None:
    inner = indexer.IndexWriter._bring

    async def gone(self: Any, leaf: Leaf, entries: Sequence[Entry]) -> list[Entry]:
        return await inner(self, leaf, [one._replace(gone=True) for one in entries])

    patch.setattr(indexer.IndexWriter, "_bring", gone)


def entered_after_the_write(patch: pytest.MonkeyPatch) -> None:
    async def after(self: Entering, store: Any, records: Sequence[Record]) -> None:
        with self.indexes.writing() as known:
            await store.apply(records)
            await self.indexes.enter(self.leaf, records, known)

    patch.setattr(Entering, "write", after)


def ahead_taken_for_never(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(indexer, "NEVER_CAME_US", 0)
    patch.setattr(indexer, "WATCHED_S", 0.0)


def intents_brought_without_entries(patch: pytest.MonkeyPatch) -> None:
    async def plain(self: Entering, store: Any, records: Sequence[Record]) -> None:
        await store.apply(records)

    patch.setattr(Entering, "deliver", plain)


def index_filled_before_writers_know_it(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(projection.PLAN, Stage.BACKFILL, (Act.FILL, Act.CATCH_UP))
    patch.setattr(Verifier, "judge", _nothing_differs)


def wrong_index_stops_following(patch: pytest.MonkeyPatch) -> None:
    inner = Indexes.leave

    async def other(self: Indexes, index: Place) -> None:
        known = [one for one in self.known() if one != index]
        await inner(self, known[0] if known else index)

    patch.setattr(Indexes, "leave", other)


INDEX_MUTANTS = [
    IndexMutant("entry outside the transaction", entry_outside_the_transaction),
    IndexMutant("settled by the row taken", settled_by_the_row_taken),
    IndexMutant("the target's outbox on too late", targets_outbox_on_too_late),
    IndexMutant("a source left without a hand-over", left_source_not_handed_over),
    IndexMutant("only the authority's outbox is drained", only_the_authoritys_outbox_is_drained),
    IndexMutant("an index filled before it follows", index_filled_before_it_follows),
    IndexMutant("deletes are not brought", deletes_are_not_brought),
    IndexMutant("absent taken for gone", absent_taken_for_gone),
    IndexMutant("entered after the write", entered_after_the_write, BACK),
    IndexMutant("a write under way taken for one that never comes", ahead_taken_for_never, BACK),
    IndexMutant("intents brought without entries", intents_brought_without_entries, OUT),
    IndexMutant("filled before the writers know it", index_filled_before_writers_know_it, BACK),
    IndexMutant("the wrong index stops following", wrong_index_stops_following),
]
