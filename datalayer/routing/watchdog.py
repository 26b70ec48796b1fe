"""The watchdog of one open DataLayer: news, acknowledgements, the lease, and work a dead coordinator left behind.

Outside a cut-over nothing here is needed for service: when the control store is down, the routes in force stay in
force and every call goes on. Errors of the control store are counted and tried again (the one place of this component
that swallows them).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from datalayer.control.base import LEASE_RENEW_S, coordinator_lease
from datalayer.domains.movement import OPTIONAL, Movement, movement_of
from datalayer.errors import Closed, DatalayerError, LostLease, OutcomeUnknown, RoutingMismatch, Unavailable
from datalayer.routing.firstindex import unbuilt_index
from datalayer.routing.flip import finish_flip, write_roles
from datalayer.routing.indexes import SEARCH
from datalayer.routing.marks import mark_again
from datalayer.routing.regionrecord import check_routing
from datalayer.routing.replay import BATCH, Replayer
from datalayer.routing.route import LEASE_BINDS
from datalayer.routing.shards import parse_group
from datalayer.stores.base import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datalayer.clock import Clock
    from datalayer.control.base import Control, Migration, ProcessInfo
    from datalayer.routing.eager import EagerApplier
    from datalayer.routing.lease import Lease
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing
    from datalayer.routing.router import Jitter, Router
    from datalayer.stores.base import MetaRow

log = logging.getLogger("datalayer.watchdog")
POLL_REST_S: Final = 0.25
POLL_ARMED_S: Final = 0.005
ASSIST_S: Final = 0.5
ASSIST_SLICE_S: Final = 1.0
ASSIST_PAUSE_S: Final = 0.02
"""The least pause after a round that was not full: of many slot groups' journals a round costs as much as a hundred reads."""
COORDINATOR_TTL_S: Final = 5.0
MARK_AGAIN_S: Final = 1.0


