"""The handlers of all actions outside the hold. Each is idempotent and returns one line for the step log."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from datalayer.errors import DatalayerError, NotFinished, PreconditionFailed, SchemaBehind, VerificationFailed
from datalayer.migrators.around import SHORT_BACKLOG, drain_around, leave_domain
from datalayer.migrators.backfill import Backfill
from datalayer.migrators.fleet import await_fleet
from datalayer.migrators.lives import (
    check_verdict,
    compare_run,
    copy_run,
    life_of_mirror,
    note_copied,
    note_mirror,
    note_source,
)
from datalayer.migrators.plan import Until
from datalayer.migrators.regions import check_shares
from datalayer.migrators.throttle import RateCap, following
from datalayer.migrators.verify import Verifier
from datalayer.migrators.work import stores_last_writer
from datalayer.routing.flip import write_roles
from datalayer.routing.lastwriter import IntentGuard
from datalayer.routing.route import Phase, Place
from datalayer.routing.shards import base_domain, parse_group
from datalayer.stores.base import MetaRow
from datalayer.stores.sharded import ShardedBackend

if TYPE_CHECKING:
    from datalayer.migrators.verify import Verdict
    from datalayer.migrators.work import Work
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing
    from datalayer.stores.base import Backend

VERDICT: Final = "verdict"
VERDICT_MAX_AGE_US: Final = 24 * 3600 * 1_000_000
CATCH_UP_BACKLOG: Final = 50
CATCH_UP_ROUNDS: Final = 1_000_000
LIVES_MAX: Final = 5

# --- start ---------------------------------------------------------------------------------------------------------


async def check_target(work: Work) -> str:
    """The target can hold the domain, is reachable, and holds nothing of anybody else."""
    return await fit_target(work.places, work.migration.domain, work.migration.target)


async def fit_target(places: Places, domain: str, target: Place) -> str:
    """What ``check_target`` checks, for any place; asked before a migration is entered, so that a refusal leaves none.

    The backend must be open. Raises PreconditionFailed.
    """
    backend = places.backend(target)
    reason = backend.refuses(base_domain(domain))
    if reason:
        raise PreconditionFailed(reason)
    check_shares(backend, domain)
    deployment = await places.control.deployment()
    meta = await backend.read_meta()
    for (held, attempt), row in meta.items():
        if held == domain and row.deployment != deployment:
            raise PreconditionFailed(
                f"backend {backend.name!r} holds {domain} of another deployment ({row.deployment}, attempt {attempt})",
                hint="use an empty database or keyspace",
            )
    if (
        parse_group(domain) is None
        and (domain, 0) not in meta
        and not all([await _empty(places.store(domain, Place(name))) for name in _databases(backend)])
    ):
        raise PreconditionFailed(
            f"backend {backend.name!r} holds {domain} rows that do not belong to this deployment",
            hint="move them away or use an empty database",
        )
    if (domain, target.attempt) not in meta and not await _empty(places.store(domain, target)):
        raise PreconditionFailed(f"the target tables of attempt {target.attempt} exist and hold foreign rows")
    return f"{backend.product} {backend.name}"


def _databases(backend: Backend) -> list[str]:
    """Where plain tables are: of shards each by itself, for the slot groups of attempt 0 may be another backend's."""
    return sorted(backend.members) if isinstance(backend, ShardedBackend) else [backend.name]


async def _empty(store: object) -> bool:
    try:
        return bool(await store.empty())  # type: ignore[attr-defined]
    except SchemaBehind:
        return True


async def create_target(work: Work) -> str:
    """Make the target's tables and say there whose they are."""
    migration = work.migration
    deployment = await work.control.deployment()
    row = MetaRow(migration.domain, migration.target.attempt, deployment, "copy", work.routing.epoch)
    await work.places.backend(migration.target).write_meta(row)
    await work.target_store.create()
    return migration.target.relation(migration.domain)


async def seal_target(work: Work) -> str:
    """From its first moment the target refuses every write but applies."""
    await work.target_guard.install(work.token, sealed=True)
    return "sealed"


async def arm_journal(work: Work) -> str:
    """Every write that commits from now on is journalled (a last-writer source: from the acknowledgement on)."""
    await work.source_guard.install(work.token, sealed=False)
    return "journal on"


