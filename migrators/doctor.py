"""Looks at everything an installation stands on. Nothing is changed; where media lie a test object comes and goes."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from datalayer.clock import Deadline
from datalayer.control.connect import open_control
from datalayer.domains.movement import OPTIONAL
from datalayer.domains.soft import SOFT_DOMAINS
from datalayer.errors import ConfigurationError, DatalayerError, SchemaBehind
from datalayer.ids import IdSource
from datalayer.layer import MOVABLE, close_stores, make_backends
from datalayer.migrators.objectprobe import Failed, probe
from datalayer.routing.indexer import IndexWriter
from datalayer.routing.places import SELF_CREATING, Places
from datalayer.routing.projector import LAG_MAX, lag_of
from datalayer.routing.replicas import Standings
from datalayer.routing.route import Place
from datalayer.routing.shards import base_domain, parse_group
from datalayer.stores.registry import DISTRIBUTION
from datalayer.stores.replicated import Replicated
from datalayer.stores.sharded import ShardedBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from uuid import UUID

    from datalayer.clock import Clock
    from datalayer.control.base import Control
    from datalayer.routing.route import Routing
    from datalayer.settings import BackendUrl, Settings
    from datalayer.stores.base import Backend, MetaRow

IMPORT_NAME: Final = "datalayer"
PINGS: Final = 5
PING_S: Final = 5.0
SILENT_S: Final = 60.0
OBJECT_STORES: Final = frozenset({"s3", "filesystem"})
SLOW_CONTROL_MS: Final = 50.0
LAG_S: Final = 1.0
LAG_POLL_S: Final = 0.02
LISTS_LATE_S: Final = 60.0
"""Lists of conversations are brought in step within seconds, unless nobody does or a store refuses."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``way_out`` says what to do where it is not ``ok``."""

    check: str
    ok: bool
    detail: str
    way_out: str = ""


async def diagnose(settings: Settings, clock: Clock) -> list[Finding]:
    """Everything found: packages, control store, backends, routes, the fleet.

    Raises ConfigurationError and MissingDependencyError; whatever else is wrong is a finding.
    """
    findings = foreign_packages(importlib.metadata.packages_distributions())
    backends = make_backends(settings, clock, make_folders=False)
    control = open_control(settings.control, clock)
    try:
        routings: Mapping[str, Routing] | None = {}
        if _absent(settings.control):
            findings.append(Finding("control store", True, "not there yet: it is made when an application opens"))
        else:
            found, routings = await _control(control, clock)
            findings += found
        for name, backend in sorted(backends.items()):
            findings += await _backend(settings, backend, name, clock)
        if routings is not None:
            findings += await _routes(settings, backends, routings)
            findings += await _meta(control, backends, routings)
            findings += await _alone(control, backends, routings)
            findings += await _listings(backends, routings, clock)
            findings += await _search(Places(backends, control, clock), routings)
            findings += await _objects(settings, backends, routings, IdSource(clock).uuid7)
    finally:
        await close_stores(control, backends)
    return findings


def foreign_packages(distributions: Mapping[str, Iterable[str]]) -> list[Finding]:
    """Whether another project's package of the same import name is installed too."""
    foreign = sorted({name for name in distributions.get(IMPORT_NAME, ()) if _normal(name) != DISTRIBUTION})
    if not foreign:
        return [Finding("packages", True, f"{IMPORT_NAME} is {DISTRIBUTION}")]
    names = ", ".join(foreign)
    way_out = f"pip uninstall {' '.join(foreign)}; then pip install --force-reinstall {DISTRIBUTION}"
    return [Finding("packages", False, f"another project is installed as {IMPORT_NAME}: {names}", way_out)]


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def _absent(url: BackendUrl) -> bool:
    path: Path | None = url.path if url.scheme == "sqlite" else None
    return path is not None and not path.exists()


