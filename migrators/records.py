"""The strategy of domains that are maps of versioned records: the migration of docs/ARCHITECTURE.md, hold included."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import DatalayerError, PreconditionFailed
from datalayer.migrators.actions import VERDICT, fit_target, run_verification
from datalayer.migrators.plan import PLAN
from datalayer.migrators.run import HANDLERS, QUIET
from datalayer.migrators.strategy import Strategy
from datalayer.routing.replay import BATCH

if TYPE_CHECKING:
    from datalayer.control.base import Migration
    from datalayer.migrators.work import Work
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing

IDLE_S: Final = 0.02


async def follow(work: Work) -> None:
    """Replay the journal, except while a flip does that itself."""
    while True:
        idle = True
        if work.routing.mirror is not None:
            try:
                async with work.replay_lock:
                    if not work.flipping:
                        replayed = await (await work.replayer()).step()
                        work.note_changed(replayed.records)
                        idle = len(replayed.records) < BATCH
            except DatalayerError as error:
                if not error.retryable:
                    work.reporter.note(f"replay: {error.message}")
                await asyncio.sleep(0.2)
        await asyncio.sleep(IDLE_S if idle else 0)


async def verify(work: Work) -> dict[str, Any]:
    """One verification pass now; its verdict as a document."""
    _needs_two_sides(work)
    return (await run_verification(work)).document()


async def repair(work: Work) -> dict[str, Any]:
    """Bring quarantined and differing records in step, by lifting versions; then verify again."""
    _needs_two_sides(work)
    repaired = await _lift(work)
    async with work.replay_lock:
        replayer = await work.replayer()
        while (await replayer.step()).records:
            pass
    left = await work.control.quarantined(work.migration.id, 1000)
    verdict = await run_verification(work)
    return {"repaired": repaired, "quarantined": len(left), **verdict.document()}


async def backlog(places: Places, migration: Migration, routing: Routing) -> int | None:
    """Dirty keys at the authority; None where it does not answer."""
    if routing.mirror is None or routing.attempt != migration.attempt:
        return None
    try:
        await places.ensure_open(routing.authority)
        guard, _ = places.sides(routing)
        return await guard.journal.backlog()
    except DatalayerError:
        return None


def _needs_two_sides(work: Work) -> None:
    if work.routing.mirror is None:
        raise PreconditionFailed(f"{work.migration.id} has no second side in phase {work.routing.phase}")


async def _lift(work: Work) -> int:
    """Lift the versions of quarantined and differing keys at the authority; the replayer does the rest."""
    authority, _ = work.places.sides(work.routing)
    store = work.places.store(work.migration.domain, work.routing.authority)
    now = work.clock.now_us()
    keys, ghosts = [], []
    quarantined = await work.control.quarantined(work.migration.id, 10_000)
    stored = await store.fetch([(row.kind, row.key) for row in quarantined])
    for row in quarantined:
        if (row.kind, row.key) in stored:
            keys.append((row.kind, row.key))
        else:
            # Mended by a plain DELETE: its tombstone brings the replayer there, which releases the key.
            ghosts.append(work.domain.tombstone(row.kind, row.key, max(row.version + 2, now)))
    verdict = await work.control.document(work.migration.id, VERDICT) or {}
    for item in verdict.get("differences", ()):
        key = (item["kind"], bytes.fromhex(item["key"]))
        if item["what"] == "ghost":
            version = max((item["mirror_version"] or 0) + 2, now)
            ghosts.append(work.domain.tombstone(key[0], key[1], version))
        else:
            keys.append(key)
    await authority.repair(keys, ghosts, now)
    return len(keys) + len(ghosts)


STRATEGY: Final = Strategy(
    plan=PLAN,
    handlers=HANDLERS,
    held=True,
    fit=fit_target,
    follow=follow,
    verify=verify,
    repair=repair,
    backlog=backlog,
    quiet=QUIET,
)
