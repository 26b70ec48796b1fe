"""The strategy of media: write-once bytes, of which the catalogue says where they lie.

The catalogue is journal and visibility at once. An object that the other side lacks is one whose row does not name it: a
walk over the catalogue finds them all, brings their bytes and enters that, by a compare-and-set on the row. Nothing is
held, because either side may answer for an object that it holds; a flip changes only where new bytes go. A process that
stores bytes under an older routing acknowledges the newer one when these are in the catalogue, so that what is given up
was looked at after the last of them.

Names carry the upload's own id and lie under the number of the attempt: nothing that a coordinator which lost its lease
still deletes can be what another one has brought since.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains.catalogue import Hold, StoredObject, object_key
from datalayer.errors import (
    Conflict,
    DatalayerError,
    LostLease,
    NotFound,
    PreconditionFailed,
    VerificationFailed,
)
from datalayer.ids import id_time_us
from datalayer.migrators.actions import (
    VERDICT,
    await_rest,
    check_quarantine,
    create_target,
    publish_complete,
    publish_dual,
    publish_source,
)
from datalayer.migrators.fleet import await_fleet
from datalayer.migrators.leased import CHUNK_TTL_S, work_through
from datalayer.migrators.mover import PAGE, Mover, kept, planned, together, whole
from datalayer.migrators.plan import Stage
from datalayer.migrators.strategy import Strategy
from datalayer.migrators.throttle import RateCap, following
from datalayer.routing.catalogue import Catalogue
from datalayer.routing.flip import write_roles
from datalayer.routing.holders import name_of
from datalayer.routing.mediasweep import KEPT_US
from datalayer.routing.route import Phase
from datalayer.stores.base import MetaRow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datalayer.control.base import Chunk, Migration
    from datalayer.migrators.work import Work
    from datalayer.routing.places import Places
    from datalayer.routing.route import Place, Routing
    from datalayer.stores.objects import ObjectInfo

ROUNDS: Final = 1000
LITTLE: Final = 20
"""A walk that found so few to bring ends a catch-up: whoever needs none to be left walks on."""
FOLLOW_S: Final = 1.0
FOLLOW_SHARE: Final = 10
"""Between two walks beside the stages passes so many times what the last one took."""
DIFFERENCES_MAX: Final = 1000
SAMPLE: Final = 20


class Act(StrEnum):
    """What a coordinator does for media; each has one handler and is recorded as one step."""

    CHECK_TARGET = "check_target"
    CREATE_TARGET = "create_target"
    PUBLISH_DUAL = "publish_dual"
    AWAIT_WRITERS = "await_writers"
    BACKFILL = "backfill"
    CATCH_UP = "catch_up"
    VERIFY = "verify"
    PUBLISH_OTHER = "publish_other"
    AWAIT_FLEET = "await_fleet"
    BRING_LAST = "bring_last"
    PUBLISH_COMPLETE = "publish_complete"
    AWAIT_REST = "await_rest"
    RETIRE_SOURCE = "retire_source"
    PUBLISH_SOURCE = "publish_source"
    BRING_HOME = "bring_home"
    DROP_TARGET = "drop_target"
    PURGE_SOURCE = "purge_source"


PLAN: Final[dict[Stage, tuple[Act, ...]]] = {
    Stage.START: (Act.CHECK_TARGET, Act.CREATE_TARGET, Act.PUBLISH_DUAL),
    Stage.BACKFILL: (Act.AWAIT_WRITERS, Act.BACKFILL, Act.CATCH_UP),
    Stage.VERIFY: (Act.CATCH_UP, Act.VERIFY),
    Stage.FLIP: (Act.CATCH_UP, Act.PUBLISH_OTHER),
    Stage.COMPLETE: (Act.AWAIT_FLEET, Act.BRING_LAST, Act.PUBLISH_COMPLETE, Act.AWAIT_REST, Act.RETIRE_SOURCE),
    Stage.CANCEL: (Act.PUBLISH_SOURCE, Act.AWAIT_REST, Act.BRING_HOME, Act.DROP_TARGET),
    Stage.PURGE: (Act.PURGE_SOURCE,),
}


# --- the stages -----------------------------------------------------------------------------------------------------


async def fit(places: Places, domain: str, target: Place) -> str:
    """The target can hold media, answers, and holds nothing of anybody else."""
    backend = places.backend(target)
    if reason := backend.refuses(domain):
        raise PreconditionFailed(reason)
    deployment = await places.control.deployment()
    meta = await backend.read_meta()
    for (held, attempt), row in meta.items():
        if held == domain and row.deployment != deployment:
            raise PreconditionFailed(
                f"backend {backend.name!r} holds {domain} of another deployment ({row.deployment}, attempt {attempt})",
                hint="use another folder, bucket or prefix",
            )
    store = places.store(domain, target)
    if (domain, target.attempt) not in meta and await store.page("", 1):
        raise PreconditionFailed(
            f"backend {backend.name!r} holds {domain} that do not belong to this deployment",
            hint="use another folder, bucket or prefix",
        )
    return f"{backend.product} {backend.name}"


async def check_target(work: Work) -> str:
    """As ``fit``; and the catalogue has a place."""
    await Catalogue(work.places).routing()
    return await fit(work.places, work.migration.domain, work.migration.target)


async def await_writers(work: Work) -> str:
    """Every process knows the other side, and may be asked for what lies there."""
    return await await_fleet(work, "dual")


async def backfill(work: Work) -> str:
    """Bring all that the catalogue holds now."""
    began = work.clock.monotonic()
    cap = RateCap(work.clock, work.options.rate_rows_per_s)
    mover = Mover(work, work.migration.target, cap)
    total = await _estimate(work)
    run = await planned(work, "backfill")
    brought = 0

    async def copy(chunk: Chunk) -> None:
        nonlocal brought
        while not chunk.done:
            page, after, done = await mover.catalogue.page(chunk.range, chunk.after, PAGE)
            async with kept(work, chunk):
                count = await mover.bring_all(page)
            brought += count
            chunk = replace(chunk, after=after, rows=chunk.rows + count, done=done)
            await work.failpoints.reach("objects.page")
            await work.control.checkpoint(chunk, CHUNK_TTL_S)
            seconds = max(work.clock.monotonic() - began, 1e-9)
            work.reporter.progress("backfill", brought, max(total, brought), brought / seconds)

    async with following(work.control, work.migration.id, work.migration.domain, cap):
        await work_through(work.control, work.clock, run, holder=work.holder, workers=work.options.workers, work=copy)
    seconds = work.clock.monotonic() - began
    rows = sum(chunk.rows for chunk in await work.control.chunks(run))
    await work.control.put_document(work.migration.id, "backfill", {"rows": rows, "seconds": round(seconds, 3)})
    return f"{rows} objects, {brought / max(seconds, 1e-9):.0f} a second"


async def _estimate(work: Work) -> int:
    place = (await Catalogue(work.places).routing()).authority
    await work.places.ensure_open(place)
    return int(await work.places.store("catalogue", place).estimate()) // 2


async def catch_up(work: Work) -> str:
    """Bring what the mirror lacks until a walk finds little."""
    done = await _walk_until(Mover(work, _mirror(work)), LITTLE)
    if work.routing.phase is Phase.DUAL:
        await work.add_milestones("backfilled")
    return f"{done} brought"


async def _walk_until(mover: Mover, enough: int) -> int:
    done = 0
    for _ in range(ROUNDS):
        brought = await mover.walk()
        done += brought
        quarantined = len(await mover.work.control.quarantined(mover.work.migration.id, DIFFERENCES_MAX))
        if brought <= max(enough, quarantined if enough else 0):
            return done
        if not enough:
            await check_quarantine(mover.work)
    raise PreconditionFailed("objects came faster than they could be brought", hint="raise --workers or --rate")


async def verify(work: Work) -> str:
    """Compare both sides; VerificationFailed when an object of the mirror is missing or other than the catalogue says."""
    await check_quarantine(work)
    verdict = await run_verification(work)
    await check_quarantine(work)
    if not verdict["ready"]:
        first = verdict["differences"][0]
        raise VerificationFailed(
            f"{len(verdict['differences'])} object(s) differ, first: {first['what']} {first['name']}",
            hint="datalayer migrations repair brings them again",
        )
    if work.routing.phase is Phase.DUAL:
        await work.add_milestones("verified")
    return f"{verdict['authority_records']} objects equal in {verdict['seconds']:.1f} s"


@dataclass(slots=True)
class _Compared:
    records: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, payload: str) -> _Compared:
        return cls(**json.loads(payload)) if payload else cls()

    def payload(self) -> str:
        return json.dumps({"records": self.records, "differences": self.differences[:DIFFERENCES_MAX]})


async def run_verification(work: Work) -> dict[str, Any]:
    """Every object of the catalogue at the mirror: there, of the right size and hash. The verdict is kept.

    ``sample``: sizes of all, hashes of one in twenty. What the mirror lacks is brought first.
    """
    began = work.clock.monotonic()
    mover = Mover(work, _mirror(work))
    authority = work.routing.authority
    total = await _estimate(work)
    run = await planned(work, f"verify-{work.routing.epoch}")
    seen = 0

    async def compare(chunk: Chunk) -> None:
        nonlocal seen
        compared = _Compared.of(chunk.payload)

        async def one(stored: StoredObject) -> None:
            if mover.target not in stored.held:
                await mover.bring(stored)
            hashed = work.options.verify == "full" or int(stored.sha256[:8], 16) % SAMPLE == 0
            wrong = await mover.holders.right(stored, mover.target, hashed=hashed)
            compared.records += 1
            if wrong is not None and await _still(mover, stored):
                compared.differences.append(_difference(stored, wrong))

        while not chunk.done:
            page, after, done = await mover.catalogue.page(chunk.range, chunk.after, PAGE)
            async with kept(work, chunk):
                await together(page, one)
            seen += len(page)
            chunk = replace(chunk, after=after, rows=chunk.rows + len(page), done=done, payload=compared.payload())
            await work.failpoints.reach("objects.verify")
            await work.control.checkpoint(chunk, CHUNK_TTL_S)
            seconds = max(work.clock.monotonic() - began, 1e-9)
            work.reporter.progress("verify", seen, max(total, seen), seen / seconds)

    chunks = await work_through(
        work.control, work.clock, run, holder=work.holder, workers=work.options.workers, work=compare
    )
    parts = [_Compared.of(chunk.payload) for chunk in chunks]
    differences = [one for part in parts for one in part.differences]
    records = sum(part.records for part in parts)
    verdict = {
        "mode": work.options.verify,
        "authority_records": records,
        "mirror_records": records - sum(one["what"] == "missing" for one in differences),
        "differences": differences,
        "undecided": [],
        "orphans": await _orphans(work, mover),
        "seconds": round(work.clock.monotonic() - began, 3),
        "at_us": work.clock.now_us(),
        "clean": not differences,
        "ready": not differences,
        "authority": authority.backend,
    }
    await work.control.put_document(work.migration.id, VERDICT, verdict)
    await work.control.drop_run(run)
    return verdict


async def _still(mover: Mover, stored: StoredObject) -> bool:
    """Whether the catalogue still says that the mirror has this object."""
    now = await mover.catalogue.object(stored.owner_id, stored.sha256)
    return now is not None and not now.deleted and now.name == stored.name


def _difference(stored: StoredObject, what: str) -> dict[str, Any]:
    return {
        "what": what,
        "kind": "object",
        "key": object_key(stored.owner_id, stored.sha256).hex(),
        "name": stored.key,
        "authority_version": stored.version,
        "mirror_version": None,
    }


async def _orphans(work: Work, mover: Mover) -> int:
    """How many objects of the mirror no row knows, beyond those that may be on their way."""
    store = await mover.holders.store(mover.target)
    before = work.clock.now_us() - KEPT_US
    found, after = 0, ""
    while page := await store.page(after, 500):
        after = page[-1].name
        found += len(await _unknown(mover.catalogue, [one for one in page if one.modified_us < before]))
    return found


async def _unknown(catalogue: Catalogue, infos: list[ObjectInfo]) -> list[str]:
    names: dict[UUID, list[UUID]] = {}
    for info in infos:
        owner, _, upload = info.name.partition("/")
        names.setdefault(UUID(owner), []).append(UUID(upload))
    unknown: list[str] = []
    for owner_id, uploads in names.items():
        known = await catalogue.known(owner_id, uploads)
        unknown += [f"{owner_id.hex}/{upload.hex}" for upload in uploads if upload not in known]
    return unknown


async def publish_other(work: Work) -> str:
    """New bytes go to the other side from now on; what lies at either is found by its row."""
    phase = Phase.TARGET if work.routing.phase is Phase.DUAL else Phase.DUAL
    await work.publish(replace(work.routing, phase=phase))
    await write_roles(work.places, work.routing)
    return f"epoch {work.routing.epoch}"


async def await_uploads(work: Work) -> str:
    """Every process stores new bytes at the target, and what it began before has come to an end."""
    if work.routing.phase is Phase.COMPLETE:
        return "not needed"
    return await await_fleet(work, "target")


async def bring_last(work: Work) -> str:
    """The target has every object: nobody stores bytes elsewhere any more."""
    return f"{await _walk_until(Mover(work, work.migration.target), 0)} brought"


async def bring_home(work: Work) -> str:
    """The source has every object, and no row names the target any more."""
    mover = Mover(work, work.migration.source)
    brought = await _walk_until(mover, 0)
    target = name_of(work.migration.target)
    async for page in whole(mover.catalogue):
        for stored in page:
            await _let_go(mover, stored, target)
    return f"{brought} brought home"


async def _let_go(mover: Mover, stored: StoredObject, name: str) -> None:
    """A place holds an object no longer; Conflict where it is the last."""
    if name in stored.held:
        with contextlib.suppress(NotFound):
            await mover.catalogue.execute(Hold(stored.owner_id, stored.sha256, stored.name, drop=name))


async def drop_target(work: Work) -> str:
    """The copy goes; what cannot be reached now is left behind under its attempt's name, where nothing reads it."""
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


