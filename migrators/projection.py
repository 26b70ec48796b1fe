"""The strategy of search, which is derived from messages and users: a new index is filled beside the one in use.

Nothing is held and nothing is copied from the old index. From the first moment the new one has outboxes of its own at every
place of the sources, so both are kept in step by the indexers, before and after the flip, and either may be asked: the flip
and the way back are one publication each. A rebuild is this move to the backend where search is already.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, cast

from datalayer.control.base import QuarantineRow
from datalayer.domains.movement import Movement, movement_of
from datalayer.errors import (
    DatalayerError,
    PreconditionFailed,
    StaleRoute,
    Unavailable,
    VerificationFailed,
)
from datalayer.migrators.actions import (
    VERDICT,
    await_rest,
    check_quarantine,
    check_target,
    create_target,
    fit_target,
    publish_complete,
    publish_dual,
    publish_source,
    purge_source,
)
from datalayer.migrators.backfill import Backfill
from datalayer.migrators.fleet import await_fleet
from datalayer.migrators.plan import Stage
from datalayer.migrators.strategy import Strategy
from datalayer.migrators.throttle import RateCap, following
from datalayer.migrators.verify import Verifier
from datalayer.migrators.work import stores_last_writer
from datalayer.routing.documents import SOURCE_KINDS, Behind, Documents
from datalayer.routing.flip import write_roles
from datalayer.routing.indexer import IndexWriter
from datalayer.routing.indexes import SEARCH
from datalayer.routing.lastwriter import IntentGuard
from datalayer.routing.route import Phase
from datalayer.stores.base import Entry, MetaRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from datalayer.control.base import Migration
    from datalayer.migrators.verify import Verdict
    from datalayer.migrators.work import Work
    from datalayer.routing.places import Places
    from datalayer.routing.route import Place, Routing
    from datalayer.stores.base import Guard, Journal, Port

IDLE_S: Final = 0.05
FAILED_S: Final = 0.2
INTENTS_MAX: Final = 100_000
INTENTS_BATCH: Final = 500
CATCH_UP_ENTRIES: Final = 200
CATCH_UP_ROUNDS: Final = 100_000
QUARANTINED_MAX: Final = 1_000


class Act(StrEnum):
    """What a coordinator does for an index; each has one handler and is recorded as one step."""

    CHECK_TARGET = "check_target"
    CREATE_INDEX = "create_index"
    FOLLOW_SOURCES = "follow_sources"
    PUBLISH_DUAL = "publish_dual"
    AWAIT_WRITERS = "await_writers"
    FILL = "fill"
    CATCH_UP = "catch_up"
    VERIFY = "verify"
    PUBLISH_OTHER = "publish_other"
    PUBLISH_COMPLETE = "publish_complete"
    PUBLISH_SOURCE = "publish_source"
    AWAIT_FLEET = "await_fleet"
    LEAVE_SOURCES = "leave_sources"
    RETIRE_INDEX = "retire_index"
    DROP_INDEX = "drop_index"
    PURGE_SOURCE = "purge_source"


PLAN: Final[dict[Stage, tuple[Act, ...]]] = {
    Stage.START: (Act.CHECK_TARGET, Act.CREATE_INDEX, Act.FOLLOW_SOURCES, Act.PUBLISH_DUAL),
    Stage.BACKFILL: (Act.AWAIT_WRITERS, Act.FILL, Act.CATCH_UP),
    Stage.VERIFY: (Act.CATCH_UP, Act.VERIFY),
    Stage.FLIP: (Act.CATCH_UP, Act.PUBLISH_OTHER),
    Stage.COMPLETE: (Act.PUBLISH_COMPLETE, Act.AWAIT_FLEET, Act.LEAVE_SOURCES, Act.RETIRE_INDEX),
    Stage.CANCEL: (Act.PUBLISH_SOURCE, Act.AWAIT_FLEET, Act.LEAVE_SOURCES, Act.DROP_INDEX),
    Stage.PURGE: (Act.PURGE_SOURCE,),
}


async def follow_sources(work: Work) -> str:
    """The new index misses nothing that is written from now on (a source without triggers: from the acknowledgement on)."""
    indexes = work.places.indexes
    await indexes.fresh()  # after this migration was entered: see routing.indexes
    done = await indexes.follow(indexes.leaves(), [work.migration.target])
    return f"{done} outboxes on"


async def await_writers(work: Work) -> str:
    """Writers of sources without triggers must say that they tell the new index, too; intents of the dead are brought."""
    leaves = [one for one in work.places.indexes.leaves() if stores_last_writer(work.places, one.place)]
    if not leaves:
        return "not needed: triggers write the outboxes"
    detail = await await_fleet(work, "the new index")
    return f"{detail}, {await _bring_intents(work)} intents brought"


async def _bring_intents(work: Work) -> int:
    """Bring every write that was admitted before now: its writer may not have known the new index, and have died."""
    _, routings = await work.control.routings()
    work.places.learn(routings)
    done = 0
    for routing in routings.values():
        if routing.at_rest or not stores_last_writer(work.places, routing.authority):
            continue
        if movement_of(routing.domain) is not Movement.RECORDS:
            continue
        guard = work.places.sides(routing)[0]
        assert isinstance(guard, IntentGuard), "the guard of a last-writer side holds intents"
        try:
            records = await guard.journal.pending(INTENTS_MAX)
        except StaleRoute:
            continue  # that migration has ended: all its intents were brought
        if len(records) == INTENTS_MAX:
            raise Unavailable(f"more than {INTENTS_MAX} writes of {routing.domain} wait to be brought")
        for at in range(0, len(records), INTENTS_BATCH):
            await guard.deliver(records[at : at + INTENTS_BATCH])
        done += len(records)
    return done


async def fill(work: Work) -> str:
    """Make the documents of all that the sources hold now."""
    began = work.clock.monotonic()
    source = Documents(work.places)
    total, before = await source.estimate(), 0

    def progress(rows: int) -> None:
        seconds = max(work.clock.monotonic() - began, 1e-9)
        work.reporter.progress("backfill", before + rows, max(total, before + rows), rows / seconds)

    cap = RateCap(work.clock, work.options.rate_rows_per_s)
    copy = Backfill(
        cast("Port", source),
        cast("Guard", work.target_store),
        work.control,
        work.clock,
        migration_id=work.migration.id,
        run_name=f"{work.migration.id}/backfill",
        holder=work.holder,
        cap=cap,
        failpoints=work.failpoints,
        progress=progress,
    )
    before = await copy.plan(work.options.workers)
    try:
        async with following(work.control, work.migration.id, work.migration.domain, cap):
            await copy.run(work.options.workers)
    except StaleRoute as error:
        # A source was purged under the scan: it is begun again where the domain lies now.
        await work.control.drop_run(copy.run_name)
        raise Unavailable(f"a source of the index has moved away and was purged: {error.message}") from error
    seconds = work.clock.monotonic() - began
    rows = sum(chunk.rows for chunk in await work.control.chunks(copy.run_name))
    await work.control.put_document(work.migration.id, "backfill", {"rows": rows, "seconds": round(seconds, 3)})
    return f"{rows} documents, {copy.copied.rows / max(seconds, 1e-9):.0f} a second"


async def catch_up(work: Work) -> str:
    """Bring the other index in step until little is left."""
    index = _mirror(work)
    writer = IndexWriter(work.places, index)
    done = 0
    for _ in range(CATCH_UP_ROUNDS):
        brought = await _bring(work.places, writer)
        done += brought
        if brought <= CATCH_UP_ENTRIES:
            break
    await _note_refused(work, writer)
    await work.places.store(SEARCH, index).refresh()
    if work.routing.phase is Phase.DUAL:
        await work.add_milestones("backfilled")
    return f"{done} brought"


async def verify(work: Work) -> str:
    """Compare the other index with its sources; VerificationFailed when they differ."""
    await check_quarantine(work)
    verdict = await run_verification(work)
    if not verdict.ready:
        first = verdict.differences[0] if verdict.differences else None
        what = f"{first.what} {first.kind} {first.key}" if first else f"undecided {verdict.undecided[0]}"
        raise VerificationFailed(
            f"{len(verdict.differences)} document(s) differ and {len(verdict.undecided)} are undecided, first: {what}",
            hint="datalayer migrations repair brings them in step",
        )
    if work.routing.phase is Phase.DUAL:
        await work.add_milestones("verified")
    return f"{verdict.authority_records} documents equal in {verdict.seconds:.1f} s"


async def run_verification(work: Work) -> Verdict:
    """One pass over the sources and the other index; its verdict is kept with the migration."""
    began = work.clock.monotonic()
    total = 2 * await Documents(work.places).estimate()

    def progress(rows: int) -> None:
        seconds = max(work.clock.monotonic() - began, 1e-9)
        work.reporter.progress("verify", rows, max(total, rows), rows / seconds)

    await work.places.indexes.fresh()
    verdict = await _verifier(work, progress).run(work.options.workers)
    document = {**verdict.document(), "authority": work.routing.authority.backend}
    await work.control.put_document(work.migration.id, VERDICT, document)
    return verdict


def _verifier(work: Work, progress: Callable[[int], None] = lambda _: None) -> Verifier:
    index = _mirror(work)
    return Verifier(
        SEARCH,
        cast("Port", Documents(work.places)),
        work.places.store(SEARCH, index),
        cast("Journal", Behind(IndexWriter(work.places, index))),
        control=work.control,
        clock=work.clock,
        run_name=f"{work.migration.id}/verify-{work.routing.epoch}",
        holder=work.holder,
        failpoints=work.failpoints,
        progress=progress,
        mode=work.options.verify,
    )


async def publish_other(work: Work) -> str:
    """Queries go to the other index; both go on being fed."""
    phase = Phase.TARGET if work.routing.phase is Phase.DUAL else Phase.DUAL
    await work.publish(replace(work.routing, phase=phase))
    await write_roles(work.places, work.routing)
    return f"epoch {work.routing.epoch}"


async def leave_sources(work: Work) -> str:
    """The index that is given up follows nothing any more."""
    await work.places.indexes.fresh()
    gone = work.migration.source if work.routing.authority == work.migration.target else work.migration.target
    await work.places.indexes.leave(gone)
    return "outboxes off"


async def retire_index(work: Work) -> str:
    """The old index says itself that it is retired; the migration is complete."""
    migration = work.migration
    deployment = await work.control.deployment()
    row = MetaRow(migration.domain, migration.source.attempt, deployment, "retired", work.routing.epoch)
    await work.places.backend(migration.source).write_meta(row)
    await write_roles(work.places, work.routing)
    await work.add_milestones("completed")
    return "complete"


async def drop_index(work: Work) -> str:
    """The new index goes; what cannot be reached now is left behind under its attempt's name."""
    try:
        await work.places.ensure_open(work.migration.target)
        await work.target_store.drop()
        detail = "dropped"
    except DatalayerError as error:
        if not error.retryable:
            raise
        detail = f"left behind: {error.message}"
    await write_roles(work.places, work.routing)
    await work.add_milestones("cancelled")
    return detail


