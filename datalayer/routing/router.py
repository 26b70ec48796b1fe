"""The router of one domain: every read and write of the application passes here, and knows no phase.

An operation takes one route at its start. A read goes to the authority, or during a cut-over by the journal-first
rule (I3): a key that is dirty in the authority's journal is read at the authority, a clean one at the mirror, where
every acknowledged write of it has arrived. A write that meets a fence was rolled back whole; it waits for the next
routing, or for the fence to lapse, up to its own deadline - no client sees an error caused by a flip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from datalayer.errors import Closed, ConfigurationError, DeadlineExceeded, Fenced, Overloaded, StaleRoute, Unavailable
from datalayer.ids import slot_of
from datalayer.routing.route import Place, Routing
from datalayer.routing.within import within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from datalayer.clock import Deadline
    from datalayer.routing.lease import Lease
    from datalayer.routing.places import Route
    from datalayer.stores.base import Executed

R = TypeVar("R")
Jitter = Callable[[], float]
"""Random numbers from 0 to 1, passed in."""
HELD_MAX: Final = 10_000
RETRY_S: Final = 0.1
"""How often a held write looks whether the fence has lapsed; the end of a hold is news and comes at once."""
RELEASE_JITTER_S: Final = 0.005


class Router:
    """Routes one domain's operations."""

    def __init__(
        self, domain: str, lease: Lease, ask_news: Callable[[], None], jitter: Jitter, *, nested: bool = False
    ) -> None:
        """``nested``: one slot group's router, inside an operation of its domain's router. What it is refused may be
        due to either route, so it gives up after one wait without news, and the outer one goes on waiting.
        """
        self.domain = domain
        self._nested = nested
        self._lease = lease
        self._ask_news = ask_news
        self._jitter = jitter
        self._route: Route | None = None
        self._older: list[Route] = []
        self._changed = asyncio.Event()
        self._held = 0
        self._unreachable = ""
        self._unplaced = self._way_out = ""
        self.on_answer: Callable[[str], None] = _nobody
        """Told of each write that was answered or refused, with the domain's name."""
        self.older_in_use: Callable[[], int | None] = _none
        """The oldest epoch of this domain that somebody else still goes by, if any."""
        self._unbuilt: Place | None = None
        self.stale: Routing | None = None
        """The routing under which a store said last that its place does not exist."""

    @property
    def route(self) -> Route:
        """The route that new operations use."""
        if self._route is None:
            if self._unplaced:
                raise ConfigurationError(self._unplaced, hint=self._way_out)
            if self._unreachable:
                raise Unavailable(self._unreachable)
            raise Closed
        return self._route

    @property
    def serves(self) -> bool:
        """Whether a route was adopted."""
        return self._route is not None

    @property
    def routing(self) -> Routing:
        """The routing that new operations use."""
        return self.route.routing

    @property
    def held(self) -> int:
        """How many writes wait for the end of a hold."""
        return self._held

    async def close_eager(self) -> None:
        """Stop bringing own writes to the mirror; what is queued stays in the journal."""
        if self._route is not None and self._route.eager is not None:
            await self._route.eager.close()

    def disown(self) -> None:
        """Refuse every further operation (in a forked child)."""
        self._route = None

    def wait_for(self, reason: str) -> None:
        """Answer Unavailable until a route is adopted: the store of a slot group does not answer."""
        self._unreachable = reason

    def unplaced(self, reason: str, hint: str = "") -> None:
        """Answer ConfigurationError until a route is adopted: no backend was given to this domain."""
        self._unplaced = reason
        self._way_out = hint or f"[routes] {self.domain} = NAME of a backend that can"

    def adopt(self, route: Route) -> None:
        """Use this route for every operation that begins from now on."""
        if self._route is not None:
            self._older.append(self._route)
        self._route = route
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def acknowledged(self) -> int:
        """The epoch this process may acknowledge.

        The present one - but where writers of a last-writer authority allotted versions themselves, only once the
        writes begun under the older route have ended.
        """
        unjournalled = (r for r in self._older if r.counted or (r.last_writer and r.routing.at_rest))
        self._older = [r for r in unjournalled if r.inflight or r.under_way]
        oldest = self.older_in_use()
        epoch = self._older[0].routing.epoch if self._older else self.routing.epoch
        return epoch if oldest is None else min(epoch, oldest)

    def unbuilt(self, place: Place) -> None:
        """Answer no read from this place (ConfigurationError): the index there does not hold what was before it."""
        self._unbuilt = place

    async def read(
        self, routings: Sequence[bytes] | None, call: Callable[[Any, Deadline], Awaitable[R]], deadline: Deadline
    ) -> R:
        """Run ``call(store, deadline)`` on the store that must be read now.

        ``routings``: the routing keys the call touches; None when it may touch any.
        """
        while True:
            route = self.route
            if self._unbuilt is not None and route.routing.authority == self._unbuilt:
                raise ConfigurationError(
                    f"{self.domain} on {self._unbuilt.backend!r} does not hold yet what was written before it was placed",
                    hint="datalayer search rebuild",
                )
            if not route.journal_first:
                try:
                    if route.replicas is not None:
                        return await route.replicas.read(call, route.authority, deadline)
                    return await call(route.authority, deadline)
                except StaleRoute as error:
                    await self._wait_change(route, deadline, error)
                    continue
            await self._lease.wait(deadline)
            try:
                store = await self._journal_first(route, routings, deadline)
                return await call(store, deadline)
            except StaleRoute as error:
                await self._wait_change(route, deadline, error)

    async def write(self, mutation: Any, deadline: Deadline) -> Any:
        """Run one mutation at the authority; the entity afterwards."""
        return (await self.execute(mutation, deadline)).entity

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        """Run one mutation at the authority."""
        while True:
            route = self.route
            route.inflight += 1
            try:
                executed = await route.execute(mutation, deadline)
            except (Fenced, StaleRoute) as error:
                refused = error
            else:
                if route.eager is not None and executed.records:
                    route.eager.offer(executed.records)
                return executed
            finally:
                route.inflight -= 1
                self.on_answer(self.domain)
            await self._hold(route, deadline, refused)

    async def _journal_first(self, route: Route, routings: Sequence[bytes] | None, deadline: Deadline) -> Any:
        assert route.guard is not None, "a journal-first phase has a journal"
        journal = route.guard.journal
        if routings is None:
            dirty = await within(deadline, journal.backlog(), DeadlineExceeded) > 0
        else:
            percent = route.routing.canary_pct
            if percent < 100 and any(slot_of(routing) * 100 >= percent * 4096 for routing in routings):
                return route.authority
            dirty = await within(deadline, journal.dirty(routings), DeadlineExceeded)
        return route.authority if dirty else route.mirror

    async def _hold(self, route: Route, deadline: Deadline, refused: Fenced | StaleRoute) -> None:
        if self._held >= HELD_MAX:
            raise Overloaded(f"more than {HELD_MAX} writes of {self.domain} wait for the end of a cut-over")
        self._held += 1
        try:
            await self._wait_change(route, deadline, refused)
        finally:
            self._held -= 1

    async def _wait_change(self, route: Route, deadline: Deadline, cause: Fenced | StaleRoute) -> None:
        """Wait for another route, or a moment: a fence that lapses is announced by nobody.

        Raises ``cause`` of a nested router when nothing has changed.
        """
        if self._route is not route:
            return
        if isinstance(cause, StaleRoute):
            self.stale = route.routing
        left = deadline.remaining()
        if left <= 0:
            message = f"{self.domain} could not be reached before the deadline: {cause.message}"
            error = Unavailable if isinstance(cause, Fenced) else DeadlineExceeded
            raise error(message) from cause
        changed = self._changed
        self._ask_news()
        try:
            async with asyncio.timeout(min(left, RETRY_S * (0.5 + self._jitter()))):
                await changed.wait()
        except TimeoutError:
            if self._nested:
                raise cause from None
            return
        await asyncio.sleep(self._jitter() * RELEASE_JITTER_S)


def _none() -> None:
    """No other user of a routing is known."""


def _nobody(domain: str) -> None:
    """Who hears of writes where nobody asks."""
