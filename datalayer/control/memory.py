"""The control store in memory, for simulations and tests: a server's data, and clients over a wire that may fail.

Every call is one step of the server behind ``_call``, the wire of the memory store: an injector may lose the request
or the reply, delay either, refuse, hang, or crash the caller there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from datalayer.control.base import LEASE_S
from datalayer.control.memory_server import MemoryControlServer, control_server_named
from datalayer.control.rules import acknowledges, log_name
from datalayer.control.waiting import listening_poll_s, wait_event
from datalayer.stores.memory.backend import MemoryBackend
from datalayer.stores.memory.faults import Injector, no_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from datalayer.clock import Deadline
    from datalayer.control.base import (
        Admitted,
        AuditRow,
        Chunk,
        IntentLog,
        Migration,
        ProcessInfo,
        QuarantineRow,
        Step,
        StepState,
    )
    from datalayer.control.memory_log import MemoryLog
    from datalayer.domains.record import Key, Record
    from datalayer.routing.route import Place, Routing
    from datalayer.stores.base import GuardState, Journal, Token

__all__ = ["MemoryControl", "MemoryControlServer", "control_server_named"]
T = TypeVar("T")


class MemoryControl:
    """One client of a ``MemoryControlServer``. ``timeout_s`` bounds calls that carry no deadline."""

    def __init__(
        self,
        server: MemoryControlServer,
        *,
        client: str = "client",
        inject: Injector = no_faults,
        timeout_s: float = 5.0,
    ) -> None:
        self.server: Final = server
        self._wire = MemoryBackend(server.machine, client=client, inject=inject, timeout_s=timeout_s)
        self._logs: dict[str, MemoryIntents] = {}

    async def _call(
        self, name: str, effect: Callable[[], T], *, write: bool = True, deadline: Deadline | None = None
    ) -> T:
        """The one way to the server."""
        return await self._wire.call(f"control.{name}", effect, deadline, write=write)

    async def open(self, *, create: bool) -> None:
        """There is no schema to check."""
        await self._wire.open()

    async def close(self) -> None:
        await self._wire.close()

    async def deployment(self) -> str:
        return await self._call("deployment", lambda: self.server.deployment, write=False)

    # routes
    async def ensure_routes(self, first: Mapping[str, Place]) -> None:
        await self._call("ensure_routes", lambda: self.server.ensure_routes(first))

    async def routings(self) -> tuple[int, dict[str, Routing]]:
        return await self._call("routings", lambda: (self.server.news, dict(self.server.routes)), write=False)

    async def news(self) -> int:
        """The counter now."""
        return await self._call("news", lambda: self.server.news, write=False)

    async def wait_news(self, seen: int, timeout_s: float, *, poll_s: float) -> int:
        clock = self.server.clock
        ends = clock.monotonic() + timeout_s
        stirred = asyncio.Event()
        self.server.waiting[stirred] = None
        try:
            while True:
                stirred.clear()
                news = await self.news()
                left = ends - clock.monotonic()
                if news != seen or left <= 0:
                    return news
                pause_s = listening_poll_s(poll_s) if self.server.pushes else poll_s
                await wait_event(stirred, min(pause_s, left))
        finally:
            self.server.waiting.pop(stirred, None)

    async def publish(self, token: Token, routing: Routing, *, actor: str) -> Routing:
        return await self._call("publish", lambda: self.server.publish(token, routing, actor))

    # fleet
    async def register(self, info: ProcessInfo, epochs: Mapping[str, int]) -> None:
        await self._call("register", lambda: self.server.register(info, epochs, LEASE_S))

    async def renew(self, process_id: str, epochs: Mapping[str, int], lease_s: float = LEASE_S) -> int:
        return await self._call("renew", lambda: self.server.renew(process_id, epochs, lease_s))

    async def leave(self, process_id: str) -> None:
        await self._call("leave", lambda: self.server.leave(process_id))

    async def processes(self) -> list[ProcessInfo]:
        return await self._call("processes", self.server.processes, write=False)

    async def behind(self, domain: str, epoch: int) -> list[ProcessInfo]:
        def effect() -> list[ProcessInfo]:
            return [info for info in self.server.processes() if not acknowledges(info, domain, epoch)]

        return await self._call("behind", effect, write=False)

    async def deregister(self, patterns: Sequence[str], *, actor: str) -> list[ProcessInfo]:
        return await self._call("deregister", lambda: self.server.deregister(patterns, actor))

    # leases
    async def take(self, name: str, holder: str, ttl_s: float) -> int | None:
        return await self._call("take", lambda: self.server.take(name, holder, ttl_s))

    async def keep(self, name: str, token: int, ttl_s: float) -> None:
        await self._call("keep", lambda: self.server.keep(name, token, ttl_s))

    async def release(self, name: str, token: int) -> None:
        await self._call("release", lambda: self.server.release(name, token))

    async def holder(self, name: str) -> tuple[str, float] | None:
        return await self._call("holder", lambda: self.server.holder(name), write=False)

    # migrations
    async def start_migration(
        self, token: Token, migration: Migration, *, actor: str, within: Token | None = None
    ) -> Migration:
        return await self._call(
            "start_migration", lambda: self.server.start_migration(token, migration, actor, within=within)
        )

    async def migrations(self, domain: str | None = None) -> list[Migration]:
        return await self._call("migrations", lambda: self.server.migrations_of(domain), write=False)

    async def update_migration(self, token: Token, migration_id: str, **changes: Any) -> Migration:
        return await self._call("update_migration", lambda: self.server.update_migration(token, migration_id, changes))

    async def set_options(self, migration_id: str, options: Mapping[str, Any], *, actor: str) -> None:
        await self._call("set_options", lambda: self.server.set_options(migration_id, options, actor))

    async def next_attempt(self, domain: str) -> int:
        return await self._call("next_attempt", lambda: self.server.next_attempt(domain))

    async def record_step(self, token: Token, action: str, state: StepState, detail: str = "") -> None:
        await self._call("record_step", lambda: self.server.record_step(token, action, state, detail))

    async def steps(self, migration_id: str, limit: int = 200) -> list[Step]:
        return await self._call("steps", lambda: self.server.steps(migration_id, limit), write=False)

    # chunks
    async def plan_chunks(self, run: str, ranges: Sequence[str]) -> None:
        await self._call("plan_chunks", lambda: self.server.plan_chunks(run, ranges))

    async def chunks(self, run: str) -> list[Chunk]:
        return await self._call("chunks", lambda: self.server.chunks(run), write=False)

    async def take_chunk(self, run: str, holder: str, ttl_s: float) -> Chunk | None:
        return await self._call("take_chunk", lambda: self.server.take_chunk(run, ttl_s))

    async def checkpoint(self, chunk: Chunk, ttl_s: float) -> None:
        await self._call("checkpoint", lambda: self.server.checkpoint(chunk, ttl_s))

    async def drop_run(self, run: str) -> None:
        await self._call("drop_run", lambda: self.server.drop_run(run))

    # quarantine
    async def quarantine(self, migration_id: str, rows: Sequence[QuarantineRow]) -> None:
        await self._call("quarantine", lambda: self.server.quarantine(migration_id, rows))

    async def quarantined(self, migration_id: str, limit: int = 1000) -> list[QuarantineRow]:
        return await self._call("quarantined", lambda: self.server.quarantined(migration_id, limit), write=False)

    async def release_quarantine(self, migration_id: str, keys: Sequence[Key]) -> None:
        await self._call("release_quarantine", lambda: self.server.release_quarantine(migration_id, keys))

    # documents
    async def put_document(self, migration_id: str, name: str, value: Mapping[str, Any]) -> None:
        def effect() -> None:
            self.server.documents[migration_id, name] = dict(value)

        await self._call("put_document", effect)

    async def ensure_document(self, migration_id: str, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
        def effect() -> dict[str, Any]:
            return dict(self.server.documents.setdefault((migration_id, name), dict(value)))

        return await self._call("ensure_document", effect)

    async def document(self, migration_id: str, name: str) -> dict[str, Any] | None:
        def effect() -> dict[str, Any] | None:
            stored = self.server.documents.get((migration_id, name))
            return None if stored is None else dict(stored)

        return await self._call("document", effect, write=False)

    # intents and audit
    def intents(self, domain: str, attempt: int, side: Literal["source", "target"]) -> IntentLog:
        name = log_name(domain, attempt, side)
        if name not in self._logs:
            self._logs[name] = MemoryIntents(self.server, self._wire, domain, name)
        return self._logs[name]

    async def audit(self, actor: str, action: str, detail: str) -> None:
        await self._call("audit", lambda: self.server.note(actor, action, detail))

    async def audit_log(self, limit: int = 100) -> list[AuditRow]:
        return await self._call("audit_log", lambda: self.server.audit[::-1][:limit], write=False)


class _LogClient:
    """Calls on one log of the server."""

    def __init__(self, server: MemoryControlServer, wire: MemoryBackend, domain: str, name: str) -> None:
        self._server = server
        self._wire = wire
        self._domain = domain
        self._name = name

    @property
    def _log(self) -> MemoryLog:
        return self._server.log(self._name)

    async def _call(
        self, name: str, effect: Callable[[], T], *, write: bool = True, deadline: Deadline | None = None
    ) -> T:
        return await self._wire.call(f"intents.{name}", effect, deadline, domain=self._domain, write=write)


class MemoryIntents(_LogClient):
    """Gate and journal of (domain, attempt, side)."""

    def __init__(self, server: MemoryControlServer, wire: MemoryBackend, domain: str, name: str) -> None:
        super().__init__(server, wire, domain, name)
        self.journal: Journal = MemoryIntentJournal(server, wire, domain, name)

    async def admit(self, record: Record, *, lead: int, create: bool, deadline: Deadline | None) -> Admitted:
        def effect() -> Admitted:
            return self._log.admit(record, lead, self._now(), create=create)

        return await self._call("admit", effect, deadline=deadline)

    async def install(self, token: Token, *, sealed: bool) -> None:
        await self._call("install", lambda: self._as(token).install(sealed=sealed))

    async def fence(self, token: Token, flip: int, lapse_s: float, lock_timeout_s: float) -> None:
        await self._call("fence", lambda: self._as(token).fence(flip, self._now() + lapse_s))

    async def seal(self, token: Token, flip: int) -> None:
        await self._call("seal", lambda: self._as(token).seal(flip, self._now()))

    async def open(self, flip: int) -> None:
        await self._call("open", lambda: self._log.open(flip))

    async def state(self) -> GuardState:
        return await self._call("state", lambda: self._log.state(self._now()), write=False)

    async def set_floor(self, version: int) -> None:
        await self._call("set_floor", lambda: self._log.set_floor(version))

    async def remove(self, token: Token, *, keep_fence: bool) -> None:
        await self._call("remove", lambda: self._as(token).remove(keep_fence=keep_fence))

    def _as(self, token: Token) -> MemoryLog:
        self._server.check(token)
        return self._log

    def _now(self) -> float:
        return self._server.clock.monotonic()


class MemoryIntentJournal(_LogClient):
    """The journal of one log."""

    def __init__(self, server: MemoryControlServer, wire: MemoryBackend, domain: str, name: str) -> None:
        super().__init__(server, wire, domain, name)
        self._positions: dict[tuple[int, int], Key] = {}

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1)) -> list[Record]:
        after = self._positions.get(part)
        records = await self._call("pending", lambda: self._log.pending(limit, part, after), write=False)
        if records:
            self._positions[part] = records[-1].ident
        return records

    async def settle(self, seen: Sequence[Record]) -> None:
        await self._call("settle", lambda: self._log.settle(seen))

    async def backlog(self) -> int:
        return await self._call("backlog", lambda: len(self._log.live()), write=False)

    async def dirty(self, routings: Sequence[bytes], keys: Sequence[Key] | None = None) -> bool:
        return await self._call("dirty", lambda: self._log.dirty(routings, keys), write=False)

    async def foreign_writers(self) -> list[str]:
        return []
