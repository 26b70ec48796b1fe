"""The strategy of soft domains: written to both sides for one longest lifetime, then read at the other.

There is no journal: what lives renews itself. From the moment every process has said that it writes to both sides
(`await_both`), one longest lifetime brings everything that lives to the target; a mirror that missed a beat meanwhile
was noted by the process (`routing.soft`), and the wait begins anew. The flip is one publication, either way: a process
that is late by an epoch still writes both and is still right, since whoever one side does not know is asked for at the
other. A side is left alone - `complete`, or `cancel` after a rollback - only when every process follows the other and
one more longest lifetime has passed: what was written to one side alone has then ended.

Clocks do not matter: each wait is measured by the coordinator that waits, from its beginning.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.clock import Deadline
from datalayer.errors import MigrationError, NotFinished, PreconditionFailed, Unavailable, VerificationFailed
from datalayer.migrators import actions
from datalayer.migrators.actions import VERDICT
from datalayer.migrators.fleet import await_fleet
from datalayer.migrators.plan import Stage
from datalayer.migrators.strategy import Strategy
from datalayer.migrators.throttle import RateCap
from datalayer.routing.flip import write_roles
from datalayer.routing.route import Phase
from datalayer.routing.soft import MISSED
from datalayer.stores.base import MetaRow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datalayer.control.base import Migration
    from datalayer.domains.soft import Beat
    from datalayer.migrators.work import Work
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing
    from datalayer.stores.soft import SoftStore

OUTLIVED: Final = "outlived"
"""Document: the last note that a finished wait had seen. While no other is there, both sides know whoever lives."""
COPIED: Final = "copied"
"""Document: how far the copy has come, and the last note of a missed beat when it began."""
POLL_S: Final = 0.1
PATIENCE: Final = 4
"""So many lifetimes a wait goes on while processes note missed beats."""
PAGE: Final = 500
READ_S: Final = 10.0
AGAIN_S: Final = (0.3, 0.6, 1.2)
"""A beat may be on its way to the mirror: whoever differs is looked up again after these times."""
SHOWN_MAX: Final = 100
SUSPECTS_MAX: Final = 10_000


class SoftAction(StrEnum):
    """What a coordinator does with a soft domain."""

    CHECK_TARGET = "check_target"
    CREATE_TARGET = "create_target"
    PUBLISH_DUAL = "publish_dual"
    AWAIT_BOTH = "await_both"
    COPY = "copy"
    OUTLIVE = "outlive"
    COMPARE = "compare"
    PUBLISH_DOUBT = "publish_doubt"
    SWITCH = "switch"
    OUTLIVE_OTHER = "outlive_other"
    PUBLISH_COMPLETE = "publish_complete"
    PUBLISH_SOURCE = "publish_source"
    AWAIT_FLEET = "await_fleet"
    RETIRE_SOURCE = "retire_source"
    DROP_TARGET = "drop_target"
    PURGE_SOURCE = "purge_source"


PLAN: Final = {
    Stage.START: (SoftAction.CHECK_TARGET, SoftAction.CREATE_TARGET, SoftAction.PUBLISH_DUAL),
    Stage.BACKFILL: (SoftAction.AWAIT_BOTH, SoftAction.COPY, SoftAction.OUTLIVE),
    Stage.VERIFY: (SoftAction.OUTLIVE, SoftAction.COMPARE),
    Stage.FLIP: (
        SoftAction.AWAIT_BOTH,
        SoftAction.OUTLIVE,
        SoftAction.COPY,
        SoftAction.PUBLISH_DOUBT,
        SoftAction.AWAIT_BOTH,
        SoftAction.SWITCH,
    ),
    Stage.COMPLETE: (
        SoftAction.AWAIT_BOTH,
        SoftAction.OUTLIVE_OTHER,
        SoftAction.PUBLISH_COMPLETE,
        SoftAction.AWAIT_FLEET,
        SoftAction.RETIRE_SOURCE,
    ),
    Stage.CANCEL: (
        SoftAction.AWAIT_BOTH,
        SoftAction.OUTLIVE_OTHER,
        SoftAction.PUBLISH_SOURCE,
        SoftAction.AWAIT_FLEET,
        SoftAction.DROP_TARGET,
    ),
    Stage.PURGE: (SoftAction.PURGE_SOURCE,),
}


# --- over to two sides -----------------------------------------------------------------------------------------------


async def publish_dual(work: Work) -> str:
    """From now on beats go to both sides; the routing says how long a beat may live."""
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
                floor=int(work.options.lifetime_s * 1_000_000),
            )
        )
    return f"epoch {work.routing.epoch}"


async def await_both(work: Work) -> str:
    """Every process follows the present routing: what it writes from now on goes to both sides."""
    if work.routing.attempt != work.migration.attempt or work.routing.at_rest:
        return "not needed"
    return await await_fleet(work, str(work.routing.phase))


async def copy(work: Work) -> str:
    """Bring what does not renew itself any more: when users were heard of last. What is newer there stays.

    Again, and from the beginning, when the mirror has missed beats since.
    """
    if work.migration.domain == "typing":
        return "not needed: whoever types says so within seconds"
    authority, mirror = _sides(work)
    if "process" in (authority.reach, mirror.reach):
        return f"not copied: {_in_memory(work)} is the memory of each process; when users were last seen stays there"
    noted, ruled = await _noted(work), work.routing.authority.backend
    kept = await work.control.document(work.migration.id, COPIED) or {}
    if kept.get("note", "") != noted:
        kept = {}
    if kept.get("done"):
        return "copied before"
    if kept.get("from", ruled) != ruled:
        kept = {}
    cap = RateCap(work.clock, work.options.rate_rows_per_s)
    after, rows = kept.get("after"), kept.get("rows", 0)
    began = work.clock.monotonic()
    while True:
        page = await authority.scan(after, cap.bounded(PAGE))
        if page.beats:
            await mirror.apply(page.beats)
        rows, after = rows + len(page.beats), page.after
        where = {"after": after, "rows": rows, "done": after is None, "note": noted, "from": ruled}
        await work.control.put_document(work.migration.id, COPIED, where)
        await work.failpoints.reach("copy.page")
        seconds = max(work.clock.monotonic() - began, 1e-9)
        work.reporter.progress("copy", rows, rows, rows / seconds)
        if after is None:
            return f"{rows} copied"
        await cap.take(len(page.beats))


def _in_memory(work: Work) -> str:
    migration = work.migration
    return migration.source.backend if work.source_store.reach == "process" else migration.target.backend


# --- waiting ---------------------------------------------------------------------------------------------------------


async def outlive(work: Work) -> str:
    """One longest lifetime passes in which no process noted a missed beat, unless that has been so already."""
    noted = await _noted(work)
    kept = await work.control.document(work.migration.id, OUTLIVED)
    if kept is not None and kept["note"] == noted:
        await _backfilled(work)
        return "both sides know whoever lives"
    detail = await _wait(work)
    await _backfilled(work)
    return detail


async def outlive_other(work: Work) -> str:
    """Before one side is left alone: what was written to it alone has ended."""
    flipped = "flipped" in work.migration.milestones
    if work.routing.attempt != work.migration.attempt or work.routing.at_rest or not flipped:
        return "not needed: the authority was never another one"
    return await _wait(work)


async def _wait(work: Work) -> str:
    lifetime = abs(work.routing.floor) / 1_000_000
    began = first = work.clock.monotonic()
    noted = await _noted(work)
    while (left := began + lifetime - work.clock.monotonic()) > 0:
        work.reporter.progress("outlive", int(lifetime - left), int(lifetime), 1.0)
        await asyncio.sleep(min(left, POLL_S))
        newest = await _noted(work)
        if newest != noted:
            noted, began = newest, work.clock.monotonic()
            document = await work.control.document(work.migration.id, MISSED) or {}
            what = f"{document.get('process')} missed the mirror: {document.get('reason')}"
            work.reporter.note(f"the wait begins anew: {what}")
            if began - first > PATIENCE * lifetime:
                raise NotFinished(what, hint="bring the mirror back; then datalayer migrate goes on")
    await work.control.put_document(work.migration.id, OUTLIVED, {"note": noted})
    return f"{lifetime:g} s without a missed beat"


async def _noted(work: Work) -> str:
    document = await work.control.document(work.migration.id, MISSED)
    return "" if document is None else str(document["id"])


async def _backfilled(work: Work) -> None:
    if work.routing.phase is Phase.DUAL and "backfilled" not in work.migration.milestones:
        await work.add_milestones("backfilled")


# --- comparing -------------------------------------------------------------------------------------------------------


async def compare(work: Work) -> str:
    """Compare who is there; VerificationFailed where the sides differ."""
    verdict = await verify(work)
    if verdict["differences"]:
        first = verdict["differences"][0]
        raise VerificationFailed(
            f"{len(verdict['differences'])} differ, first: {first['what']} {first['key']}",
            hint="datalayer migrations repair brings them in step",
        )
    if work.routing.phase is Phase.DUAL:
        await work.add_milestones("verified")
    if verdict["mode"] == "none":
        return f"not compared: {_in_memory(work)} is the memory of each process; no process has noted a missed beat"
    return f"{verdict['authority_records']} alike in {verdict['seconds']:.1f} s"


async def verify(work: Work) -> dict[str, Any]:
    """Compare whom each side calls present, both ways; the verdict is kept with the migration."""
    if work.routing.mirror is None:
        raise PreconditionFailed(f"{work.migration.id} has no second side in phase {work.routing.phase}")
    began = work.clock.monotonic()
    authority, mirror = _sides(work)
    parted = "process" in (authority.reach, mirror.reach)
    numbers, found = (0, 0), []
    if not parted:
        missing, present = await _absent_at(work, authority, mirror)
        ghosts, there = await _absent_at(work, mirror, authority)
        numbers = (present, there)
        found = [_difference("missing", key) for key in missing] + [_difference("ghost", key) for key in ghosts]
    verdict = {
        "mode": "none" if parted else "full",
        "at_us": work.clock.now_us(),
        "seconds": work.clock.monotonic() - began,
        "authority_records": numbers[0],
        "mirror_records": numbers[1],
        "candidates": 0,
        "differences": found[:SHOWN_MAX],
        "undecided": [],
        "max_version": 0,
        "clean": not found,
        "ready": not found,
        "authority": work.routing.authority.backend,
    }
    await work.control.put_document(work.migration.id, VERDICT, verdict)
    return verdict


def _difference(what: str, key: UUID) -> dict[str, Any]:
    return {"what": what, "kind": "beat", "key": key.hex, "authority_version": None, "mirror_version": None}


def _sides(work: Work) -> tuple[SoftStore, SoftStore]:
    sides = work.source_store, work.target_store
    return sides if work.routing.authority == work.migration.source else (sides[1], sides[0])


async def _absent_at(work: Work, one: SoftStore, other: SoftStore) -> tuple[list[UUID], int]:
    """Whom one side calls present and the other does not, also when asked again; and about how many are present.

    Beyond SUSPECTS_MAX differences no more are looked for.
    """
    after, present = None, 0
    suspects: set[UUID] = set()
    while True:
        page = await one.scan(after, PAGE)
        alive = _alive(page.beats, work.clock.now_us())
        present += len(alive)
        suspects |= await _not_alive(work, other, alive)
        after = page.after
        if after is None or len(suspects) > SUSPECTS_MAX:
            suspects = await _still_absent(work, one, other, suspects)
        if after is None or len(suspects) > SUSPECTS_MAX:
            return sorted(suspects), present


async def _still_absent(work: Work, one: SoftStore, other: SoftStore, suspects: set[UUID]) -> set[UUID]:
    for seconds in AGAIN_S:
        if not suspects:
            break
        await asyncio.sleep(seconds)
        suspects -= await _not_alive(work, one, suspects)
        suspects = await _not_alive(work, other, suspects)
    return suspects


def _alive(beats: Iterable[Beat], now_us: int) -> set[UUID]:
    return {beat.key for beat in beats if beat.expires_us > now_us}


async def _not_alive(work: Work, store: SoftStore, keys: Iterable[UUID]) -> set[UUID]:
    wanted = list(keys)
    found: dict[UUID, int | None] = {}
    for start in range(0, len(wanted), PAGE):
        found |= await store.ends(wanted[start : start + PAGE], Deadline(work.clock, READ_S))
    if None in found.values():
        raise Unavailable("a side did not answer for everybody")
    now = work.clock.now_us()
    return {key for key, end in found.items() if end is not None and end <= now}


async def repair(work: Work) -> dict[str, Any]:
    """Bring what the last comparison found to the other side, item by item the newest; then compare again."""
    verdict = await work.control.document(work.migration.id, VERDICT) or await verify(work)
    authority, mirror = _sides(work)
    repaired = 0
    if verdict["mode"] != "none":
        keys = [UUID(hex=item["key"]) for item in verdict["differences"]]
        for one, other in ((authority, mirror), (mirror, authority)):
            entries = await one.entries(keys, Deadline(work.clock, READ_S)) if keys else {}
            beats = [beat for entry in entries.values() for beat in entry or ()]
            if beats:
                await other.apply(beats)
                repaired += len(beats)
    return {"repaired": repaired, "quarantined": 0, **await verify(work)}


# --- flip and end ----------------------------------------------------------------------------------------------------


async def publish_doubt(work: Work) -> str:
    """From now on nobody is called away by one side's word: the other one will rule, and be written first."""
    if work.routing.floor > 0:
        await work.add_milestones("flipped")
        await work.publish(replace(work.routing, floor=-work.routing.floor))
    return f"epoch {work.routing.epoch}"