async def publish_dual(work: Work) -> str:
    """Processes may apply eagerly; for a last-writer source they begin to write intents."""
    if work.phase is not Phase.DUAL:
        migration = work.migration
        await work.publish(
            replace(
                work.routing,
                phase=Phase.DUAL,
                source=migration.source,
                target=migration.target,
                attempt=migration.attempt,
                canary_pct=100,
            )
        )
    return f"epoch {work.routing.epoch}"


async def await_writers(work: Work) -> str:
    """A last-writer source has no exact barrier at rest: every writer must say that it writes intents."""
    if not work.source_last_writer:
        return "not needed: the journal is exact"
    return await await_fleet(work, "intents")


# --- copy and verify -----------------------------------------------------------------------------------------------


async def backfill(work: Work) -> str:
    """Copy everything the source holds."""
    await note_source(work)
    await note_mirror(work)
    return await copy(work)


async def copy(work: Work) -> str:
    """Copy everything the authority holds to the mirror, going on where a run of the same name stopped."""
    options = work.options
    began = work.clock.monotonic()
    source = work.places.store(work.migration.domain, work.routing.authority)
    _, mirror = work.places.sides(work.routing)
    total = await source.estimate()
    before = 0

    def progress(rows: int) -> None:
        seconds = max(work.clock.monotonic() - began, 1e-9)
        work.reporter.progress("backfill", before + rows, max(total, before + rows), rows / seconds)

    cap = RateCap(work.clock, options.rate_rows_per_s)
    copy = Backfill(
        source,
        mirror,
        work.control,
        work.clock,
        migration_id=work.migration.id,
        run_name=copy_run(work),
        holder=work.holder,
        cap=cap,
        failpoints=work.failpoints,
        progress=progress,
    )
    before = await copy.plan(options.workers)
    async with following(work.control, work.migration.id, work.migration.domain, cap):
        await copy.run(options.workers)
    seconds = work.clock.monotonic() - began
    rows = sum(chunk.rows for chunk in await work.control.chunks(copy.run_name))
    told = {"rows": rows, "copied": copy.copied.rows, "seconds": round(seconds, 3)}
    await work.control.put_document(work.migration.id, "backfill", told)
    await note_copied(work)
    return f"{rows} rows, {copy.copied.rows / max(seconds, 1e-9):.0f} rows/s"


async def catch_up(work: Work) -> str:
    """Replay until the journal is short."""
    done = 0
    async with work.replay_lock:
        replayer = await work.replayer()
        for _ in range(CATCH_UP_ROUNDS):
            replayed = await replayer.step()
            done += len(replayed.records)
            work.note_changed(replayed.records)
            if not replayed.records or await replayer.backlog() <= CATCH_UP_BACKLOG + replayer.quarantined:
                break
    if work.routing.phase is Phase.DUAL:
        await work.add_milestones("backfilled")
    return f"{done} replayed"


async def verify(work: Work) -> str:
    """Compare both sides; PreconditionFailed while records are in quarantine, VerificationFailed when they differ."""
    await check_quarantine(work)
    work.changed.clear()
    verdict = await run_verification(work)
    if not verdict.ready:
        await check_quarantine(work)
        first = verdict.differences[0] if verdict.differences else None
        what = f"{first.what} {first.kind} {first.key}" if first else f"undecided {verdict.undecided[0]}"
        raise VerificationFailed(
            f"{len(verdict.differences)} record(s) differ and {len(verdict.undecided)} are undecided, first: {what}",
            hint="datalayer migrations repair brings them in step",
        )
    if work.routing.phase is Phase.DUAL:
        await work.add_milestones("verified")
    return f"{verdict.authority_records} records equal in {verdict.seconds:.1f} s"


