"""DataLayer: open and close, wiring, health."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import weakref
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from datalayer.clock import Deadline, SystemClock
from datalayer.control.base import ProcessInfo
from datalayer.control.connect import open_control
from datalayer.domains.movement import OPTIONAL, Movement, movement_of
from datalayer.domains.soft import SOFT_DOMAINS
from datalayer.errors import ConfigurationError, DatalayerError, RoutingMismatch
from datalayer.ids import IdSource
from datalayer.repositories.arguments import ambient_deadline, deadline_of
from datalayer.repositories.conversations import Conversations
from datalayer.repositories.limits import Limits
from datalayer.repositories.media import MediaItems
from datalayer.repositories.messages import Messages
from datalayer.repositories.presence import PresenceRepository
from datalayer.repositories.search import Search
from datalayer.repositories.sessions import Sessions
from datalayer.repositories.typing import Typing
from datalayer.repositories.users import Users
from datalayer.repositories.watching import Watching
from datalayer.routing import consistency, firstindex
from datalayer.routing.indexer import Indexer
from datalayer.routing.indexes import SEARCH
from datalayer.routing.lease import Lease
from datalayer.routing.mediasweep import MediaSweep
from datalayer.routing.places import SCHEMALESS, Places
from datalayer.routing.projector import Projector, Sources
from datalayer.routing.purger import Purger
from datalayer.routing.replicareads import ReplicaReads, ReplicaWatch
from datalayer.routing.route import Place
from datalayer.routing.router import Router
from datalayer.routing.soft import Misses, SoftSides
from datalayer.routing.watchdog import Watchdog
from datalayer.settings import Settings, load_settings
from datalayer.stores.base import MetaRow
from datalayer.stores.registry import open_factory
from datalayer.stores.replicated import Positioned, Replicated
from datalayer.stores.sharded import ShardedBackend, member_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
    from os import PathLike

    from datalayer.clock import Clock
    from datalayer.control.base import Control
    from datalayer.routing.indexer import IndexLag
    from datalayer.routing.projector import Lag
    from datalayer.routing.route import Routing
    from datalayer.settings import BackendSettings, BackendUrl
    from datalayer.stores.base import Backend

MOVABLE: Final = (
    "users",
    "messages",
    "conversations",
    "listings",
    "search",
    "presence",
    "typing",
    "sessions",
    "catalogue",
    "media",
)
"""The domains that an open DataLayer serves."""
HEALTH_S: Final = 2.0
_ROLES: Final = {"retired": "retired (the data has moved)", "copy": "the copy of a migration"}


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """How one open DataLayer behaves in the fleet."""

    name: str = "app"
    eager: bool = True
    """Bring own writes to the mirror soon; off, the replayers alone do it."""
    assist: bool = True
    """Finish what a dead coordinator left, and replay while none is at work."""
    project: bool = True
    """Keep users' lists of conversations in step with conversations and messages, and search with messages and users."""
    purge: bool = True
    """Take out sessions that expired long ago."""