async def _control(control: Control, clock: Clock) -> tuple[list[Finding], Mapping[str, Routing] | None]:
    """What is wrong with it, and its routings; None when it does not tell."""
    try:
        await control.open(create=False)
        routings: Mapping[str, Routing] = {}
        times = []
        for _ in range(PINGS):
            began = clock.monotonic()
            _, routings = await control.routings()
            times.append((clock.monotonic() - began) * 1000)
        processes = await control.processes()
        live = [m for m in await control.migrations() if not m.finished]
    except DatalayerError as error:
        return [Finding("control store", False, error.message, error.hint or "bring it back")], None
    median = sorted(times)[PINGS // 2]
    slow = median > SLOW_CONTROL_MS
    way_out = "armed phases and writes at a last-writer authority wait for it: put it nearer" if slow else ""
    findings = [Finding("control store", not slow, f"answers in {median:.1f} ms", way_out)]
    silent = [p for p in processes if p.seen_ago_s > SILENT_S]
    detail = f"{len(processes)} process(es) open"
    if silent:
        names = ", ".join(f"{p.name} {p.host}:{p.pid}" for p in silent[:5])
        detail = f"{len(silent)} process(es) have not been heard of for {SILENT_S:.0f} s: {names}"
    findings.append(Finding("fleet", not silent, detail, "end them, or name them with --assume-dead" if silent else ""))
    findings += [Finding("migration", True, f"{m.id} is in phase {m.phase}: datalayer migrations why") for m in live]
    return findings, routings


async def _backend(settings: Settings, backend: Backend, name: str, clock: Clock) -> list[Finding]:
    what = f"backend {name}"
    url = None if isinstance(backend, ShardedBackend) else _url(settings, name)
    if url is not None and _absent(url):
        return [Finding(what, True, f"{url.path} is not there yet: it is made when it is first used")]
    try:
        await backend.open()
        began = clock.monotonic()
        await backend.ping(Deadline(clock, PING_S))
        took_ms = (clock.monotonic() - began) * 1000
    except DatalayerError as error:
        return [Finding(what, False, error.message, error.hint or "bring it back, or mend its url")]
    try:
        await backend.ensure_schema(create=False)
    except SchemaBehind as error:
        if backend.product in SELF_CREATING:
            return [Finding(what, True, f"{backend.product} answers; its tables are made when it is first used")]
        return [Finding(what, False, error.message, error.hint or f"datalayer schema upgrade {name}")]
    except DatalayerError as error:
        return [Finding(what, False, error.message, error.hint or f"datalayer schema upgrade {name}")]
    ready = Finding(what, True, f"{backend.product} answers in {took_ms:.1f} ms, schema ready")
    return [ready, *(await _replicas(backend, name, clock) if isinstance(backend, Replicated) else [])]


async def _replicas(backend: Replicated, name: str, clock: Clock) -> list[Finding]:
    """How long each replica takes to come to where the primary is now."""
    known = Standings.of(replica.name for replica in backend.replicas)
    findings = []
    for replica in backend.replicas:
        what = f"replica {replica.name} of {name}"
        deadline = Deadline(clock, PING_S)
        began = clock.monotonic()
        try:
            known.saw_primary(began, await backend.position(deadline))
            known.saw_replica(replica.name, clock.monotonic(), await replica.look(deadline))
            while known.lag_bytes(replica.name) and clock.monotonic() - began < LAG_S:
                await asyncio.sleep(LAG_POLL_S)
                known.saw_replica(replica.name, clock.monotonic(), await replica.look(deadline))
        except DatalayerError as error:
            findings.append(Finding(what, False, error.message, error.hint or "the primary serves its reads meanwhile"))
            continue
        took_ms, behind = (clock.monotonic() - began) * 1000, known.lag_bytes(replica.name)
        if trouble := known.trouble(replica.name):
            findings.append(Finding(what, False, trouble, "mend its url, or make it again from this primary"))
        elif behind:
            detail = f"{behind:,} bytes, more than {LAG_S:g} s behind"
            findings.append(Finding(what, False, detail, "the primary serves its reads until it has caught up"))
        else:
            findings.append(Finding(what, True, f"at most {took_ms:.0f} ms behind"))
    return findings


def _url(settings: Settings, name: str) -> BackendUrl | None:
    """Where a backend or shard is."""
    whole, _, member = name.partition("/")
    return settings.backends[whole].members[member] if member else settings.all_backends(MOVABLE)[name].url


async def _routes(
    settings: Settings, backends: Mapping[str, Backend], routings: Mapping[str, Routing]
) -> list[Finding]:
    findings = []
    for domain in MOVABLE:
        routing = routings.get(domain)
        if routing is None:
            findings.append(await _unplaced(settings, backends, domain))
            continue
        name = routing.authority.backend
        if name not in settings.all_backends(MOVABLE):
            detail = f"it is routed to backend {name!r}, which is not configured here"
            findings.append(Finding(f"route {domain}", False, detail, f"add [backends.{name}] to the configuration"))
        else:
            findings.append(Finding(f"route {domain}", True, f"{name}, phase {routing.phase}, epoch {routing.epoch}"))
    for domain, routing in routings.items():
        group, shard = parse_group(domain), routing.authority.backend
        if group is None or shard in backends or group.domain not in routings:
            continue
        whole_domain = routings[group.domain]
        if group.attempt in {place.attempt for place in (whole_domain.authority, whole_domain.mirror) if place}:
            whole, _, member = shard.partition("/")
            detail = f"slots {group.slots} are routed to shard {shard!r}, which is not configured here"
            findings.append(
                Finding(f"route {group.domain}", False, detail, f"add {member} to [backends.{whole}] members")
            )
    return findings


async def _unplaced(settings: Settings, backends: Mapping[str, Backend], domain: str) -> Finding:
    """A domain that the control store has no place for: a new deployment, or a control store that was lost."""
    what = f"route {domain}"
    for name, backend in backends.items():
        url = None if isinstance(backend, ShardedBackend) else _url(settings, name)
        if url is None or _absent(url):
            continue
        try:
            row = next((row for (held, _), row in (await backend.read_meta()).items() if held == domain), None)
        except DatalayerError:
            continue  # told of that backend already, or it has no tables yet
        if row is not None:
            detail = (
                f"the control store has no place for it, but {name} says {row.role} for deployment {row.deployment}"
            )
            return Finding(what, False, detail, "point [control] at that deployment's control store")
    try:
        first = settings.backend_of(domain).name
    except ConfigurationError:
        if domain not in OPTIONAL:
            raise
        return Finding(what, True, "no backend was given to it: nobody can use it")
    reason = backends[first].refuses(domain) if first in backends else None
    if reason is None:
        return Finding(what, True, f"not placed yet; {first} will be its first place")
    hint = f"[routes] {domain} = NAME of a backend that can"
    if domain in OPTIONAL and domain not in settings.routes:
        return Finding(what, True, f"no backend was given to it, so nobody can use it: {reason} ({hint})")
    return Finding(what, False, f"{first} cannot be its first place: {reason}", hint)


async def _meta(control: Control, backends: Mapping[str, Backend], routings: Mapping[str, Routing]) -> list[Finding]:
    """Whether backends say of themselves what the control store says of them."""
    findings = []
    metas: dict[str, Mapping[tuple[str, int], MetaRow]] = {}
    for domain, routing in routings.items():
        place = routing.authority
        if place.backend not in backends or _in_each_process(backends, routing):
            continue
        try:
            if place.backend not in metas:
                metas[place.backend] = await backends[place.backend].read_meta()
            row = metas[place.backend].get((domain, place.attempt))
            deployment = await control.deployment()
        except DatalayerError:
            continue  # told of that backend already
        what = f"route {domain}"
        if row is None:
            findings.append(Finding(what, False, f"{place.backend} holds no {domain} of attempt {place.attempt}"))
        elif row.deployment != deployment:
            detail = f"{place.backend} belongs to deployment {row.deployment}, the control store to {deployment}"
            findings.append(Finding(what, False, detail, "point [control] at that deployment's control store"))
        elif row.role == "retired" or row.epoch > routing.epoch:
            detail = f"{place.backend} says {row.role} at epoch {row.epoch}, the control store is at {routing.epoch}"
            way_out = "the control store was restored from an old copy: see the runbook"
            findings.append(Finding(what, False, detail, way_out))
    return findings


def _in_each_process(backends: Mapping[str, Backend], routing: Routing) -> bool:
    """Whether a soft domain lies in the memory of each process: nobody else can look into that."""
    backend = backends.get(routing.authority.backend)
    return routing.domain in SOFT_DOMAINS and backend is not None and backend.product == "memory"


async def _alone(control: Control, backends: Mapping[str, Backend], routings: Mapping[str, Routing]) -> list[Finding]:
    """Whether a fleet keeps presence where each process knows its own users alone."""
    parted = [name for name, routing in routings.items() if _in_each_process(backends, routing)]
    if not parted:
        return []
    try:
        number = len(await control.processes())
    except DatalayerError:
        return []  # told of the control store already
    what = " and ".join(parted)
    if number <= 1:
        return [Finding("memory", True, f"{what} in the memory of the process: right for one process, not for more")]
    detail = f"{what} lie in the memory of each of {number} processes: each knows only whom it serves itself"
    return [Finding("memory", False, detail, f"datalayer migrate {parted[0]} --to BACKEND")]


async def _listings(backends: Mapping[str, Backend], routings: Mapping[str, Routing], clock: Clock) -> list[Finding]:
    """How far users' lists are behind their conversations, wherever those lie now."""
    places = {
        routing.authority
        for name, routing in routings.items()
        if base_domain(name) == "conversations"
        and routing.authority.backend in backends
        and not isinstance(backends[routing.authority.backend], ShardedBackend)
    }
    behind, oldest = 0, []
    for place in places:
        store = backends[place.backend].store("conversations", place.attempt)
        try:
            number, version = await store.lag(LAG_MAX, Deadline(clock, PING_S))
        except DatalayerError:
            continue  # told of that backend already
        behind += number
        oldest += [] if version is None else [version]
    if not places:
        return []
    lag = lag_of(behind, min(oldest, default=None), clock.now_us())
    if not lag.behind:
        return [Finding("listings", True, "users' lists show every conversation")]
    detail = f"{lag.behind} members whose lists are behind, the oldest for {lag.oldest_s:.0f} s"
    late = lag.oldest_s > LISTS_LATE_S
    return [
        Finding("listings", not late, detail, "open a DataLayer, or look why it cannot write listings" if late else "")
    ]


async def _objects(
    settings: Settings, backends: Mapping[str, Backend], routings: Mapping[str, Routing], new_id: Callable[[], UUID]
) -> list[Finding]:
    """Whether every place of media stores, reads and deletes."""
    findings = []
    for place in _media_places(settings, routings):
        backend = backends.get(place.backend)
        if backend is None or backend.product not in OBJECT_STORES:
            continue
        url = _url(settings, place.backend)
        if url is not None and url.path is not None and not url.path.exists():
            continue  # the folder is made with the first thing that is stored
        what = f"media on {place.backend}"
        try:
            await backend.open()
        except DatalayerError:
            continue  # told of that backend already
        try:
            await probe(backend.store("media", place.attempt), new_id())
        except Failed as failed:
            findings.append(Finding(what, False, failed.detail, failed.way_out))
        else:
            findings.append(Finding(what, True, "a test object was stored once, read and deleted"))
    return findings


def _media_places(settings: Settings, routings: Mapping[str, Routing]) -> list[Place]:
    """Where media lie, or will lie first; memory needs no proof."""
    routing = routings.get("media")
    if routing is not None:
        return [place for place in (routing.authority, routing.mirror) if place is not None]
    try:
        return [Place(settings.backend_of("media").name)]
    except ConfigurationError:
        return []  # no backend was given to it


async def _search(places: Places, routings: Mapping[str, Routing]) -> list[Finding]:
    """Whether every index follows every place of messages and users, and how far it is behind."""
    places.learn(routings)
    findings = []
    for index in places.indexes.known():
        what = f"search index of attempt {index.attempt} on {index.backend}"
        writer = IndexWriter(places, index)
        try:
            off = [leaf for leaf, outbox in await writer.outboxes() if not await outbox.installed()]
            lag = await writer.lag() if not off else None
        except DatalayerError:
            continue  # told of that backend already
        if lag is None:
            detail = f"it does not follow {off[0].domain} on {off[0].place.backend}: its outbox is off"
            findings.append(Finding(what, False, detail, "datalayer search rebuild"))
        else:
            late = lag.oldest_s > LISTS_LATE_S
            detail = f"{lag.behind} keys behind, the oldest for {lag.oldest_s:.0f} s" if lag.behind else "in step"
            way_out = "open a DataLayer, or look why it cannot write the index" if late else ""
            findings.append(Finding(what, not late, detail, way_out))
    return findings