async def switch(work: Work) -> str:
    """The other side answers from now on; beats still go to both."""
    phase = {Phase.DUAL: Phase.TARGET, Phase.TARGET: Phase.DUAL}.get(work.routing.phase)
    if phase is None:
        raise MigrationError(f"there is nothing to flip in phase {work.routing.phase}")
    await work.publish(replace(work.routing, phase=phase))
    await write_roles(work.places, work.routing)
    return f"epoch {work.routing.epoch}"


async def retire_source(work: Work) -> str:
    """The source says itself that it is retired; nobody writes it any more."""
    migration = work.migration
    deployment = await work.control.deployment()
    row = MetaRow(migration.domain, migration.source.attempt, deployment, "retired", work.routing.epoch)
    await work.places.backend(migration.source).write_meta(row)
    await write_roles(work.places, work.routing)
    await work.add_milestones("completed")
    return "complete"


async def drop_target(work: Work) -> str:
    """The copy goes; what cannot be reached now is left behind under its attempt's name, where nothing reads it."""
    try:
        await work.places.ensure_open(work.migration.target)
        await work.target_store.drop()
        detail = "dropped"
    except Unavailable as error:
        detail = f"left behind: {error.message}"
    await write_roles(work.places, work.routing)
    await work.add_milestones("cancelled")
    return detail


