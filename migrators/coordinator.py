"""The coordinator: holds the one lease of a domain's migration and runs stage after stage.

It may die anywhere. Whoever takes the lease next gets a higher token, raises it in both databases before its first
step (a zombie's DDL is refused from then on), looks where the migration stands and goes on. Between the permanent
fence and the publication any open DataLayer finishes the flip (routing/watchdog.py).
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from datalayer.control.base import Migration
from datalayer.errors import (
    ConfigurationError,
    DatalayerError,
    NotFinished,
    PreconditionFailed,
    Unavailable,
)
from datalayer.migrators.actions import VERDICT
from datalayer.migrators.around import Around, replay_around
from datalayer.migrators.hold import HoldTooLong
from datalayer.migrators.lease import held_lease
from datalayer.migrators.lives import AGAIN_MAX, AnotherLife
from datalayer.migrators.options import MigrateOptions, Silent, from_kept
from datalayer.migrators.plan import Stage, Standing, Until, next_stage, next_stage_back
from datalayer.migrators.run import run_stage
from datalayer.migrators.strategy import strategy_of
from datalayer.migrators.targets import check_movable, no_place, refusal
from datalayer.migrators.work import Work
from datalayer.routing.flip import write_roles
from datalayer.routing.regionrecord import check_routing
from datalayer.routing.route import LEASE_BINDS, Phase, Place
from datalayer.routing.shards import base_domain, parse_group
from datalayer.stores.base import Token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from datalayer.migrators.options import Failpoints, Reporter
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing

DISARMED: Final = {Phase.ARMED: Phase.DUAL, Phase.ARMED_BACK: Phase.TARGET}
"""Where a cut-over that is not sealed steps back to."""
RETRY_S: Final = 0.4
PATIENCE_S: Final = 120.0
HOLDS_MAX: Final = 5
"""How often a hold is begun that came to its limit each time: on a busy machine the next one is shorter as a rule."""
BEFORE_CUT_OVER: Final = frozenset({Until.DUAL, Until.BACKFILLED, Until.VERIFIED, None})
_SILENT: Final = Silent()
R = TypeVar("R")


class Coordinator:
    """Runs migrations of one domain. Not for use by two tasks at once."""

    def __init__(
        self,
        places: Places,
        domain: str,
        *,
        holder: str,
        options: MigrateOptions | None = None,
        reporter: Reporter = _SILENT,
        failpoints: Failpoints = _SILENT,
        patience_s: float = PATIENCE_S,
        domain_lease: int | None = None,
    ) -> None:
        """``domain_lease``: of a slot group, the token of its domain's lease where the caller holds that already."""
        check_movable(domain)
        self.places = places
        self._places = places
        self._control = places.control
        self._domain = domain
        self._holder = holder
        self._options = (options or MigrateOptions()).checked()
        self._reporter = reporter
        self._failpoints = failpoints
        self._patience_s = patience_s
        self._domain_lease = domain_lease
        self._strategy = strategy_of(domain)

    # --- what an operator can ask for -------------------------------------------------------------------------------

    async def migrate(self, to: str) -> Migration:
        """Start, join or go on with the migration to a backend, until ``options.until``.

        Raises PreconditionFailed (nothing was changed), VerificationFailed, NotFinished (resumable), LostLease.
        """
        async with self._leased() as value:
            migration = await self._find_or_start(to, value)
            async with self._working(migration, value) as work:
                return await self._forward(work)

    async def cutover(self) -> Migration:
        """Go on with the unfinished migration until its target rules."""
        return await self._on_live(self._forward)

    async def rollback(self) -> Migration:
        """Back to the source, keeping the copy."""
        return await self._on_live(self._back)

    async def complete(self) -> Migration:
        """Reverse off, source fenced for good."""

        async def finish(work: Work) -> Migration:
            if work.phase not in (Phase.TARGET, Phase.COMPLETE):
                raise PreconditionFailed(
                    f"the target does not rule yet: the phase is {work.phase}",
                    hint="datalayer migrations cutover",
                )
            await self._stage(work, Stage.COMPLETE)
            return work.migration

        return await self._on_live(finish)

    async def cancel(self) -> Migration:
        """Back to the source and forget the copy; only before the target rules."""

        async def undo(work: Work) -> Migration:
            if work.phase not in (Phase.SOURCE, Phase.DUAL, Phase.ARMED) or await self._is_sealed(work):
                raise PreconditionFailed(
                    f"the phase is {work.phase}: the target rules", hint="datalayer migrations rollback"
                )
            await self._stage(work, Stage.CANCEL)
            return work.migration

        return await self._on_live(undo)

    async def verify(self) -> dict[str, Any]:
        """One verification pass now; its verdict as a document."""
        return await self._on_live(self._strategy.verify)

    async def repair(self) -> dict[str, Any]:
        """Bring what differs and what was refused in step; then verify again."""
        return await self._on_live(self._strategy.repair)

    async def purge(self, migration_id: str | None = None) -> Migration:
        """Drop the retired data of a completed migration (default: the newest that has not been purged)."""
        async with self._leased() as value:
            found = await self._control.migrations(self._domain)
            done = [m for m in found if "completed" in m.milestones and "purged" not in m.milestones]
            if migration_id is not None:
                done = [m for m in done if m.id == migration_id]
            if not done:
                raise PreconditionFailed(f"no completed migration of {self._domain} has retired data")
            async with self._working(done[0], value) as work:
                await self._stage(work, Stage.PURGE)
                return work.migration

    # --- stage after stage ------------------------------------------------------------------------------------------

    async def _forward(self, work: Work) -> Migration:
        until = work.options.until
        while True:
            await work.refresh()
            if work.routing.phase is Phase.ARMED_BACK:
                raise PreconditionFailed(
                    "a rollback of this migration is under way", hint="datalayer migrations rollback finishes it"
                )
            if "cancelling" in work.migration.milestones:
                raise PreconditionFailed("this migration is being cancelled", hint="datalayer migrations cancel")
            standing = await self._standing(work)
            stage = next_stage(standing, until, held=self._strategy.held)
            if stage is None:
                return work.migration
            if stage in (Stage.ARM, Stage.FLIP) and not work.options.yes:
                raise NotFinished(
                    f"{work.migration.id} is ready for the cut-over and waits for a confirmation",
                    hint="datalayer migrations cutover --yes",
                )
            if work.migration.paused and not standing.sealed:
                raise NotFinished(f"{work.migration.id} is paused", hint="datalayer migrations resume")
            await self._stage_or_compare_again(work, stage)

    async def _back(self, work: Work) -> Migration:
        phase = work.phase
        if phase in (Phase.SOURCE, Phase.DUAL):
            return work.migration
        if phase is Phase.COMPLETE:
            raise PreconditionFailed("the migration is complete: there is nothing to roll back to")
        if phase is Phase.ARMED:
            if await self._is_sealed(work):
                await self._stage(work, Stage.FLIP)
            else:
                await self._disarm(work)
                return work.migration
        if work.routing.phase is Phase.TARGET:
            await self._stage(work, Stage.VERIFY)
        while True:
            await work.refresh()
            stage = next_stage_back(await self._standing(work), held=self._strategy.held)
            if stage is None:
                return work.migration
            await self._stage_or_compare_again(work, stage)

    async def _disarm(self, work: Work) -> None:
        await work.publish(replace(work.routing, phase=DISARMED[work.routing.phase]))

    async def _stage_or_compare_again(self, work: Work, stage: Stage) -> None:
        """Run a stage; where the mirror has begun another life since it was compared, disarm and compare again."""
        try:
            await self._stage(work, stage)
        except AnotherLife as error:
            work.lives += 1
            if work.lives > AGAIN_MAX:
                raise
            self._reporter.note(error.message)
            await work.refresh()
            if work.routing.phase in DISARMED:
                await self._disarm(work)
            await self._stage(work, Stage.VERIFY)

    async def _stage(self, work: Work, stage: Stage) -> None:
        """Run a stage; what fails retryably is tried again while the patience lasts, a hold that came to its limit so
        often.
        """
        held = 0
        until = work.clock.monotonic() + self._patience_s
        attempt = 0
        while True:
            try:
                await run_stage(work, stage)
            except HoldTooLong as error:
                held += 1
                if held == HOLDS_MAX:
                    raise
                self._reporter.note(f"{error.message}; trying again")
                # The fence lapses first, and writers get at least as long as they had to wait.
                await asyncio.sleep(2 * work.options.max_hold_ms / 1000)
                await work.refresh()
                if not self._still_due(work, stage):
                    return
            except NotFinished:
                raise
            except DatalayerError as error:
                if not error.retryable or work.clock.monotonic() >= until:
                    raise
                attempt += 1
                self._reporter.note(f"{stage}: {error.message}; trying again")
                await asyncio.sleep(min(0.1 * 2**attempt, 1.0))
                await work.refresh()
                if not self._still_due(work, stage):
                    return
            else:
                return

    def _still_due(self, work: Work, stage: Stage) -> bool:
        """Whether a stage that failed has not been finished by another process meanwhile."""
        return stage is not Stage.FLIP or work.routing.phase in LEASE_BINDS

    async def _standing(self, work: Work) -> Standing:
        milestones = work.migration.milestones
        if work.routing.phase is Phase.DUAL:
            verdict = await self._control.document(work.migration.id, VERDICT)
            ruled = verdict is not None and verdict["authority"] == work.routing.authority.backend
            if not ruled or not verdict or not verdict["ready"]:
                milestones -= {"verified"}
        sealed = work.routing.phase in LEASE_BINDS and await self._is_sealed(work)
        return Standing(work.phase, milestones, sealed, canary=work.routing.canary_pct < 100)

    async def _is_sealed(self, work: Work) -> bool:
        if work.routing.phase not in LEASE_BINDS:
            return False
        authority, _ = self._places.sides(work.routing)
        return (await authority.state()).fence == "sealed"

    # --- lease, migration, background replay ------------------------------------------------------------------------

    @asynccontextmanager
    async def _leased(self) -> AsyncIterator[int]:
        group = parse_group(self._domain)
        if group is None or self._domain_lease is not None:
            async with self._lease(self._domain) as value:
                yield value
            return
        async with self._lease(group.domain) as domain_lease, self._lease(self._domain) as value:
            self._domain_lease = domain_lease
            try:
                yield value
            finally:
                self._domain_lease = None

    def _lease(self, name: str) -> AbstractAsyncContextManager[int]:
        return held_lease(self._control, self._places.clock, name, self._holder, self._reporter.note)

    @asynccontextmanager
    async def _working(self, migration: Migration, value: int) -> AsyncIterator[Work]:
        _, routings = await self._control.routings()
        self._places.learn(routings)
        token = Token(migration.id, self._domain, migration.attempt, value)
        await check_routing(self._places, routings[self._domain])
        await self._check_groups_at_rest(routings)
        around = await self._around(routings)
        options = from_kept(self._options, migration.options)
        work = Work(
            self._places,
            migration,
            routings[self._domain],
            token,
            self._holder,
            options,
            self._reporter,
            self._failpoints,
            around=around,
        )
        await self._raise_token(work)
        if not work.routing.at_rest:
            await write_roles(self._places, work.routing)
        tasks: list[asyncio.Task[None]] = [asyncio.create_task(self._strategy.follow(work), name="datalayer-follow")]
        if around is not None:
            tasks.append(asyncio.create_task(replay_around(work, around), name="datalayer-replay-domain"))
        try:
            yield work
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _around(self, routings: Mapping[str, Routing]) -> Around | None:
        """Of a slot group: its domain's migration, which rests at `target` with the way back open."""
        group = parse_group(self._domain)
        if group is None or routings[group.domain].at_rest:
            return None
        routing = routings[group.domain]
        live = next(m for m in await self._control.migrations(group.domain) if m.attempt == routing.attempt)
        assert self._domain_lease is not None, "a group moves under its domain's lease"
        await self._places.ensure_open(live.source)
        return Around(live, routing, Token(live.id, group.domain, live.attempt, self._domain_lease))

    async def _raise_token(self, work: Work) -> None:
        """In both databases, before the first step; one that is down is waited for while the patience lasts."""
        until = work.clock.monotonic() + self._patience_s
        waiting = [work.migration.source, work.migration.target]
        while waiting:
            try:
                await self._places.ensure_open(waiting[0])
                await self._places.backend(waiting[0]).raise_token(work.token)
            except Unavailable as error:
                if work.clock.monotonic() >= until or work.routing.at_rest:
                    raise
                self._reporter.note(f"{waiting[0].backend} does not answer ({error.message}); waiting for it")
                await asyncio.sleep(RETRY_S)
            else:
                del waiting[0]

    async def _on_live(self, act: Callable[[Work], Awaitable[R]]) -> R:
        async with self._leased() as value:
            migration = await self._live()
            async with self._working(migration, value) as work:
                return await act(work)

    async def _live(self) -> Migration:
        for migration in await self._control.migrations(self._domain):
            if not migration.finished:
                return migration
        raise PreconditionFailed(f"{self._domain} has no unfinished migration", hint="datalayer migrations list")

    async def _find_or_start(self, to: str, value: int) -> Migration:
        _, routings = await self._control.routings()
        self._places.learn(routings)
        routing = routings.get(self._domain)
        if routing is None:
            raise no_place(self._domain)
        live = next((m for m in await self._control.migrations(self._domain) if not m.finished), None)
        if live is not None:
            if live.target.backend != to:
                raise PreconditionFailed(
                    f"{self._domain} is already moving to {live.target.backend!r} ({live.id})",
                    hint="finish it, roll it back and cancel it, or name the same target",
                )
            if self._options.given or self._options.lasting() != MigrateOptions().lasting():
                kept = from_kept(self._options, live.options).lasting()
                await self._control.set_options(live.id, kept, actor=self._holder)
            return live
        self._check_target_name(routing, to)
        await self._check_groups_at_rest(routings)
        group = parse_group(self._domain)
        if group is not None and routings[group.domain].authority.attempt != group.attempt:
            raise PreconditionFailed(f"{group.domain} is not served from these slots any more")
        base = base_domain(self._domain)
        attempt = await self._control.next_attempt(base)
        now = self._places.clock.now_us()
        migration = Migration(
            f"{base}-{attempt}",
            self._domain,
            attempt,
            routing.authority,
            Place(to, attempt),
            str(routing.phase),
            frozenset(),
            self._options.lasting(),
            0,
            now,
            now,
        )
        await self._places.ensure_open(migration.source)
        await self._places.ensure_open(migration.target)
        await self._strategy.fit(self._places, self._domain, migration.target)
        token = Token(migration.id, self._domain, attempt, value)
        within = None
        if self._domain_lease is not None:
            # Who slept since it looked at the domain must not begin after somebody else took that over.
            within = Token(migration.id, base, attempt, self._domain_lease)
        return await self._control.start_migration(token, migration, actor=self._holder, within=within)

    def _check_target_name(self, routing: Routing, to: str) -> None:
        if to not in self._places.backends:
            names = ", ".join(sorted(self._places.backends))
            raise ConfigurationError(f"backend {to!r} is not configured", hint=f"one of: {names}")
        if routing.authority.backend == to and not self._strategy.anew:
            raise PreconditionFailed(f"{self._domain} is on backend {to!r} already")
        reason = refusal(self._places, self._domain, to)
        if reason:
            raise PreconditionFailed(reason)

    async def _check_groups_at_rest(self, routings: Mapping[str, Routing]) -> None:
        """A domain does not move while one of its slot groups does, nor a group while its domain does.

        At `target` a domain rests, with the way back open.
        """
        group = parse_group(self._domain)
        if group is not None:
            whole = routings[group.domain]
            if not (whole.at_rest or (whole.phase is Phase.TARGET and whole.authority.attempt == group.attempt)):
                raise PreconditionFailed(
                    f"{group.domain} is moving as a whole: the phase is {whole.phase}",
                    hint="complete, or roll back and cancel, that migration first",
                )
            return
        for migration in await self._control.migrations():
            part = parse_group(migration.domain)
            if part is not None and part.domain == self._domain and not migration.finished:
                raise PreconditionFailed(
                    f"slots {part.slots} of {self._domain} are moving to {migration.target.backend!r} ({migration.id})",
                    hint="datalayer shards rebalance finishes it",
                )