async def run_verification(work: Work, mode: str | None = None) -> Verdict:
    """One verification pass; its verdict is kept with the migration. What the mirror may have lost is copied before it.

    NotFinished when the mirror does not stay in one life for as long as that takes, again and again.
    """
    for _ in range(LIVES_MAX):
        if await note_mirror(work):
            await copy(work)
        life = await life_of_mirror(work)
        verdict = await _compare(work, mode or work.options.verify)
        if await life_of_mirror(work) == life:
            kept = {**verdict.document(), "authority": work.routing.authority.backend, "life": life}
            await work.control.put_document(work.migration.id, VERDICT, kept)
            return verdict
    raise NotFinished("the mirror fails over, or starts again, faster than it can be compared")


async def _compare(work: Work, mode: str) -> Verdict:
    began = work.clock.monotonic()
    authority, mirror = work.routing.authority, work.routing.mirror
    assert mirror is not None, "verification compares two sides"
    domain = work.migration.domain
    guard, _ = work.places.sides(work.routing)
    total = 2 * await work.places.store(domain, authority).estimate()

    def progress(rows: int) -> None:
        seconds = max(work.clock.monotonic() - began, 1e-9)
        work.reporter.progress("verify", rows, max(total, rows), rows / seconds)

    verifier = Verifier(
        domain,
        work.places.store(domain, authority),
        work.places.store(domain, mirror),
        guard.journal,
        control=work.control,
        clock=work.clock,
        run_name=compare_run(work),
        holder=work.holder,
        failpoints=work.failpoints,
        progress=progress,
        mode=mode,
    )
    return await verifier.run(work.options.workers)


# --- arm -----------------------------------------------------------------------------------------------------------


async def check_arm(work: Work) -> str:
    """Nothing is known that would stop the cut-over."""
    await check_ready(work)
    await drain_around(work, enough=SHORT_BACKLOG)
    return "ready"


async def check_ready(work: Work) -> None:
    """PreconditionFailed when a known reason stops the cut-over: quarantine, verdict, foreign hands."""
    await check_quarantine(work)
    verdict = await work.control.document(work.migration.id, VERDICT)
    if verdict is None or not verdict["ready"] or verdict["authority"] != work.routing.authority.backend:
        raise PreconditionFailed("the last verification is not clean or too old", hint="datalayer migrations verify")
    if work.clock.now_us() - verdict["at_us"] > VERDICT_MAX_AGE_US:
        raise PreconditionFailed("the last verification is older than 24 h", hint="datalayer migrations verify")
    await check_verdict(work, verdict)
    guard, mirror = work.places.sides(work.routing)
    if (await guard.state()).tampered:
        raise PreconditionFailed(
            "somebody changed the journal or fence of the authority, or it failed over: writes may be missing",
            hint=tampered_way_out(work.routing),
        )
    if (await mirror.state()).tampered:
        raise PreconditionFailed(
            f"somebody changed the journal or fence of {work.routing.mirror.backend!r}, or it failed over: "  # type: ignore[union-attr]
            "once it rules there would be no way back",
            hint=tampered_way_out(work.routing),
        )
    writers = await guard.journal.foreign_writers()
    if writers and work.options.foreign_writers != "refuse":
        raise PreconditionFailed(
            f"programs that do not use this library write {work.migration.domain}: {', '.join(writers[:5])}",
            hint="move them over, or refuse them with --foreign-writers refuse",
        )


def tampered_way_out(routing: Routing) -> str:
    """What an operator can do about a guard that somebody changed: it depends on which side rules."""
    if routing.authority == routing.source:
        return "datalayer migrations cancel, then migrate again"
    return "datalayer migrations complete, if the way back is not needed; else the runbook's page tampered"


async def check_quarantine(work: Work) -> None:
    """PreconditionFailed when the mirror refused a record for what it is: no copy can be equal before it is mended."""
    quarantined = await work.control.quarantined(work.migration.id, 1)
    if quarantined:
        row = quarantined[0]
        raise PreconditionFailed(
            f"{row.kind} {row.key.hex()} cannot be stored by the target: {row.reason}",
            hint="mend it, then datalayer migrations repair",
        )


async def publish_armed(work: Work) -> str:
    """Reads follow the journal-first rule; leases bind."""
    phase = {Phase.DUAL: Phase.ARMED, Phase.TARGET: Phase.ARMED_BACK}.get(work.routing.phase, work.routing.phase)
    # A reader outside the canary would go on reading the source after the flip: only a stop at armed may have one.
    percent = work.options.canary_pct if work.options.until is Until.ARMED and phase is Phase.ARMED else 100
    if phase is not work.routing.phase or percent != work.routing.canary_pct:
        await work.publish(replace(work.routing, phase=phase, canary_pct=percent))
    return f"epoch {work.routing.epoch}"