async def follow(work: Work) -> None:
    """Nothing runs beside the stages: the processes themselves keep both sides in step."""
    del work
    await asyncio.Event().wait()


async def backlog(places: Places, migration: Migration, routing: Routing) -> int | None:
    """There is no journal whose length could be told."""
    del places, migration, routing
    return None


STRATEGY: Final = Strategy(
    plan=PLAN,
    handlers={
        SoftAction.CHECK_TARGET: actions.check_target,
        SoftAction.CREATE_TARGET: actions.create_target,
        SoftAction.PUBLISH_DUAL: publish_dual,
        SoftAction.AWAIT_BOTH: await_both,
        SoftAction.COPY: copy,
        SoftAction.OUTLIVE: outlive,
        SoftAction.COMPARE: compare,
        SoftAction.PUBLISH_DOUBT: publish_doubt,
        SoftAction.SWITCH: switch,
        SoftAction.OUTLIVE_OTHER: outlive_other,
        SoftAction.PUBLISH_COMPLETE: actions.publish_complete,
        SoftAction.PUBLISH_SOURCE: actions.publish_source,
        SoftAction.AWAIT_FLEET: actions.await_rest,
        SoftAction.RETIRE_SOURCE: retire_source,
        SoftAction.DROP_TARGET: drop_target,
        SoftAction.PURGE_SOURCE: actions.purge_source,
    },
    held=False,
    fit=actions.fit_target,
    follow=follow,
    verify=verify,
    repair=repair,
    backlog=backlog,
)
