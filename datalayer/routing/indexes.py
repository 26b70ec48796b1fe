"""Which search indexes live, and where what they have not taken in yet is written down.

An index is named by the attempt whose number its place carries. Each has an outbox of its own at every place of messages
and of users that anybody may write to: at each slot group's, and at both sides of each of their migrations.

Two coordinators may begin at once, one of an index and one of a source. Each first enters its migration in the control
store and looks for the other's afterwards, so at least one of them sees both and puts the outbox on.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from datalayer.domains.movement import INDEXED
from datalayer.errors import StaleRoute, Unavailable
from datalayer.routing.shards import base_domain
from datalayer.stores.base import Entry
from datalayer.stores.sharded import ShardedBackend

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from datalayer.domains.record import Record
    from datalayer.routing.places import Places
    from datalayer.routing.route import Place, Routing
    from datalayer.stores.base import Outbox

SEARCH: Final = "search"
HAND_OVER_BATCH: Final = 500
HAND_OVER_ROUNDS: Final = 1_000_000


class Leaf(NamedTuple):
    """A place of a source domain that has tables of its own."""

    domain: str
    place: Place


class Indexes:
    """The indexes and their sources, as one process knows them."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._under_way: Counter[int] = Counter()

    # --- which indexes live ---------------------------------------------------------------------------------------------

    def known(self) -> list[Place]:
        """The indexes by the routing that was learnt last."""
        return _indexes_of(self._places.routings.get(SEARCH))

    async def fresh(self) -> list[Place]:
        """The indexes by the control store, also those of migrations that have only just begun. Learns the routings."""
        migrations = await self._places.control.migrations(SEARCH)
        begun = [m.target for m in migrations if not m.finished and "cancelling" not in m.milestones]
        _, routings = await self._places.control.routings()
        self._places.learn(routings)
        return list(dict.fromkeys([*self.known(), *begun]))

    # --- where their sources lie ------------------------------------------------------------------------------------------

    def leaves(self, domain: str | None = None) -> list[Leaf]:
        """Every place with tables of its own at either side, of one source domain or of all, by the routings learnt."""
        routings = self._places.routings
        names = INDEXED if domain is None else (domain,)
        return [
            leaf
            for name in names
            if name in routings
            for place in _sides(routings[name])
            for leaf in self.at(name, place)
        ]

    def at(self, domain: str, place: Place) -> list[Leaf]:
        """The tables that a place of a domain or slot group consists of: the groups', at both sides of their moves."""
        base = base_domain(domain)
        if not isinstance(self._places.backend(place), ShardedBackend):
            return [Leaf(base, place)]
        found = self._places.shard_map(base, place.attempt)
        groups = () if found is None else found.groups
        return [Leaf(base, one) for group in groups for one in _sides(self._places.routing_of(group.name))]

    def outbox(self, leaf: Leaf, index: Place) -> Outbox:
        """The outbox of one place for one index."""
        outbox: Outbox = self._places.store(leaf.domain, leaf.place).outbox(index.attempt)
        return outbox

    # --- coordinators -------------------------------------------------------------------------------------------------------

    async def follow(self, leaves: Iterable[Leaf], indexes: Iterable[Place]) -> int:
        """Put outboxes on; how many."""
        done = 0
        for leaf in leaves:
            for index in indexes:
                await self._places.ensure_open(leaf.place)
                await self.outbox(leaf, index).install()
                done += 1
        return done

    async def leave(self, index: Place) -> None:
        """An index is given up: its outboxes go, at every place that can be reached; the sweep gets the others."""
        for leaf in self.leaves():
            with suppress(Unavailable):
                await self._places.ensure_open(leaf.place)
                await self.outbox(leaf, index).remove()

    async def hand_over(self, leaf: Leaf, heir: Leaf) -> int:
        """What indexes have not taken in from a place that nobody writes to any more is entered at another; how much.

        Then the outboxes of the place go. It does not matter to which of a domain's outboxes: records are read by route.
        """
        await self._places.ensure_open(leaf.place)
        live = {index.attempt for index in await self.fresh()}
        store, other = self._places.store(*leaf), self._places.store(*heir)
        done = 0
        for number in await store.outboxes():
            mine, theirs = store.outbox(number), other.outbox(number)
            for _ in range(HAND_OVER_ROUNDS if number in live else 0):
                entries = await mine.pending(HAND_OVER_BATCH, every=True)
                if not entries:
                    break
                await theirs.enter(entries)
                await mine.settle(entries)
                done += len(entries)
            await mine.remove()
        return done

    # --- writers of stores that have no triggers ------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[list[Place]]:
        """The indexes that a write must be entered for; until the block ends, no newer routing of search is acknowledged."""
        routing = self._places.routings.get(SEARCH)
        epoch = 0 if routing is None else routing.epoch
        self._under_way[epoch] += 1
        try:
            yield self.known()
        finally:
            self._under_way[epoch] -= 1
            if not self._under_way[epoch]:
                del self._under_way[epoch]

    def oldest(self) -> int | None:
        """The oldest routing of search that a write under way goes by."""
        return min(self._under_way, default=None)

    async def enter(self, leaf: Leaf, records: Sequence[Record], indexes: Iterable[Place]) -> None:
        """Enter records before they are written. An outbox that is off belongs to an index that was given up."""
        entries = [Entry(one.kind, one.key, one.version) for one in records if one.kind in INDEXED[leaf.domain]]
        for index in indexes:
            with suppress(StaleRoute):
                await self.outbox(leaf, index).enter(entries)


def _sides(routing: Routing) -> list[Place]:
    return [place for place in (routing.authority, routing.mirror) if place is not None]


def _indexes_of(routing: Routing | None) -> list[Place]:
    return [] if routing is None else _sides(routing)


__all__ = ["SEARCH", "Indexes", "Leaf"]