class DataLayer:
    """The data layer of one process: repositories over routed stores.

    Open it with ``async with DataLayer.open("datalayer.toml") as layer``. After a fork it is closed in the child.
    """

    def __init__(
        self,
        settings: Settings,
        control: Control,
        backends: Mapping[str, Backend],
        *,
        clock: Clock,
        options: LayerOptions,
        seed: int | None = None,
    ) -> None:
        self.settings = settings
        self.control = control
        self.backends = backends
        self.clock = clock
        self.options = options
        jitter = random.Random(seed)  # noqa: S311 - spreads waits, guards nothing
        ids = IdSource(clock) if seed is None else IdSource(clock, jitter.getrandbits)
        self.process = process_info(ids.uuid7().hex, options.name)
        self.lease = Lease(clock)
        number = int(self.process.id[-3:], 16)
        self.places = Places(backends, control, clock, process_number=number, eager=options.eager)
        self._routers = {domain: Router(domain, self.lease, self._ask_news, jitter.random) for domain in MOVABLE}

        def group_router(name: str) -> Router:
            return Router(name, self.lease, self._ask_news, jitter.random, nested=True)

        self._watchdog = Watchdog(
            self.process,
            self.places,
            self._routers,
            group_router,
            self.lease,
            jitter=jitter.random,
            assist=options.assist,
        )
        self._callers = consistency.Callers(clock)
        self._watches = {
            name: ReplicaWatch(backend, clock, jitter.random)
            for name, backend in backends.items()
            if isinstance(backend, Replicated) and backend.replicas
        }
        self.places.replica_reads = self._replica_reads
        for router in self._routers.values():
            router.on_answer = self._callers.wrote
        self._limits = limits = limits_of(settings)
        self.users = Users(self._routers["users"], ids, clock, limits)
        routers = self._routers
        self.search = Search((routers["search"], routers["messages"], routers["users"]), clock, limits)
        source = secrets.token_bytes if seed is None else jitter.randbytes
        self.sessions = Sessions(routers["sessions"], clock, limits, random_bytes=source)
        self.purger = Purger(routers["sessions"], control, clock, self.process.id, jitter.random)
        self._serve_media(ids, jitter)
        sources = Sources(routers["conversations"], routers["messages"], routers["listings"])
        self.projector = Projector(sources, control, clock, self.process.id, jitter.random)
        routers["search"].older_in_use = self.places.indexes.oldest
        self.indexer = Indexer(self.places, self.process.id, jitter.random)
        pair = (sources.conversations, sources.listings)
        if options.project:
            self.messages = Messages(sources.messages, ids, clock, limits, appended=self.projector.appended)
            self.conversations = Conversations(pair, ids, clock, limits, changed=self.projector.changed)
        else:
            self.messages = Messages(sources.messages, ids, clock, limits)
            self.conversations = Conversations(pair, ids, clock, limits)
        self._misses = Misses(control, clock, self.process.id, options.name)
        self._soft = {name: SoftSides(routers[name], self._misses) for name in SOFT_DOMAINS}
        self._watching = Watching(self._soft["presence"], clock)
        self.presence = PresenceRepository(self._soft["presence"], self._watching, clock, limits)
        self.typing = Typing(self._soft["typing"], clock, limits)

    def _serve_media(self, ids: IdSource, jitter: random.Random) -> None:
        pair = (self._routers["catalogue"], self._routers["media"])
        self.media = MediaItems(pair, self.places, ids, self._limits)
        self.sweeper = MediaSweep(self.places, self.process.id, jitter.random)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: str | PathLike[str] | Settings | None = None,
        *,
        options: LayerOptions | None = None,
        clock: Clock | None = None,
    ) -> AsyncIterator[DataLayer]:
        """The data layer of a configuration file, of Settings, or of ./datalayer.toml or the environment (see
        ``load_settings``; embedded when nothing is configured).

        Raises ConfigurationError, MissingDependencyError, SchemaBehind, RoutingMismatch, Unavailable.
        """
        layer = await cls.connect(config, options=options, clock=clock)
        try:
            yield layer
        finally:
            await layer.close()

    @classmethod
    async def connect(
        cls,
        config: str | PathLike[str] | Settings | None = None,
        *,
        options: LayerOptions | None = None,
        clock: Clock | None = None,
    ) -> DataLayer:
        """As ``open``, for callers that close it themselves."""
        settings = config if isinstance(config, Settings) else load_settings(config)
        clock = clock or SystemClock()
        backends = make_backends(settings, clock)
        control = await open_control_store(settings, clock)
        layer = cls(settings, control, backends, clock=clock, options=options or LayerOptions())
        try:
            await layer.start()
        except BaseException:  # whatever ended the opening, give the connections back; raised again
            await layer.close()
            raise
        return layer

    async def start(self) -> None:
        """Enter the fleet and serve."""
        for domain, reason in (await claim_first_places(self.settings, self.places)).items():
            self._routers[domain].unplaced(reason, firstindex.BUILD if reason == firstindex.NOT_BUILT else "")
        for watch in self._watches.values():
            watch.start()
        await self._watchdog.start()
        if self.options.project:
            self.projector.start()
            self.indexer.start()
        if self.options.purge:
            self.purger.start()
        if self.options.assist:
            self.sweeper.start()
        _close_after_fork(self)

    async def close(self) -> None:
        """Leave the fleet and give every connection back. Idempotent."""
        await self._watching.stop()
        for sides in self._soft.values():
            await sides.stop()
        await self._misses.stop()
        await self.sweeper.stop()
        await self.projector.stop()
        await self.indexer.stop()
        await self.purger.stop()
        await self._watchdog.stop()
        for watch in self._watches.values():
            await watch.stop()
        await close_stores(self.control, self.backends)

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[Deadline]:
        """One deadline for every call inside the block."""
        deadline = Deadline(self.clock, seconds)
        token = ambient_deadline.set(deadline)
        try:
            yield deadline
        finally:
            ambient_deadline.reset(token)

    def reading_after(self, token: str | None) -> AbstractContextManager[None]:
        """Reads inside the block see all that the token's caller had written, and all that is written inside.

        One block is one caller: a request, a job. With None, a caller that has written nothing yet. Outside of such
        blocks, all writes of this DataLayer count as the caller's own. InvalidToken for a damaged token.
        """
        return consistency.reading_after(token)

    def reading(self, level: consistency.LevelName, *, max_lag_s: float | None = None) -> AbstractContextManager[None]:
        """How fresh reads inside the block must be.

        "primary": the authority's own answer. "own_writes", the default: no write of the same caller is missed; those
        of others may be, for ``max_lag_s``. "replica": whatever is younger than ``max_lag_s`` may be missed. Without
        a bound, 1 s. Where no replica will do, the primary answers. InvalidArgument.
        """
        return consistency.reading(level, max_lag_s)

    async def token(self) -> str:
        """What the present caller has written, for ``reading_after`` in another process: opaque text, at most some
        hundred bytes. Unavailable when the primary does not answer.
        """
        deadline = deadline_of(self.clock, None, self._limits)
        positions = {}
        for domain, router in self._serving.items():
            found = await self._position(domain, router.routing, deadline)
            if found is not None:
                positions[domain] = found
        return consistency.encode_token(positions)

    async def _position(self, domain: str, routing: Routing, deadline: Deadline) -> consistency.Position | None:
        mark, held = self._callers.mark(domain), self._callers.positions(domain)
        if mark == consistency.NEVER and len(held) <= 1:
            return held[0] if held else None
        backend = self.backends[routing.authority.backend]
        if not isinstance(backend, Positioned):
            return None  # it has no replicas; whatever comes after it begins with all that it held
        return consistency.Position(routing.epoch, *await backend.position(deadline))

    def _replica_reads(self, routing: Routing) -> ReplicaReads | None:
        watch = self._watches.get(routing.authority.backend)
        return None if watch is None else ReplicaReads(watch, self._callers, routing)

    async def health(self) -> dict[str, Any]:
        """For readiness probes: {"ready": bool, "domains": {...}, "backends": {name: "ok" | reason}, "replicas":
        {backend: [...]}, "projections": {"listings": {"behind": members whose lists are behind, "oldest_s": since when},
        "search": likewise of keys, where there is an index}}. A replica that is down leaves a process ready: the primary
        answers in its place; one shard that is down does, too: the others' users are served; so does the store of presence
        and typing: who asks is told that it is unknown; and an index: all but search is served.
        """
        deadline = Deadline(self.clock, HEALTH_S)
        # taken once: routes may change while stores answer
        routings = {name: router.routing for name, router in self._serving.items()}
        stores = {r.authority.backend: self.backends[r.authority.backend] for r in routings.values()}
        shards = {name: sorted(b.members) if isinstance(b, ShardedBackend) else [name] for name, b in stores.items()}
        used = sorted({member for members in shards.values() for member in members})
        projections, *answers = await asyncio.gather(
            self._projections(deadline), *(self._ping(name, deadline) for name in used)
        )
        backends = dict(zip(used, answers, strict=True))
        domains = {
            name: {"phase": str(r.phase), "epoch": r.epoch, "backend": r.authority.backend}
            for name, r in routings.items()
        }
        spared = {*SOFT_DOMAINS, SEARCH}
        needed = {r.authority.backend for name, r in routings.items() if name not in spared}
        ready = all(any(backends[member] == "ok" for member in shards[name]) for name in needed)
        return {
            "ready": ready,
            "process": self.process.id,
            "domains": domains,
            "backends": backends,
            "replicas": self.replicas(),
            "projections": projections,
        }

    async def _projections(self, deadline: Deadline) -> dict[str, Any]:
        """How far each is behind; the reason where that is not known."""
        lags: dict[str, Awaitable[Lag | IndexLag | None]] = {"listings": self.projector.lag()}
        if self._routers[SEARCH].serves:
            lags[SEARCH] = self.indexer.lag()
        answers = await asyncio.gather(*(_told(lag, deadline) for lag in lags.values()))
        return dict(zip(lags, answers, strict=True))

    def replicas(self) -> dict[str, list[dict[str, Any]]]:
        """What is known of read replicas, by backend: of each its name, ok, lag_s (at most), lag_bytes, in_use, reads,
        reason (why it serves nothing).
        """
        return {name: watch.status() for name, watch in self._watches.items()}

    async def _ping(self, name: str, deadline: Deadline) -> str:
        try:
            await self.backends[name].ping(deadline)
        except DatalayerError as error:
            return error.message
        return "ok"

    @property
    def _serving(self) -> dict[str, Router]:
        """The routers of the domains that have a backend."""
        return {name: router for name, router in self._routers.items() if router.serves or name not in OPTIONAL}

    def _ask_news(self) -> None:
        self._watchdog.ask()

    def router(self, domain: str) -> Router:
        """The router of a domain, for status and tests."""
        return self._routers[domain]

    def forked(self) -> None:
        """In a forked child: nothing of the parent's connections may be used."""
        for router in (*self._routers.values(), *self.places.group_routers.values()):
            router.disown()