async def retire_source(work: Work) -> str:
    """The source keeps its objects until a purge, and says itself that it is retired; the migration is complete."""
    migration = work.migration
    deployment = await work.control.deployment()
    row = MetaRow(migration.domain, migration.source.attempt, deployment, "retired", work.routing.epoch)
    await work.places.backend(migration.source).write_meta(row)
    await write_roles(work.places, work.routing)
    await work.add_milestones("completed")
    return "complete"


async def purge_source(work: Work) -> str:
    """Row after row the source is let go of, then its bytes are deleted; bytes that were on their way stay for two days."""
    if "completed" not in work.migration.milestones:
        raise PreconditionFailed("only the source of a completed migration can be purged")
    await work.control.audit(work.holder, "purge", f"{work.migration.id} begins")
    source = name_of(work.migration.source)
    mover = Mover(work, work.routing.authority)
    store = await mover.holders.store(source)
    purged = 0

    async def one(stored: StoredObject) -> None:
        nonlocal purged
        if stored.held == (source,):
            await mover.bring(stored)
        try:
            await _let_go(mover, stored, source)
        except Conflict:
            return  # no other place has right bytes: these stay
        await work.failpoints.reach("objects.let_go")
        await store.delete([stored.key])
        purged += 1

    async for page in whole(mover.catalogue):
        await together(page, one)
    before = work.clock.now_us() - KEPT_US
    after = ""
    while infos := await store.page(after, 500):
        after = infos[-1].name
        await store.delete(await _leftovers(mover, infos, before))
    await store.clear(before)
    await work.add_milestones("purged")
    await work.control.audit(work.holder, "purge", f"{work.migration.id} done")
    return f"{purged} objects deleted"