HANDLERS: Final = {
    Act.CHECK_TARGET: check_target,
    Act.CREATE_INDEX: create_target,
    Act.FOLLOW_SOURCES: follow_sources,
    Act.PUBLISH_DUAL: publish_dual,
    Act.AWAIT_WRITERS: await_writers,
    Act.FILL: fill,
    Act.CATCH_UP: catch_up,
    Act.VERIFY: verify,
    Act.PUBLISH_OTHER: publish_other,
    Act.PUBLISH_COMPLETE: publish_complete,
    Act.PUBLISH_SOURCE: publish_source,
    Act.AWAIT_FLEET: await_rest,
    Act.LEAVE_SOURCES: leave_sources,
    Act.RETIRE_INDEX: retire_index,
    Act.DROP_INDEX: drop_index,
    Act.PURGE_SOURCE: purge_source,
}


# --- beside the stages, and on demand ------------------------------------------------------------------------------------


async def follow(work: Work) -> None:
    """Bring the other index in step, also where no application is open that does."""
    writer: IndexWriter | None = None
    while True:
        brought = 0
        try:
            mirror = work.routing.mirror
            if mirror is not None and work.phase is not Phase.SOURCE:
                if writer is None or writer.index != mirror:
                    writer = IndexWriter(work.places, mirror)
                brought = await _bring(work.places, writer)
        except DatalayerError as error:
            if not error.retryable:
                work.reporter.note(f"search: {error.message}")
            await asyncio.sleep(FAILED_S)
        await asyncio.sleep(0 if brought else IDLE_S)


