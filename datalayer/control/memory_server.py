"""The data of an in-memory control store: what stays when every client has crashed.

Each method is one atomic step, so what takes a transaction in SQL is plain code here, and the behaviour is the same:
the contract tests run on both. Times are the server's clock's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from datalayer.control.base import AuditRow, Chunk, Step, coordinator_lease
from datalayer.control.memory_log import MemoryLog
from datalayer.control.rules import already_migrating, changed, lost, matches, options_text, rivals, with_options
from datalayer.errors import Closed, LostLease, NotFound, PreconditionFailed
from datalayer.routing.route import Phase, Routing
from datalayer.stores.memory.server import MemoryServer

if TYPE_CHECKING:
    from asyncio import Event
    from collections.abc import Mapping, Sequence

    from datalayer.clock import Clock
    from datalayer.control.base import Migration, ProcessInfo, QuarantineRow, StepState
    from datalayer.domains.record import Key
    from datalayer.routing.route import Place
    from datalayer.stores.base import Token


@dataclass(slots=True)
class _Lease:
    token: int = 0
    holder: str = ""
    until: float = 0.0


@dataclass(slots=True)
class _Process:
    info: ProcessInfo
    seen: float
    until: float


@dataclass(slots=True)
class _Chunk:
    chunk: Chunk
    until: float = 0.0


class MemoryControlServer:
    """One control store in memory, shared by any number of clients.

    ``machine`` is what it runs on: its name, its clock, its outages (``machine.up = False``). ``pushes = False`` loses
    every notification, so that clients find news by polling alone.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self.machine: Final = MemoryServer(name, clock)
        self.clock: Final = clock
        self.deployment: Final = f"memory:{name}"
        self.pushes = True
        self.news = 0
        self.waiting: Final[dict[Event, None]] = {}
        """Clients that wait for news, woken in this order."""
        self.routes: Final[dict[str, Routing]] = {}
        self.documents: Final[dict[tuple[str, str], dict[str, Any]]] = {}
        self.audit: Final[list[AuditRow]] = []
        self.migrations: Final[dict[str, Migration]] = {}
        self._steps: Final[list[tuple[str, Step]]] = []
        self._attempts: Final[dict[str, int]] = {}
        self._leases: Final[dict[str, _Lease]] = {}
        self._processes: Final[dict[str, _Process]] = {}
        self._runs: Final[dict[str, list[_Chunk]]] = {}
        self._quarantine: Final[dict[str, dict[Key, QuarantineRow]]] = {}
        self._logs: Final[dict[str, MemoryLog]] = {}

    # routes
    def ensure_routes(self, first: Mapping[str, Place]) -> None:
        """First placements."""
        missing = {domain: place for domain, place in first.items() if domain not in self.routes}
        for domain, place in missing.items():
            self.routes[domain] = Routing(domain, 1, Phase.SOURCE, place)
        if missing:
            self._raise_news()

    def publish(self, token: Token, routing: Routing, actor: str) -> Routing:
        """The next epoch."""
        self.check(token)
        stored = self.routes.get(routing.domain)
        if stored is None:
            raise PreconditionFailed(f"{routing.domain} has no routing to replace")
        published = replace(routing, epoch=stored.epoch + 1)
        self.routes[routing.domain] = published
        migration = self.migrations.get(token.migration)
        if migration is not None:
            now = self.clock.now_us()
            self.migrations[migration.id] = replace(migration, phase=routing.phase.value, updated_us=now)
        self.note(actor, "publish", f"{routing.domain} epoch {published.epoch} phase {published.phase}")
        self._raise_news()
        return published

    def _raise_news(self) -> None:
        self.news += 1
        if self.pushes and self.machine.up:
            for event in self.waiting:
                event.set()

    # fleet
    def register(self, info: ProcessInfo, epochs: Mapping[str, int], lease_s: float) -> None:
        """Enter a process."""
        now = self.clock.monotonic()
        self._processes[info.id] = _Process(replace(info, epochs=dict(epochs)), now, now + lease_s)

    def renew(self, process_id: str, epochs: Mapping[str, int], lease_s: float) -> int:
        """Prolong, acknowledge."""
        process = self._processes.get(process_id)
        if process is None:
            raise Closed("this process was deregistered from the control store", hint="open the data layer again")
        self.register(process.info, epochs, lease_s)
        return self.news

    def leave(self, process_id: str) -> None:
        """Forget a process."""
        self._processes.pop(process_id, None)

    def processes(self) -> list[ProcessInfo]:
        """Everybody, by id."""
        now = self.clock.monotonic()
        return [
            replace(process.info, seen_ago_s=now - process.seen, lease_left_s=process.until - now)
            for _, process in sorted(self._processes.items())
        ]

    def deregister(self, patterns: Sequence[str], actor: str) -> list[ProcessInfo]:
        """Remove by globs."""
        removed = [info for info in self.processes() if matches(info, patterns)]
        for info in removed:
            del self._processes[info.id]
            self.note(actor, "deregister", f"process {info.id} ({info.host}:{info.pid} {info.name})")
        return removed

    # leases
    def take(self, name: str, holder: str, ttl_s: float) -> int | None:
        """A lease, by token."""
        assert holder, "a lease has a holder"
        now = self.clock.monotonic()
        lease = self._leases.setdefault(name, _Lease())
        if lease.until > now and lease.holder != holder:
            return None
        if lease.until <= now:
            lease.token += 1
        lease.holder, lease.until = holder, now + ttl_s
        return lease.token

    def keep(self, name: str, token: int, ttl_s: float) -> None:
        """Prolong."""
        if not self._holds(name, token):
            raise LostLease(f"the lease {name!r} went to somebody else")
        self._leases[name].until = self.clock.monotonic() + ttl_s

    def release(self, name: str, token: int) -> None:
        """Give back; the row stays, so that no token is used twice."""
        if self._holds(name, token):
            self._leases[name] = _Lease(token)

    def holder(self, name: str) -> tuple[str, float] | None:
        """Who holds it."""
        lease = self._leases.get(name)
        left = 0.0 if lease is None else lease.until - self.clock.monotonic()
        return None if lease is None or left <= 0 else (lease.holder, left)

    def check(self, token: Token) -> None:
        """Refuse a token that is not the newest."""
        if not self._holds(coordinator_lease(token.domain), token.value):
            raise lost(token)

    def _holds(self, name: str, token: int) -> bool:
        lease = self._leases.get(name)
        return lease is not None and lease.token == token and lease.holder != ""

    # migrations
    def start_migration(
        self, token: Token, migration: Migration, actor: str, *, within: Token | None = None
    ) -> Migration:
        """Enter a migration."""
        assert token.domain == migration.domain, "a token is of the migration's domain"
        self.check(token)
        if within is not None:
            self.check(within)
        base, below = rivals(migration.domain)
        known = (m for m in self.migrations.values() if not m.finished)
        rival = (
            m
            for m in known
            if m.domain == migration.domain
            or (m.domain == base and m.phase != Phase.TARGET)
            or m.domain.startswith(below)
        )
        unfinished = next(rival, None)
        if unfinished is not None:
            raise already_migrating(migration.domain, unfinished.id)
        now = self.clock.now_us()
        stored = replace(migration, options=dict(migration.options), started_us=now, updated_us=now)
        self.migrations[migration.id] = stored
        places = f"{migration.source.backend} -> {migration.target.backend}"
        self.note(actor, "start", f"{migration.id}: {migration.domain} {places}")
        return stored

    def migrations_of(self, domain: str | None) -> list[Migration]:
        """Newest first."""
        found = [m for m in self.migrations.values() if domain is None or m.domain == domain]
        return sorted(found, key=lambda m: (m.started_us, m.id), reverse=True)

    def update_migration(self, token: Token, migration_id: str, changes: Mapping[str, Any]) -> Migration:
        """Set fields by a coordinator."""
        self.check(token)
        stored = self._migration(migration_id)
        assert stored.domain == token.domain, "a token is of the migration's domain"
        self.migrations[migration_id] = changed(stored, changes, self.clock.now_us())
        return self.migrations[migration_id]

    def set_options(self, migration_id: str, options: Mapping[str, Any], actor: str) -> None:
        """Set options by an operator."""
        stored = self._migration(migration_id)
        self.migrations[migration_id] = with_options(stored, options, self.clock.now_us())
        self.note(actor, "options", f"{migration_id}: {options_text(options)}")

    def next_attempt(self, domain: str) -> int:
        """Never used before."""
        self._attempts[domain] = self._attempts.get(domain, 0) + 1
        return self._attempts[domain]

    def record_step(self, token: Token, action: str, state: StepState, detail: str) -> None:
        """Enter a step."""
        self.check(token)
        step = Step(len(self._steps) + 1, action, state, detail, token.value, self.clock.now_us())
        self._steps.append((token.migration, step))

    def steps(self, migration_id: str, limit: int) -> list[Step]:
        """Newest first."""
        return [step for migration, step in reversed(self._steps) if migration == migration_id][:limit]

    def _migration(self, migration_id: str) -> Migration:
        if migration_id not in self.migrations:
            raise NotFound(f"there is no migration {migration_id!r}")
        return self.migrations[migration_id]

    # chunks
    def plan_chunks(self, run: str, ranges: Sequence[str]) -> None:
        """Once a run."""
        chunks = [_Chunk(Chunk(run, at, range_, None, 0, "", False)) for at, range_ in enumerate(ranges)]
        self._runs.setdefault(run, chunks)

    def chunks(self, run: str) -> list[Chunk]:
        """In order."""
        return [slot.chunk for slot in self._runs.get(run, ())]

    def take_chunk(self, run: str, ttl_s: float) -> Chunk | None:
        """The first free one."""
        now = self.clock.monotonic()
        for slot in self._runs.get(run, ()):
            if not slot.chunk.done and slot.until <= now:
                slot.chunk = replace(slot.chunk, lease_token=slot.chunk.lease_token + 1)
                slot.until = now + ttl_s
                return slot.chunk
        return None

    def checkpoint(self, chunk: Chunk, ttl_s: float) -> None:
        """Progress of a chunk."""
        for slot in self._runs.get(chunk.run, ()):
            if slot.chunk.number == chunk.number and slot.chunk.lease_token == chunk.lease_token:
                slot.chunk = replace(chunk, range=slot.chunk.range)
                slot.until = self.clock.monotonic() + ttl_s
                return
        raise LostLease(f"chunk {chunk.number} of {chunk.run} went to another worker")

    def drop_run(self, run: str) -> None:
        """Forget a run."""
        self._runs.pop(run, None)

    # quarantine
    def quarantine(self, migration_id: str, rows: Sequence[QuarantineRow]) -> None:
        """Upsert."""
        named = self._quarantine.setdefault(migration_id, {})
        named.update(((row.kind, row.key), row) for row in rows)

    def quarantined(self, migration_id: str, limit: int) -> list[QuarantineRow]:
        """Oldest first."""
        rows = self._quarantine.get(migration_id, {}).values()
        return sorted(rows, key=lambda row: (row.at_us, row.kind, row.key))[:limit]

    def release_quarantine(self, migration_id: str, keys: Sequence[Key]) -> None:
        """Remove."""
        for key in keys:
            self._quarantine.get(migration_id, {}).pop(key, None)

    # audit and intents
    def note(self, actor: str, action: str, detail: str) -> None:
        """Append to the audit log."""
        self.audit.append(AuditRow(len(self.audit) + 1, self.clock.now_us(), actor, action, detail))

    def log(self, name: str) -> MemoryLog:
        """Gate and intents of one side of an attempt."""
        return self._logs.setdefault(name, MemoryLog(name))


SERVERS: Final[dict[str, MemoryControlServer]] = {}
"""The servers that ``memory://NAME`` means, by name, as in the memory store: the network that finds a real one."""


def control_server_named(name: str, clock: Clock) -> MemoryControlServer:
    """The server of a URL, made when it is named for the first time."""
    if name not in SERVERS:
        SERVERS[name] = MemoryControlServer(name, clock)
    return SERVERS[name]