async def _told(lag: Awaitable[Lag | IndexLag | None], deadline: Deadline) -> dict[str, Any]:
    """A lag as plain values."""
    try:
        async with asyncio.timeout(deadline.remaining()):
            found = await lag
    except TimeoutError:
        return {"behind": None, "oldest_s": None, "reason": "a store of it does not answer in time"}
    except DatalayerError as error:
        return {"behind": None, "oldest_s": None, "reason": error.message}
    return (
        {"behind": 0, "oldest_s": 0.0}
        if found is None
        else {"behind": found.behind, "oldest_s": round(found.oldest_s, 3)}
    )


def limits_of(settings: Settings) -> Limits:
    """The limits that repositories keep, by the configuration."""
    sizes, times = settings.limits, settings.deadlines
    return Limits(
        sizes.body_max_bytes,
        sizes.members_max,
        times.default_s,
        times.max_s,
        sizes.media_max_bytes,
        sizes.media_types,
    )


def process_info(process_id: str, name: str) -> ProcessInfo:
    """Who this process is: host, pid, and a boot id that tells a reused pid from the same process."""
    return ProcessInfo(process_id, socket.gethostname(), os.getpid(), boot_identity(os.getpid()), name)


def boot_identity(pid: int) -> str:
    """Boot, pid namespace and start time of a process of this machine; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = Path("/proc/self/ns/pid").readlink()
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
    return f"{boot}/{space}/{started}"


async def open_control_store(settings: Settings, clock: Clock) -> Control:
    """The control store, connected; its schema is created when there is none."""
    if settings.embedded_directory is not None:
        settings.embedded_directory.mkdir(parents=True, exist_ok=True)
    _make_folder(settings.control)
    control = open_control(settings.control, clock)
    await control.open(create=True)
    return control


def make_backends(settings: Settings, clock: Clock, *, make_folders: bool = True) -> dict[str, Backend]:
    """Every configured backend, not yet connected. ``make_folders``: of SQLite files, where one level is missing."""
    backends: dict[str, Backend] = {}
    for name, configured in settings.all_backends(MOVABLE).items():
        if configured.url is None:
            members = _members(configured, clock, make_folders=make_folders)
            backends |= members
            backends[name] = ShardedBackend(
                name,
                members,
                groups=configured.slot_groups,
                weights=configured.weights,
                capacity=configured.capacity,
                regions=configured.regions,
            )
            continue
        if make_folders:
            _make_folder(configured.url)
        factory = open_factory(configured.scheme, name)
        own = _of_product(configured)
        if configured.replicas:
            own["replicas"] = configured.replicas
        if configured.scheme == "memory" and name not in settings.backends:
            own["soft_alone"] = True
        backends[name] = factory(name, configured.url, pool_max=configured.pool_max, clock=clock, **own)
    return backends


def _of_product(configured: BackendSettings) -> dict[str, Any]:
    """What one kind of store alone knows: the settings refuse it elsewhere."""
    known = {
        "partition_messages": configured.partition_messages,
        "search": configured.search,
        "cdn_url": configured.cdn_url,
    }
    return {name: value for name, value in known.items() if value is not None}


def _members(configured: BackendSettings, clock: Clock, *, make_folders: bool) -> dict[str, Backend]:
    """The members of a sharded backend by their full names; they share its budget of connections."""
    factory = open_factory(configured.scheme, configured.name)
    pool_max = max(1, configured.pool_max // len(configured.members))
    members = {}
    for member, url in configured.members.items():
        if make_folders:
            _make_folder(url)
        name = member_name(configured.name, member)
        members[name] = factory(name, url, pool_max=pool_max, clock=clock, **_of_product(configured))
    return members


def _make_folder(url: BackendUrl) -> None:
    """The folder of a SQLite file, one level: a whole path that is not there is a mistake, and is told as one."""
    if url.scheme == "sqlite" and url.path is not None and url.path.parent.parent.is_dir():
        url.path.parent.mkdir(exist_ok=True)


async def claim_first_places(settings: Settings, places: Places, *, build_index: bool = False) -> dict[str, str]:
    """Publish the configured placement of each domain that the control store does not know yet.

    The backend must be able to hold the domain and must not belong to somebody else. Returns why optional domains are
    placed nowhere, where no route names a backend for them and none can have them by default. Search is placed on a
    deployment that is empty; with ``build_index`` on any, to be built by a rebuild before it is asked.
    """
    known = (await places.control.routings())[1]
    places.learn(known)
    first: dict[str, Place] = {}
    unplaced: dict[str, str] = {}
    for domain in MOVABLE:
        if domain in known:
            continue
        place, reason = _first_place(settings, places, domain)
        if place is None:
            unplaced[domain] = reason
        else:
            first[domain] = place
    deployment = await places.control.deployment()
    index = first.pop(SEARCH, None)
    for domain, place in first.items():
        await _claim(places, domain, place, deployment)
    await places.control.ensure_routes(first)
    if index is not None and not (build_index or await firstindex.nothing_written(places)):
        unplaced[SEARCH] = firstindex.NOT_BUILT
    elif index is not None:
        await _claim(places, SEARCH, index, deployment)
        await firstindex.place_index(places, index, placed=first.keys())
        await places.control.ensure_routes({SEARCH: index})
    return unplaced


def _first_place(settings: Settings, places: Places, domain: str) -> tuple[Place | None, str]:
    """Where a domain is served first; without a place the reason, for an optional domain that no route names."""
    try:
        name = settings.backend_of(domain).name
    except ConfigurationError as error:
        if domain not in OPTIONAL:
            raise
        return None, error.message
    if name not in places.backends and domain in OPTIONAL and domain not in settings.routes:
        return None, f"{domain} has no backend here"
    reason = places.backends[name].refuses(domain)
    if reason is None:
        return Place(name), ""
    if domain not in OPTIONAL or domain in settings.routes:
        raise ConfigurationError(f"backend {name!r} cannot hold {domain}: {reason}")
    return None, f"no backend was given to {domain}, and {name!r} cannot hold it: {reason}"


async def _claim(places: Places, domain: str, place: Place, deployment: str) -> None:
    backend = await places.ensure_open(place)
    row = (await backend.read_meta()).get((domain, place.attempt))
    if row is not None and row.deployment != deployment:
        raise RoutingMismatch(
            f"{domain} on backend {place.backend!r} belongs to deployment {row.deployment}, not to this control store's",
            hint="point [control] at that deployment's control store, or use an empty database",
        )
    if row is not None and row.role != "authority":
        raise RoutingMismatch(
            f"backend {place.backend!r} says that its {domain} are {_ROLES[row.role]}, but the control store knows no "
            "route: it is new, or was restored from an old copy",
            hint="restore the newest control store; see the runbook",
        )
    schemaless = backend.product in SCHEMALESS and movement_of(domain) is Movement.RECORDS
    if schemaless or isinstance(backend, ShardedBackend):
        await places.store(domain, place).create()
    if row is None:
        await backend.write_meta(MetaRow(domain, place.attempt, deployment, "authority", 0))


async def close_stores(control: Control | None, backends: Mapping[str, Backend]) -> None:
    """Close everything that was opened. Idempotent."""
    for backend in backends.values():
        await backend.close()
    if control is not None:
        await control.close()


def _close_after_fork(layer: DataLayer) -> None:
    alive = weakref.ref(layer)

    def after_fork() -> None:
        inherited = alive()
        if inherited is not None:
            inherited.forked()

    os.register_at_fork(after_in_child=after_fork)