async def verify_now(work: Work) -> dict[str, Any]:
    """One verification pass now; its verdict as a document."""
    _mirror(work)
    return (await run_verification(work)).document()


async def repair(work: Work) -> dict[str, Any]:
    """Have what the last comparison found, and what the index could not take, brought again where it still differs; then
    compare again. A message that has come since is left alone.
    """
    index = _mirror(work)
    verdict = await work.control.document(work.migration.id, VERDICT) or {}
    rows = await work.control.quarantined(work.migration.id, QUARANTINED_MAX)
    told = [(item["kind"], bytes.fromhex(item["key"])) for item in verdict.get("differences", ())]
    await work.places.indexes.fresh()
    keys = dict.fromkeys([*told, *((row.kind, row.key) for row in rows)])
    differences, _ = await _verifier(work).judge(list(keys))
    now = work.clock.now_us()
    entries: dict[str, list[Entry]] = {}
    for item in differences:
        domain, kind = SOURCE_KINDS[item.kind]
        gone = item.what == "ghost"
        version = max((item.mirror_version or 0) + 2, now) if gone else item.authority_version or now
        entries.setdefault(domain, []).append(Entry(kind, bytes.fromhex(item.key), version, gone))
    writer = IndexWriter(work.places, index)
    for domain, mine in entries.items():
        leaf = work.places.indexes.leaves(domain)[0]
        await work.places.indexes.outbox(leaf, index).enter(mine)
    while await _bring(work.places, writer):
        pass
    mended = [(row.kind, row.key) for row in rows if (row.kind, row.key) not in writer.refused]
    await work.control.release_quarantine(work.migration.id, mended)
    await _note_refused(work, writer)
    left = await work.control.quarantined(work.migration.id, QUARANTINED_MAX)
    again = await run_verification(work)
    return {"repaired": len(differences), "quarantined": len(left), **again.document()}