async def _leftovers(mover: Mover, infos: Iterable[ObjectInfo], before: int) -> list[str]:
    """Of these objects at the source those that no row needs there: unknown ones that are old."""
    return await _unknown(mover.catalogue, [one for one in infos if _began(one) < before and one.modified_us < before])


def _began(info: ObjectInfo) -> int:
    return id_time_us(UUID(info.name.partition("/")[2]))


HANDLERS: Final = {
    Act.CHECK_TARGET: check_target,
    Act.CREATE_TARGET: create_target,
    Act.PUBLISH_DUAL: publish_dual,
    Act.AWAIT_WRITERS: await_writers,
    Act.BACKFILL: backfill,
    Act.CATCH_UP: catch_up,
    Act.VERIFY: verify,
    Act.PUBLISH_OTHER: publish_other,
    Act.AWAIT_FLEET: await_uploads,
    Act.BRING_LAST: bring_last,
    Act.PUBLISH_COMPLETE: publish_complete,
    Act.AWAIT_REST: await_rest,
    Act.RETIRE_SOURCE: retire_source,
    Act.PUBLISH_SOURCE: publish_source,
    Act.BRING_HOME: bring_home,
    Act.DROP_TARGET: drop_target,
    Act.PURGE_SOURCE: purge_source,
}


