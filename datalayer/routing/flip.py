"""The end of a flip: from the permanent fence on, no step needs DDL and any process may finish it.

One function serves both directions: the sealed side is the authority of the routing, the other one is opened.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from datalayer.errors import MigrationError
from datalayer.routing.lastwriter import IntentGuard
from datalayer.routing.replay import Replayer
from datalayer.routing.route import Phase
from datalayer.stores.base import MetaRow

if TYPE_CHECKING:
    from datalayer.control.base import Migration
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing
    from datalayer.stores.base import Token

AFTER_FLIP: Final = {Phase.ARMED: Phase.TARGET, Phase.ARMED_BACK: Phase.DUAL}
DRAIN_ROUNDS: Final = 100_000


async def drain(replayer: Replayer) -> int:
    """Replay until the journal is empty; the number of records. MigrationError when only quarantined keys are left."""
    done = 0
    for _ in range(DRAIN_ROUNDS):
        replayed = await replayer.step()
        done += len(replayed.records)
        if replayed.empty:
            return done
        if replayed.records:
            continue
        left = await replayer.backlog()
        if left <= replayer.quarantined:
            raise MigrationError(
                f"{left} record(s) cannot be stored by the target and keep the journal from being empty",
                hint="datalayer migrations status names them; mend them, then datalayer migrations repair",
            )
    raise MigrationError("the journal did not become empty")


async def finish_flip(
    places: Places,
    routing: Routing,
    migration: Migration,
    token: Token,
    *,
    actor: str,
    replayer: Replayer | None = None,
    known_sealed: bool = False,
) -> Routing:
    """Drain what is left, open the other side, publish it as authority. Idempotent until it has published;
    then ``write_roles`` is due (the next coordinator sees to it, too).

    Requires that the authority of ``routing`` is sealed.
    """
    sealed, other = places.sides(routing)
    if not known_sealed and (await sealed.state()).fence != "sealed":
        raise MigrationError("the authority is not fenced for good: this flip cannot be finished")
    last = replayer or Replayer(places, routing, migration.id)
    await drain(last)
    if isinstance(other, IntentGuard):
        await other.set_floor(max(last.max_version, places.clock.now_us()))
    await other.open(migration.flips)
    published = await places.control.publish(token, replace(routing, phase=AFTER_FLIP[routing.phase]), actor=actor)
    places.note(published)
    return published


async def write_roles(places: Places, routing: Routing) -> None:
    """Bring the backends' own records of who rules in step with a published routing."""
    deployment = await places.control.deployment()
    domain = routing.domain

    def row(attempt: int, role: str) -> MetaRow:
        return MetaRow(domain, attempt, deployment, role, routing.epoch)  # type: ignore[arg-type]

    authority, mirror = routing.authority, routing.mirror
    await places.backend(authority).write_meta(row(authority.attempt, "authority"))
    if mirror is not None:
        await places.backend(mirror).write_meta(row(mirror.attempt, "copy"))