async def _note_refused(work: Work, writer: IndexWriter) -> None:
    """What the index cannot take is named with the migration: no comparison is clean before it is mended."""
    now = work.clock.now_us()
    rows = [QuarantineRow(kind, key, version, why, now) for (kind, key), (version, why) in writer.refused.items()]
    if rows:
        await work.control.quarantine(work.migration.id, rows)


async def backlog(places: Places, migration: Migration, routing: Routing) -> int | None:
    """How many keys the other index is behind on; None where that is unknown."""
    if routing.mirror is None or routing.attempt != migration.attempt:
        return None
    try:
        return (await IndexWriter(places, routing.mirror).lag()).behind
    except DatalayerError:
        return None


async def _bring(places: Places, writer: IndexWriter) -> int:
    done = 0
    for leaf in places.indexes.leaves():
        done += await writer.bring(leaf)
    return done


def _mirror(work: Work) -> Place:
    if work.routing.mirror is None:
        raise PreconditionFailed(f"{work.migration.id} has no second index in phase {work.routing.phase}")
    return work.routing.mirror


STRATEGY: Final = Strategy(
    plan=PLAN,
    handlers=HANDLERS,
    held=False,
    fit=fit_target,
    follow=follow,
    verify=verify_now,
    repair=repair,
    backlog=backlog,
    anew=True,
)