# --- beside the stages, and on demand -------------------------------------------------------------------------------


async def follow(work: Work) -> None:
    """Bring what is stored meanwhile, so that little is left for the next stage."""
    while True:
        took = 0.0
        try:
            if work.routing.mirror is not None and "backfilled" in work.migration.milestones:
                began = work.clock.monotonic()
                await Mover(work, work.routing.mirror).walk()
                took = work.clock.monotonic() - began
        except LostLease:
            return
        except DatalayerError as error:
            if not error.retryable:
                work.reporter.note(f"media: {error.message}")
        await asyncio.sleep(max(FOLLOW_S, FOLLOW_SHARE * took))


async def verify_now(work: Work) -> dict[str, Any]:
    """One verification pass now; its verdict as a document."""
    _mirror(work)
    return await run_verification(work)


async def repair(work: Work) -> dict[str, Any]:
    """Delete at the mirror what the last comparison found wrong, and bring it again; then compare again."""
    mover = Mover(work, _mirror(work))
    verdict = await work.control.document(work.migration.id, VERDICT) or {}
    keys = [bytes.fromhex(item["key"]) for item in verdict.get("differences", ())]
    keys += [row.key for row in await work.control.quarantined(work.migration.id, DIFFERENCES_MAX)]
    await work.control.release_quarantine(work.migration.id, [("object", key) for key in keys])
    repaired = 0
    store = await mover.holders.store(mover.target)
    for key in keys:
        stored = await mover.catalogue.object(UUID(bytes=key[:16]), key[16:].hex())
        if stored is None or stored.deleted:
            continue
        if await mover.holders.right(stored, mover.target, hashed=True) is not None:
            await _let_go(mover, stored, mover.target)
            await store.delete([stored.key])
            await mover.bring(replace(stored, held=tuple(one for one in stored.held if one != mover.target)))
        repaired += 1
    left = await work.control.quarantined(work.migration.id, DIFFERENCES_MAX)
    return {"repaired": repaired, "quarantined": len(left), **await run_verification(work)}


async def backlog(places: Places, migration: Migration, routing: Routing) -> int | None:
    """How many objects the mirror lacks, counted over the catalogue; None where that is unknown."""
    if routing.mirror is None or routing.attempt != migration.attempt:
        return None
    name = name_of(routing.mirror)
    try:
        return sum([name not in stored.held async for page in whole(Catalogue(places)) for stored in page])
    except DatalayerError:
        return None


def _mirror(work: Work) -> Place:
    if work.routing.mirror is None:
        raise PreconditionFailed(f"{work.migration.id} has no second side in phase {work.routing.phase}")
    return work.routing.mirror


STRATEGY: Final = Strategy(
    plan=PLAN,
    handlers=HANDLERS,
    held=False,
    fit=fit,
    follow=follow,
    verify=verify_now,
    repair=repair,
    backlog=backlog,
)
