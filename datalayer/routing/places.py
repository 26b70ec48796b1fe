"""Routings compiled against open stores: what an operation takes once and keeps to its end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from datalayer.domains.movement import INDEXED, Movement, movement_of
from datalayer.domains.registry import DOMAINS
from datalayer.errors import RoutingMismatch, Unavailable
from datalayer.routing.eager import EagerApplier
from datalayer.routing.indexes import Indexes, Leaf
from datalayer.routing.lastwriter import Entering, IntentGuard, LastWriterAuthority
from datalayer.routing.regional import RegionalUsers
from datalayer.routing.route import SOURCE_RULES, Phase, Place
from datalayer.routing.sharded import ShardedStore
from datalayer.routing.sharded_stores import STORES
from datalayer.routing.shards import base_domain, shard_map
from datalayer.routing.together import each
from datalayer.stores.sharded import ShardedBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from datalayer.clock import Clock, Deadline
    from datalayer.control.base import Control
    from datalayer.domains.record import Record
    from datalayer.routing.replicareads import ReplicaReads
    from datalayer.routing.route import Routing
    from datalayer.routing.router import Router
    from datalayer.routing.shards import ShardMap
    from datalayer.stores.base import Backend, Executed, Guard

Side = Literal["source", "target"]
SELF_CREATING = frozenset({"memory", "sqlite", "filesystem"})
"""Products whose schema is made when they are first used; elsewhere an operator upgrades it."""
SCHEMALESS = frozenset({"redis"})
"""Products without a schema: a place of records is made when a domain is first placed there."""


@dataclass(slots=True)
class Route:
    """One routing, ready to be used. ``inflight`` counts the writes begun under it that have not ended."""

    routing: Routing
    authority: Any
    execute: Callable[[Any, Deadline], Awaitable[Executed]]
    guard: Guard | None = None
    mirror: Any = None
    mirror_guard: Guard | None = None
    eager: EagerApplier | None = None
    journal_first: bool = False
    last_writer: bool = False
    counted: bool = False
    """Writes go on after they were answered for: bytes that are stored before the catalogue knows of them."""
    inflight: int = field(default=0)
    under_way: Collection[object] = ()
    """Writes that a last-writer store at rest has not answered, also those whose callers have left."""
    replicas: ReplicaReads | None = None
    """Where reads may go instead of the authority, at rest."""


class Places:
    """Opens stores and guards by place, and compiles routes."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        control: Control,
        clock: Clock,
        *,
        process_number: int = 0,
        eager: bool = True,
    ) -> None:
        self.backends = backends
        self.control = control
        self.clock = clock
        self._process_number = process_number
        self._eager = eager
        self.region_records: dict[int, Mapping[str, str]] = {}
        """Of places of users, by attempt: the region of each slot group, as far as it was read (``regionrecord``)."""
        self.group_routers: dict[str, Router] = {}
        """In an open DataLayer: the router of each slot group, by name."""
        self.replica_reads: Callable[[Routing], ReplicaReads | None] = _no_replicas
        """In an open DataLayer: the replicas' part in the reads of a routing at rest."""
        self._routings: Mapping[str, Routing] = {}
        self._maps: dict[tuple[str, int], ShardMap] = {}
        self._stores: dict[tuple[str, Place], Any] = {}
        self.indexes = Indexes(self)
        self._opened: set[str] = set()
        self._opening: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def learn(self, routings: Mapping[str, Routing]) -> None:
        """Take note of the control store's newest routings: what lies in slot groups is found by them."""
        self._routings = routings

    def note(self, routing: Routing) -> None:
        """Take note of one routing that was published here."""
        self._routings = {**self._routings, routing.domain: routing}

    @property
    def routings(self) -> Mapping[str, Routing]:
        """Every routing, as last learnt."""
        return self._routings

    def routing_of(self, name: str) -> Routing:
        """The routing of a domain or slot group, as last learnt."""
        return self._routings[name]

    def has_left(self, domain: str, place: Place) -> bool:
        """Whether a domain is served from elsewhere by what was learnt last."""
        routing = self._routings.get(domain)
        return routing is not None and routing.authority != place

    def shard_map(self, domain: str, attempt: int) -> ShardMap | None:
        """The slot groups of a place; None before they were made. A place's groups never change."""
        key = (domain, attempt)
        if key not in self._maps:
            found = shard_map(domain, attempt, self._routings)
            if found is None:
                return None
            self._maps[key] = found
        return self._maps[key]

    def is_open(self, place: Place) -> bool:
        """Whether the backend of a place is connected; shards are, one by one, as their slot groups are used."""
        return place.backend in self._opened or isinstance(self.backend(place), ShardedBackend)

    async def ensure_open(self, place: Place) -> Backend:
        """The backend of a place, connected and with a schema that fits; created only where that is the default.

        Of a sharded backend every member must answer.
        """
        backend = self.backend(place)
        if place.backend in self._opened:
            return backend
        if isinstance(backend, ShardedBackend):
            await each([Place(name) for name in backend.members], self.ensure_open)
        async with self._opening[place.backend]:
            if place.backend not in self._opened:
                await backend.open()
                await backend.ensure_schema(create=backend.product in SELF_CREATING)
                self._opened.add(place.backend)
        return backend

    async def prepare(self, routing: Routing) -> None:
        """Connect what a routing needs. A mirror that is down is needed only where reads may go to it.

        What lies in slot groups needs nothing here: their own routings do.
        """
        if not isinstance(self.backend(routing.authority), ShardedBackend):
            await self.ensure_open(routing.authority)
        if routing.mirror is None or isinstance(self.backend(routing.mirror), ShardedBackend):
            return
        try:
            await self.ensure_open(routing.mirror)
        except Unavailable:
            if routing.reads_journal_first:
                raise

    def backend(self, place: Place) -> Backend:
        """The configured backend of a place."""
        try:
            return self.backends[place.backend]
        except KeyError:
            message = f"the control store routes data to backend {place.backend!r}, which is not configured here"
            whole, _, shard = place.backend.partition("/")
            missing = f"{shard} to [backends.{whole}] members" if shard else f"[backends.{whole}] to the configuration"
            raise RoutingMismatch(message, hint=f"add {missing}") from None

    def store(self, domain: str, place: Place) -> Any:
        """The store of a domain or slot group at a place (Port, typed reads, Transactional where the product is)."""
        key = (base_domain(domain), place)
        if key not in self._stores:
            backend = self.backend(place)
            if isinstance(backend, ShardedBackend):
                regional = key[0] == "users" and backend.regions
                self._stores[key] = (RegionalUsers if regional else STORES[key[0]])(self, key[0], place)
            else:
                self._stores[key] = backend.store(key[0], place.attempt)
        return self._stores[key]

    def group_store(self, store: Any, record: Record) -> Any:
        """Of a domain's store, the part where a record belongs: its slot group's at rest, or the store itself."""
        if not isinstance(store, ShardedStore):
            return store
        group = store.group_of(record)
        return self.store(group.name, self.routing_of(group.name).authority)

    def guard(self, domain: str, place: Place, attempt: int, side: Side) -> Guard:
        """Journal and fence of one side of an attempt."""
        store = self.store(domain, place)
        if self.backend(place).authority_class == "transactional":
            guard: Guard = store.guard(attempt)
            return guard
        return IntentGuard(store, self.control.intents(domain, attempt, side), self._entering(domain, place))

    def sides(self, routing: Routing) -> tuple[Guard, Guard]:
        """(guard of the authority, guard of the mirror) while a migration lives."""
        assert routing.target is not None, "a migration has a target"
        source = self.guard(routing.domain, routing.source, routing.attempt, "source")
        target = self.guard(routing.domain, routing.target, routing.attempt, "target")
        return (source, target) if routing.authority == routing.source else (target, source)

    def compile(self, routing: Routing) -> Route:
        """The route of a routing."""
        store = self.store(routing.domain, routing.authority)
        if movement_of(routing.domain) is not Movement.RECORDS:
            counted = movement_of(routing.domain) is Movement.OBJECTS
            mirror = self._mirror_without_guard(routing)
            return Route(routing, store, _executes_nothing, mirror=mirror, counted=counted)
        last_writer = self.backend(routing.authority).authority_class == "last_writer"
        if routing.mirror is None:
            if not last_writer:
                return Route(routing, store, store.execute, replicas=self.replica_reads(routing))
            writer = self._last_writer(routing, store, None)
            return Route(routing, store, writer.execute, last_writer=True, under_way=writer.under_way)
        guard, mirror_guard = self.sides(routing)
        mirror = self.store(routing.domain, routing.mirror)
        execute = self._last_writer(routing, store, mirror).execute if last_writer else store.execute
        # Only replayers write the source while the target rules: late eager applies made ghosts (PROTOCOL).
        forward = routing.phase in (Phase.DUAL, Phase.ARMED) and not last_writer
        usable = self._eager and forward and self.is_open(routing.mirror)
        eager = EagerApplier(mirror_guard, guard.journal) if usable else None
        return Route(
            routing,
            store,
            execute,
            guard,
            mirror,
            mirror_guard,
            eager,
            journal_first=routing.reads_journal_first,
            last_writer=last_writer,
        )

    def putter(self, routing: Routing) -> Callable[[Sequence[Record]], Awaitable[None]]:
        """How records are stored at rest as they are, by no mutation: indexes hear of them as of any other write."""
        store = self.store(routing.domain, routing.authority)
        entering = self._entering(routing.domain, routing.authority)
        if entering is not None and self.backend(routing.authority).authority_class == "last_writer":
            return partial(entering.write, store)
        put: Callable[[Sequence[Record]], Awaitable[None]] = store.apply
        return put

    def _mirror_without_guard(self, routing: Routing) -> Any:
        """The mirror's store, None at rest and until its backend has answered once."""
        if routing.mirror is None or not self.is_open(routing.mirror):
            return None
        return self.store(routing.domain, routing.mirror)

    def _entering(self, domain: str, place: Place) -> Entering | None:
        """How writes to a place without triggers become known to indexes; None for a domain that none follows."""
        base = base_domain(domain)
        return Entering(self.indexes, Leaf(base, place)) if base in INDEXED else None

    def _last_writer(self, routing: Routing, store: Any, mirror: Any) -> LastWriterAuthority:
        intents = None
        if mirror is not None:
            side: Side = "source" if routing.authority == routing.source else "target"
            intents = self.control.intents(routing.domain, routing.attempt, side)
        return LastWriterAuthority(
            store,
            DOMAINS[base_domain(routing.domain)],
            self.clock,
            process_number=self._process_number,
            intents=intents,
            entering=self._entering(routing.domain, routing.authority),
            # On the way back only: what the source cannot take would make a rollback impossible. On the way over such a
            # record is quarantined and named, and the application goes on.
            check=None if mirror is None or routing.phase in SOURCE_RULES else mirror.check,
        )


async def _executes_nothing(_mutation: Any, _deadline: Deadline) -> Executed:
    raise AssertionError("only domains of records have mutations; a repository of others uses the route's stores")


def _no_replicas(routing: Routing) -> ReplicaReads | None:
    """The engine reads authorities and mirrors themselves."""