async def await_readers(work: Work) -> str:
    """Every reader serves the armed epoch."""
    authority, _ = work.places.sides(work.routing)
    if (await authority.state()).fence == "sealed":
        return "after the permanent fence"
    return await await_fleet(work, str(work.routing.phase))


# --- complete and cancel -------------------------------------------------------------------------------------------


async def publish_complete(work: Work) -> str:
    """The target rules alone: the point of no return."""
    if work.routing.phase is not Phase.COMPLETE:
        await work.add_milestones("completing")
        await work.publish(replace(work.routing, phase=Phase.COMPLETE))
    return f"epoch {work.routing.epoch}"


async def publish_source(work: Work) -> str:
    """The source rules alone again."""
    if "cancelling" not in work.migration.milestones:
        await work.add_milestones("cancelling")
    # A routing of an earlier attempt was never touched by this migration: there is nothing to take back.
    if work.routing.attempt == work.migration.attempt and work.routing.target is not None:
        await work.publish(replace(work.routing, phase=Phase.SOURCE, target=None))
    return f"epoch {work.routing.epoch}"


async def await_rest(work: Work) -> str:
    """Every process has left the migration."""
    return await await_fleet(work, str(work.routing.phase))


async def last_drain(work: Work) -> str:
    """Bring intents of writers that died to a last-writer authority; a trigger journal has nothing to bring."""
    if not stores_last_writer(work.places, work.routing.authority):
        return "not needed"
    migration = work.migration
    guard = work.target_guard if work.routing.authority == migration.target else work.source_guard
    assert isinstance(guard, IntentGuard), "the guard of a last-writer side holds intents"
    if not (await guard.state()).installed:
        return "not needed: the journal was never on, or is off already"
    done = 0
    for _ in range(CATCH_UP_ROUNDS):
        records = await guard.journal.pending(500)
        if not records:
            return f"{done} intents brought"
        await guard.deliver(records)
        await guard.journal.settle(records)
        done += len(records)
    raise NotFinished("the intents did not come to an end")


async def retire_source(work: Work) -> str:
    """The source keeps its data and its fence, and says itself that it is retired."""
    migration = work.migration
    await leave_domain(work, migration.source)
    await work.source_guard.remove(work.token, keep_fence=True)
    deployment = await work.control.deployment()
    row = MetaRow(migration.domain, migration.source.attempt, deployment, "retired", work.routing.epoch)
    await work.places.backend(migration.source).write_meta(row)
    return "retired"


async def remove_reverse(work: Work) -> str:
    """The target's journal goes; the migration is complete."""
    await work.target_guard.remove(work.token, keep_fence=False)
    await write_roles(work.places, work.routing)
    await work.add_milestones("completed")
    return "complete"


async def remove_journal(work: Work) -> str:
    """The source's journal and fence go."""
    await work.source_guard.remove(work.token, keep_fence=False)
    await write_roles(work.places, work.routing)
    return "journal off"


async def drop_target(work: Work) -> str:
    """The copy goes; what cannot be reached now is left behind under its attempt's name, where nothing reads it."""
    try:
        await work.places.ensure_open(work.migration.target)
        await leave_domain(work, work.migration.target)
        await work.target_guard.remove(work.token, keep_fence=False)
        await work.target_store.drop()
        detail = "dropped"
    except DatalayerError as error:
        if not error.retryable:
            raise
        detail = f"left behind: {error.message}"
    await work.add_milestones("cancelled")
    return detail


async def purge_source(work: Work) -> str:
    """Drop the retired data of the source."""
    if "completed" not in work.migration.milestones:
        raise PreconditionFailed("only the source of a completed migration can be purged")
    await work.control.audit(work.holder, "purge", f"{work.migration.id} begins")
    await work.source_store.drop()
    await work.add_milestones("purged")
    await work.control.audit(work.holder, "purge", f"{work.migration.id} done")
    return "dropped"
