"""What an operator sees: where a migration stands, and why it does not go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datalayer.control.base import coordinator_lease
from datalayer.domains.movement import Movement, movement_of
from datalayer.errors import DatalayerError, PreconditionFailed
from datalayer.migrators.actions import VERDICT, tampered_way_out
from datalayer.migrators.fleet import describe, proven_dead
from datalayer.migrators.strategy import strategy_of
from datalayer.routing.route import Phase

if TYPE_CHECKING:
    from datalayer.control.base import Control, Migration
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing


async def choose(control: Control, wanted: str | None, domain: str | None = None) -> Migration:
    """A migration by id, or the only unfinished one (else the newest); PreconditionFailed when there is none."""
    found = await control.migrations(domain)
    if wanted is not None:
        for migration in found:
            if migration.id == wanted:
                return migration
        names = ", ".join(m.id for m in found[:10]) or "none"
        raise PreconditionFailed(f"there is no migration {wanted!r}", hint=f"known: {names}")
    live = [m for m in found if not m.finished]
    if len(live) > 1:
        raise PreconditionFailed(
            "several migrations are unfinished", hint=f"name one of: {', '.join(m.id for m in live)}"
        )
    if not found:
        raise PreconditionFailed("there is no migration", hint="datalayer migrate DOMAIN --to BACKEND starts one")
    return (live or found)[0]


async def status(places: Places, migration: Migration) -> dict[str, Any]:
    """Everything known of a migration as plain values."""
    control = places.control
    _, routings = await control.routings()
    places.learn(routings)
    routing = routings[migration.domain]
    chunks = await control.chunks(f"{migration.id}/backfill")
    verdict = await control.document(migration.id, VERDICT)
    holds = (await control.document(migration.id, "holds") or {"holds": []})["holds"]
    quarantined = await control.quarantined(migration.id, 1000)
    behind = await control.behind(migration.domain, routing.epoch)
    holder = await control.holder(coordinator_lease(migration.domain))
    backlog = await strategy_of(migration.domain).backlog(places, migration, routing)
    foreign = await _foreign_writers(places, migration, routing)
    return {
        "id": migration.id,
        "domain": migration.domain,
        "source": migration.source.backend,
        "target": migration.target.backend,
        "attempt": migration.attempt,
        "phase": _phase(migration, routing),
        "milestones": sorted(migration.milestones),
        "epoch": routing.epoch,
        "paused": migration.paused,
        "backlog": backlog,
        "foreign_writers": foreign,
        "rows_copied": sum(chunk.rows for chunk in chunks),
        "ranges": {"done": sum(chunk.done for chunk in chunks), "all": len(chunks)},
        "quarantined": [
            {"kind": row.kind, "key": row.key.hex(), "version": row.version, "reason": row.reason}
            for row in quarantined[:20]
        ],
        "quarantined_count": len(quarantined),
        "verification": verdict,
        "holds_ms": [hold["ms"] for hold in holds],
        "holds": holds,
        "behind": [describe(process) for process in behind],
        "steps": [
            {"action": step.action, "state": step.state, "detail": step.detail, "at_us": step.at_us}
            for step in await control.steps(migration.id, 12)
        ],
        "coordinator": None if holder is None else holder[0],
        "reverse_days": _reverse_days(places, migration, routing),
        "next_steps": next_steps(migration, routing),
    }


async def why(places: Places, migration: Migration) -> list[dict[str, str]]:
    """Each reason for which the migration does not go on: {"reason", "detail", "way_out"}."""
    control = places.control
    _, routings = await control.routings()
    places.learn(routings)
    routing = routings[migration.domain]
    reasons: list[dict[str, str]] = []

    def because(reason: str, detail: str, way_out: str) -> None:
        reasons.append({"reason": reason, "detail": detail, "way_out": way_out})

    for process in await control.behind(migration.domain, routing.epoch):
        state = "has ended" if proven_dead(process) else "has not acknowledged the routing"
        because(
            "process",
            f"{describe(process)} {state} (epoch {routing.epoch})",
            f"end it, or --assume-dead {process.host}:{process.pid}",
        )
    quarantined = await control.quarantined(migration.id, 1000)
    if quarantined:
        row = quarantined[0]
        because(
            "quarantine",
            f"{len(quarantined)} record(s) cannot be stored, first {row.kind} {row.key.hex()}: {row.reason}",
            "mend them, then datalayer migrations repair",
        )
    verdict = await control.document(migration.id, VERDICT)
    if verdict is not None and not verdict["clean"]:
        because(
            "verification",
            f"{len(verdict['differences'])} record(s) differ, {len(verdict['undecided'])} undecided",
            "datalayer migrations repair",
        )
    if migration.paused:
        because("paused", "an operator paused it", "datalayer migrations resume")
    holder = await control.holder(coordinator_lease(migration.domain))
    if holder is not None:
        because("coordinator", f"{holder[0]} is at work", "wait for it, or end it")
    await _why_stores(places, migration, routing, because)
    foreign = await _foreign_writers(places, migration, routing)
    if foreign and migration.options.get("foreign_writers") != "refuse":
        because(
            "foreign_writers",
            f"programs that do not use this library write {migration.domain}: {', '.join(foreign[:5])}",
            f"move them over, or datalayer migrate {migration.domain} --to {migration.target.backend} "
            "--foreign-writers refuse",
        )
    if migration.finished:
        return [{"reason": "finished", "detail": f"{migration.id} has ended", "way_out": "datalayer migrations list"}]
    if not reasons:
        because("none", f"nothing is in the way in phase {routing.phase}", next_steps(migration, routing)[0])
    return reasons


async def _why_stores(places: Places, migration: Migration, routing: Routing, because: Any) -> None:
    for side, place in (("source", migration.source), ("target", migration.target)):
        try:
            await places.ensure_open(place)
            if not routing.at_rest and _has_guards(migration):
                state = await places.guard(migration.domain, place, migration.attempt, side).state()  # type: ignore[arg-type]
                if state.tampered:
                    because("tampered", f"somebody changed the guard of {place.backend!r}", tampered_way_out(routing))
        except DatalayerError as error:
            because("backend", f"{side} {place.backend!r}: {error.message}", "bring it back")


async def _foreign_writers(places: Places, migration: Migration, routing: Routing) -> list[str]:
    """Programs other than this library that write at the authority; [] where that is unknown."""
    if routing.mirror is None or routing.attempt != migration.attempt or not _has_guards(migration):
        return []
    try:
        await places.ensure_open(routing.authority)
        guard, _ = places.sides(routing)
        return await guard.journal.foreign_writers()
    except DatalayerError:
        return []


def _has_guards(migration: Migration) -> bool:
    return movement_of(migration.domain) is Movement.RECORDS


def _phase(migration: Migration, routing: Routing) -> str:
    if migration.finished:
        return "complete" if "completed" in migration.milestones else "cancelled"
    return str(routing.phase) if routing.attempt == migration.attempt else str(Phase.SOURCE)


def _reverse_days(places: Places, migration: Migration, routing: Routing) -> float | None:
    if routing.phase is not Phase.TARGET or routing.attempt != migration.attempt:
        return None
    return round((places.clock.now_us() - migration.updated_us) / 86_400e6, 2)


def next_steps(migration: Migration, routing: Routing) -> list[str]:
    """The commands that make sense now."""
    if migration.finished:
        purge = "completed" in migration.milestones and "purged" not in migration.milestones
        return ["datalayer migrations purge --yes"] if purge else []
    go_on = f"datalayer migrate {migration.domain} --to {migration.target.backend} --yes"
    match routing.phase if routing.attempt == migration.attempt else Phase.SOURCE:
        case Phase.TARGET:
            return ["datalayer migrations complete", "datalayer migrations rollback"]
        case Phase.ARMED_BACK | Phase.HOLD_BACK:
            return ["datalayer migrations rollback"]
        case Phase.COMPLETE:
            return ["datalayer migrations complete"]
        case _:
            return [go_on, "datalayer migrations cancel"]
