"""Reads over the replicas of a backend: looking at them in the background, choosing one, falling back on the primary.

Each server is looked at by a task of its own, so that one that hangs does not make the others look old. A look is due
every quarter of a second, and sooner while somebody asks and the server is seen to move.

Whatever goes wrong at a replica is told to nobody: the read is repeated at the primary within the same deadline, and
the replica serves nothing until it has been looked at again (the one place of this component that swallows errors).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from datalayer.clock import Deadline
from datalayer.errors import DatalayerError, InvalidArgument
from datalayer.routing.consistency import Level, ambient_level
from datalayer.routing.replicas import Demand, Standings, cost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from datalayer.clock import Clock
    from datalayer.routing.consistency import Callers
    from datalayer.routing.route import Routing
    from datalayer.stores.replicated import ReplicaServer, Replicated

R = TypeVar("R")
LOOK_S: Final = 0.25
LOOK_SOONEST_S: Final = 0.05
LOOK_TIMEOUT_S: Final = 1.0
_DEFAULT: Final = Level()


class ReplicaWatch:
    """What one process knows of one backend's replicas, kept up to date while it runs."""

    def __init__(
        self, backend: Replicated, clock: Clock, jitter: Callable[[], float], *, look_s: float = LOOK_S
    ) -> None:
        self.clock = clock
        self.servers = list(backend.replicas)
        self.standings = Standings.of(server.name for server in self.servers)
        self.served: Counter[str] = Counter()
        """Reads by who served them: a replica's name, or "primary"."""
        self._backend = backend
        self.jitter = jitter
        self._look_s = look_s
        self._stopped = asyncio.Event()
        self._asked: list[asyncio.Event] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Look at all servers from now on, until ``stop``."""
        assert not self._tasks, "a watch is started once"
        for look in (self._look_at_primary, *(self._looker(server) for server in self.servers)):
            asked = asyncio.Event()
            self._asked.append(asked)
            self._tasks.append(asyncio.create_task(self._watch(look, asked), name="datalayer-replicas"))

    async def stop(self) -> None:
        """Look no more. Idempotent."""
        self._stopped.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def ask(self) -> None:
        """Look sooner than usual: a read could not go to a replica for want of news."""
        for asked in self._asked:
            asked.set()

    async def look(self) -> None:
        """Look at every server once, now."""
        await asyncio.gather(self._look_at_primary(), *(self._looker(server)() for server in self.servers))

    def status(self) -> list[dict[str, Any]]:
        """Each replica for health reports: name, ok, lag_s (at most; None when unknown), lag_bytes, in_use, reason."""
        now = self.clock.monotonic()
        found = []
        for server in self.servers:
            lag_s = self.standings.lag_s(server.name, now)
            trouble = self.standings.trouble(server.name)
            found.append(
                {
                    "name": server.name,
                    "ok": not trouble,
                    "lag_s": None if lag_s == float("inf") else round(lag_s, 3),
                    "lag_bytes": self.standings.lag_bytes(server.name),
                    "in_use": server.in_use,
                    "reads": self.served[server.name],
                    "reason": trouble,
                }
            )
        return found

    async def _watch(self, look: Callable[[], Awaitable[bool]], asked: asyncio.Event) -> None:
        soonest_s = LOOK_SOONEST_S
        while not self._stopped.is_set():
            asked.clear()
            moved = await look()
            # Asking again and again does not make a server move that stands still.
            soonest_s = LOOK_SOONEST_S if moved else min(2 * soonest_s, self._look_s)
            await _within(self._stopped, min(soonest_s, self._look_s))
            rest_s = self._look_s * (0.75 + 0.5 * self.jitter()) - soonest_s
            if rest_s > 0 and not self._stopped.is_set():
                await _within(asked, rest_s)

    async def _look_at_primary(self) -> bool:
        asked_at = self.clock.monotonic()
        try:
            end = await self._backend.position(Deadline(self.clock, LOOK_TIMEOUT_S))
        except DatalayerError as error:
            self.standings.primary_lost(error.message)
            return False
        return self.standings.saw_primary(asked_at, end)

    def _looker(self, server: ReplicaServer) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            try:
                found = await server.look(Deadline(self.clock, LOOK_TIMEOUT_S))
            except DatalayerError as error:
                self.standings.lost(server.name, error.message)
                return False
            return self.standings.saw_replica(server.name, self.clock.monotonic(), found)

        return look


class ReplicaReads:
    """The reads of one domain under one routing that is at rest."""

    def __init__(self, watch: ReplicaWatch, callers: Callers, routing: Routing) -> None:
        assert routing.at_rest, "replicas know nothing of journals"
        self._watch = watch
        self._callers = callers
        self._routing = routing
        self._adopted_at = watch.clock.monotonic()
        place = routing.authority
        self._stores = {server.name: server.store(routing.domain, place.attempt) for server in watch.servers}

    async def read(self, call: Callable[[Any, Deadline], Awaitable[R]], authority: Any, deadline: Deadline) -> R:
        """``call`` at a replica that may serve it, else (or when that fails) at the authority."""
        server = self._choose(ambient_level.get() or _DEFAULT)
        if server is not None:
            # A replica that hangs must leave time for the primary.
            share = Deadline(self._watch.clock, deadline.remaining() / 2)
            try:
                found = await call(self._stores[server.name], share)
            except InvalidArgument:
                raise
            except DatalayerError as error:
                self._watch.standings.lost(server.name, error.message)
                self._watch.ask()
            else:
                self._watch.served[server.name] += 1
                return found
        self._watch.served["primary"] += 1
        return await call(authority, deadline)

    def _choose(self, level: Level) -> ReplicaServer | None:
        if level.name == "primary":
            return None
        standings, now = self._watch.standings, self._watch.clock.monotonic()
        needed = standings.needed(self._demand(level))
        able = [] if needed is None else standings.able(needed, level.max_lag_s, now)
        if not able:
            self._watch.ask()
            return None
        servers = self._watch.servers
        if len(servers) == 1:
            return servers[0] if servers[0].in_use < servers[0].size else None
        found = [server for server in servers if server.name in able and server.in_use < server.size]
        if not found:
            return None

        def price(server: ReplicaServer) -> float:
            return cost(server.in_use, standings.lag_s(server.name, now), level.max_lag_s, self._watch.jitter())

        return min(found, key=price)

    def _demand(self, level: Level) -> Demand:
        domain, epoch = self._routing.domain, self._routing.epoch
        if level.name == "replica":
            return Demand(epoch, self._adopted_at)
        since = max(self._adopted_at, self._callers.mark(domain))
        return Demand(epoch, since, self._callers.positions(domain))


async def _within(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