class Watchdog:
    """Keeps the routers of one process at the newest routing."""

    def __init__(
        self,
        process: ProcessInfo,
        places: Places,
        routers: Mapping[str, Router],
        group_router: Callable[[str], Router],
        lease: Lease,
        *,
        jitter: Jitter,
        assist: bool = True,
    ) -> None:
        self._process = process
        self._places = places
        self._control: Control = places.control
        self._clock: Clock = places.clock
        self._routers = dict(routers)
        self._group_router = group_router
        self._lease = lease
        self._jitter = jitter
        self._assist = assist
        self._stopped = asyncio.Event()
        self._asked = asyncio.Event()
        self._news = -1
        self._acknowledged: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._taking = asyncio.Lock()
        self._mismatch = ""
        self._marked_at = -MARK_AGAIN_S
        self._unreached = False
        """A slot group's store did not answer: look again."""
        self.control_errors = 0

    def ask(self) -> None:
        """Look for news now: a write was refused, so the routing has probably changed."""
        self._asked.set()

    async def start(self) -> None:
        """Register, take the routings, acknowledge them; then watch. Needs the control store.

        Registration comes before the first look at the routings: a coordinator that publishes in between finds this
        process behind and waits for it.
        """
        await self._control.register(self._process, {})
        await self._take_routings()
        for router in list(self._routers.values()):
            if router.serves:
                router.stale = router.routing
        with contextlib.suppress(Unavailable, OutcomeUnknown):  # whoever meets a missing mark asks again
            await self._mark_again()
        await self._renew()
        self._tasks = [
            asyncio.create_task(self._watch_news(), name="datalayer-news"),
            asyncio.create_task(self._keep_lease(), name="datalayer-lease"),
        ]
        if self._assist:
            self._tasks.append(asyncio.create_task(self._assist_forever(), name="datalayer-assist"))

    async def stop(self) -> None:
        """Stop watching and leave the fleet; a control store that is down does not keep a process from ending."""
        self._stopped.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for router in list(self._routers.values()):
            await router.close_eager()
        try:
            await self._control.leave(self._process.id)
        except DatalayerError as error:
            log.warning("could not leave the fleet: %s", error.message)

    async def _watch_news(self) -> None:
        while not self._stopped.is_set():
            poll = POLL_ARMED_S if self._near_cut_over() else POLL_REST_S
            try:
                news = await self._next_news(poll)
                if news != self._news or self._unreached:
                    await self._take_routings()
                await self._mark_again()
                if self._unacknowledged():
                    await self._renew()
            except RoutingMismatch as error:
                # Who stopped looking would serve the old route for ever, and nobody would hear of it.
                self._tell_mismatch(error)
                await self._sleep(POLL_REST_S)
            except DatalayerError as error:
                await self._control_failed(error)

    def _tell_mismatch(self, error: RoutingMismatch) -> None:
        if error.message != self._mismatch:
            self._mismatch = error.message
            log.error("the new routing is not taken: %s", error, exc_info=error)

    async def _next_news(self, poll_s: float) -> int:
        """The news counter: when it has changed, when somebody asks, or after a second."""
        if self._asked.is_set():
            self._asked.clear()
            return await self._control.wait_news(self._news, POLL_ARMED_S, poll_s=POLL_ARMED_S)
        timeout_s = 0.05 if self._unacknowledged() else 1.0
        waiting = asyncio.ensure_future(self._control.wait_news(self._news, timeout_s, poll_s=poll_s))
        asked = asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait({waiting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return await waiting
            return self._news
        finally:
            for task in (waiting, asked):
                task.cancel()
            await asyncio.gather(waiting, asked, return_exceptions=True)

    async def _take_routings(self) -> None:
        # One at a time: of two, the older answer could be adopted last, after the newer one was acknowledged.
        async with self._taking:
            retired = await self._adopt_newer()
        for eager in retired:
            await eager.close()

    async def _adopt_newer(self) -> list[EagerApplier]:
        news, routings = await self._control.routings()
        self._places.learn(routings)
        self._unreached = False
        retired = []
        metas: dict[str, Mapping[tuple[str, int], MetaRow]] = {}
        silent: dict[tuple[str, str | None], str] = {}
        # Slot groups first: a domain's route is not to be served before its groups'.
        for domain in [*self._meet_groups(routings), *(name for name in self._routers if parse_group(name) is None)]:
            router, routing = self._routers[domain], routings.get(domain)
            if routing is None or (router.serves and router.routing.epoch >= routing.epoch):
                continue
            stores = (routing.authority.backend, None if routing.mirror is None else routing.mirror.backend)
            if stores in silent:
                self._leave_out(router, silent[stores])
                continue
            try:
                await check_routing(self._places, routing)
                await self._places.prepare(routing)
                await self._check_backend(routing, metas)
            except Unavailable as error:
                if parse_group(domain) is None and domain not in OPTIONAL:
                    raise
                # One shard, or an index, that is down must not keep the others' data from being served: it is asked
                # once a look.
                silent[stores] = error.message
                self._leave_out(router, error.message)
                continue
            except RoutingMismatch as error:
                if domain in OPTIONAL and not router.serves:
                    router.unplaced(error.message)  # nobody here uses it: the others' routings are taken
                    continue
                if parse_group(domain) is None or self._news < 0:
                    raise
                self._tell_mismatch(error)  # of this group: the others' new routings are taken
                self._unreached = True
                continue
            if router.serves and router.route.eager is not None:
                retired.append(router.route.eager)
            if domain == SEARCH and not router.serves and await unbuilt_index(self._control, routing.authority):
                router.unbuilt(routing.authority)
            router.adopt(self._places.compile(routing))
        self._news = news
        return retired

    async def _mark_again(self) -> None:
        """Where a store says that a place does not exist which the newest routing names, its marks may be lost."""
        if self._clock.monotonic() < self._marked_at + MARK_AGAIN_S:
            return
        for router in list(self._routers.values()):
            stale, router.stale = router.stale, None
            if stale is None:
                continue
            self._marked_at = self._clock.monotonic()
            async with self._taking:  # nothing newer is adopted, so acknowledged, meanwhile
                if not router.serves or router.routing != stale:
                    continue
                missing = await mark_again(self._places, stale)
            if missing:
                log.warning(
                    "%s on %s: %d marks of its place were lost, by a failover probably, and are written again",
                    router.domain,
                    stale.authority.backend,
                    missing,
                )

    def _leave_out(self, router: Router, reason: str) -> None:
        if not router.serves:
            router.wait_for(reason)
        self._unreached = True

    def _meet_groups(self, routings: Mapping[str, Routing]) -> list[str]:
        """The slot groups of all places in use, each with a router; the shards of others may be gone for good."""
        used = {
            (domain, place.attempt)
            for domain, routing in routings.items()
            for place in (routing.authority, routing.mirror)
            if place is not None and parse_group(domain) is None
        }
        names = [name for name in routings if (group := parse_group(name)) and (group.domain, group.attempt) in used]
        for name in names:
            if name not in self._routers:
                self._routers[name] = self._places.group_routers[name] = self._group_router(name)
        return names

    async def _check_backend(self, routing: Routing, metas: dict[str, Mapping[tuple[str, int], MetaRow]]) -> None:
        """Refuse to serve from a store that says itself that it is retired, foreign, or ahead of the control store.

        ``metas``: what backends have said during this look.
        """
        place = routing.authority
        if place.backend not in metas:
            metas[place.backend] = await self._places.backend(place).read_meta()
        row = metas[place.backend].get((routing.domain, place.attempt))
        if row is None:
            return
        deployment = await self._control.deployment()
        what = f"{routing.domain} on backend {place.backend!r}"
        if row.deployment != deployment:
            raise RoutingMismatch(f"{what} belongs to another deployment ({row.deployment})")
        if row.role != "retired" and row.epoch <= routing.epoch:
            return
        _, newest = await self._control.routings()
        if newest[routing.domain].epoch >= row.epoch and newest[routing.domain].epoch > routing.epoch:
            return  # published since this routing was read: the next look finds it
        if row.role == "retired":
            raise RoutingMismatch(f"{what} is retired: its data has moved", hint="datalayer routes shows where it is")
        if row.epoch > routing.epoch:
            raise RoutingMismatch(
                f"{what} has seen routing epoch {row.epoch}, but the control store is at {routing.epoch}",
                hint="the control store was restored from an old copy; see the runbook",
            )

    def _near_cut_over(self) -> bool:
        return any(r.held or (r.serves and r.routing.phase in LEASE_BINDS) for r in self._routers.values())

    def _epochs(self) -> dict[str, int]:
        return {domain: router.acknowledged() for domain, router in self._routers.items() if router.serves}

    def _unacknowledged(self) -> bool:
        return self._epochs() != self._acknowledged

    async def _renew(self) -> None:
        sent_at = self._clock.boottime()
        epochs = self._epochs()
        await self._control.renew(self._process.id, epochs)
        self._lease.renewed(sent_at)
        self._acknowledged = epochs

    async def _keep_lease(self) -> None:
        while not self._stopped.is_set():
            try:
                await self._renew()
            except Closed:
                # Declared dead by an operator, or forgotten: nothing acknowledged counts any more. Come in again.
                self._lease.until = 0.0
                self._acknowledged = {}
                await self._enter_again()
            except DatalayerError as error:
                await self._control_failed(error)
            await self._sleep(LEASE_RENEW_S)

    async def _enter_again(self) -> None:
        try:
            await self._control.register(self._process, {})
            await self._take_routings()
            await self._renew()
        except DatalayerError as error:
            await self._control_failed(error)

    async def _control_failed(self, error: DatalayerError) -> None:
        self.control_errors += 1
        log.debug("control store: %s", error.message)
        await self._sleep(0.05 + 0.1 * self._jitter())

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    async def _connect_mirror(self, router: Router) -> None:
        """A mirror that was down when its routing came: adopt the same routing again once it answers."""
        mirror = router.routing.mirror
        if mirror is None or self._places.is_open(mirror):
            return
        await self._places.ensure_open(mirror)
        router.adopt(self._places.compile(router.routing))

    # --- work that a dead coordinator left behind -------------------------------------------------------------------

    async def _assist_forever(self) -> None:
        while not self._stopped.is_set():
            await self._sleep(ASSIST_S * (0.75 + 0.5 * self._jitter()))
            for router in list(self._routers.values()):
                if not router.serves or router.routing.at_rest:
                    continue
                try:
                    await self._connect_mirror(router)
                    if movement_of(router.domain) is Movement.RECORDS:
                        await self._assist_domain(router.routing)
                except LostLease:
                    continue
                except DatalayerError as error:
                    await self._control_failed(error)

    async def _assist_domain(self, routing: Routing) -> None:
        name = coordinator_lease(routing.domain)
        if await self._control.holder(name) is not None:
            return
        value = await self._control.take(name, self._process.id, COORDINATOR_TTL_S)
        if value is None:
            return
        try:
            found = await self._control.migrations(routing.domain)
            live = next((m for m in found if m.attempt == routing.attempt and not m.finished), None)
            if live is not None:
                await self._assist_migration(routing, live, value)
        finally:
            await self._control.release(name, value)

    async def _assist_migration(self, routing: Routing, migration: Migration, value: int) -> None:
        _, routings = await self._control.routings()
        if routings[routing.domain] != routing:
            return
        token = Token(migration.id, routing.domain, routing.attempt, value)
        replayer = Replayer(self._places, routing, migration.id)
        await replayer.load_quarantine()
        if routing.phase in LEASE_BINDS:
            authority, _ = self._places.sides(routing)
            if (await authority.state()).fence == "sealed":  # held writes wait for this, also while it is paused
                for place in (migration.source, migration.target):
                    await self._places.backend(place).raise_token(token)
                published = await finish_flip(
                    self._places, routing, migration, token, actor=self._process.id, replayer=replayer
                )
                await write_roles(self._places, published)
                return
        until = self._clock.monotonic() + (0.0 if migration.paused else ASSIST_SLICE_S)
        while (began := self._clock.monotonic()) < until:
            found = len((await replayer.step()).records)
            if not found:
                return
            if found < BATCH:
                now = self._clock.monotonic()
                await self._sleep(min(max(ASSIST_PAUSE_S, now - began), max(0.0, until - now)))
