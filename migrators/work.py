"""What every action of a coordinator works with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datalayer.domains.registry import DOMAINS
from datalayer.errors import MigrationError
from datalayer.migrators.strategy import strategy_of
from datalayer.routing.replay import Replayer
from datalayer.routing.route import Phase
from datalayer.routing.shards import base_domain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datalayer.clock import Clock
    from datalayer.control.base import Control, Migration
    from datalayer.domains.record import Record
    from datalayer.domains.registry import Domain
    from datalayer.migrators.around import Around
    from datalayer.migrators.options import Failpoints, MigrateOptions, Reporter
    from datalayer.migrators.strategy import Strategy
    from datalayer.routing.places import Places
    from datalayer.routing.route import Place, Routing
    from datalayer.stores.base import Guard, Token

__all__ = ["Work", "stores_last_writer"]
CHANGED_KEPT_MAX = 20_000


@dataclass(slots=True)
class Work:
    """One coordinator at one migration. ``routing`` is what the control store said last."""

    places: Places
    migration: Migration
    routing: Routing
    token: Token
    holder: str
    options: MigrateOptions
    reporter: Reporter
    failpoints: Failpoints
    replay_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    around_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Had by a round of the domain's replay around a slot group's move."""
    hold_began: float | None = None
    flipping: bool = False
    """The background replay pauses: the flip replays itself."""
    hold_parts: dict[str, float] = field(default_factory=dict)
    """Milliseconds of each action within the present hold."""
    changed: set[Any] = field(default_factory=set)
    """Keys replayed since the last clean verification."""
    mirror_life: str = ""
    """Of a mirror that may forget: the life in which it was compared, as seen before the hold."""
    lives: int = 0
    """How often it has begun another one under this command."""
    around: Around | None = None
    """Of a slot group: its domain's own migration, when that has the way back open."""
    around_guards: dict[Place, Guard] = field(default_factory=dict)
    _replayer: Replayer | None = None
    _replayer_epoch: int = -1

    @property
    def control(self) -> Control:
        """The control store."""
        return self.places.control

    @property
    def clock(self) -> Clock:
        """The clock."""
        return self.places.clock

    @property
    def domain(self) -> Domain:
        """The domain that moves."""
        return DOMAINS[base_domain(self.migration.domain)]

    @property
    def strategy(self) -> Strategy:
        """How the domain moves."""
        return strategy_of(self.migration.domain)

    @property
    def source_store(self) -> Any:
        """The store at the migration's source."""
        return self.places.store(self.migration.domain, self.migration.source)

    @property
    def target_store(self) -> Any:
        """The store at the migration's target."""
        return self.places.store(self.migration.domain, self.migration.target)

    @property
    def source_guard(self) -> Guard:
        """Journal and fence of the source."""
        return self.places.guard(self.migration.domain, self.migration.source, self.migration.attempt, "source")

    @property
    def target_guard(self) -> Guard:
        """Journal and fence of the target."""
        return self.places.guard(self.migration.domain, self.migration.target, self.migration.attempt, "target")

    @property
    def source_last_writer(self) -> bool:
        """Whether the source orders writes by intents."""
        return stores_last_writer(self.places, self.migration.source)

    @property
    def phase(self) -> Phase:
        """The phase of this migration: source, as long as the routing in force is still that of an earlier attempt."""
        return self.routing.phase if self.routing.attempt == self.migration.attempt else Phase.SOURCE

    def note_changed(self, records: Iterable[Record]) -> None:
        """Remember what was replayed since the last verification, within a bound: a backfill may take days."""
        if len(self.changed) < CHANGED_KEPT_MAX:
            self.changed.update(record.ident for record in records)

    async def refresh(self) -> Routing:
        """Read routing and migration again."""
        _, routings = await self.control.routings()
        self.places.learn(routings)
        self.routing = routings[self.migration.domain]
        found = await self.control.migrations(self.migration.domain)
        self.migration = next(m for m in found if m.id == self.migration.id)
        return self.routing

    async def publish(self, routing: Routing) -> None:
        """Publish a routing as this coordinator."""
        self.routing = await self.control.publish(self.token, routing, actor=self.holder)
        self.places.note(self.routing)

    async def add_milestones(self, *names: str) -> None:
        """Enter milestones."""
        milestones = self.migration.milestones | set(names)
        self.migration = await self.control.update_migration(self.token, self.migration.id, milestones=milestones)

    async def replayer(self) -> Replayer:
        """The replayer of the present routing (made anew when the authority changed)."""
        if self._replayer is None or self._replayer_epoch != self.routing.epoch:
            if self.routing.mirror is None:
                raise MigrationError("there is nothing to replay at rest")
            self._replayer = Replayer(self.places, self.routing, self.migration.id)
            self._replayer_epoch = self.routing.epoch
            await self._replayer.load_quarantine()
        return self._replayer


def stores_last_writer(places: Places, place: Place) -> bool:
    """Whether the store at a place has no transactions of its own."""
    return places.backend(place).authority_class == "last_writer"
