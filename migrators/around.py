"""A slot group that moves while its whole domain has the way back open.

After `migrate users --to shards` the source is kept in step by the reverse journals of the groups' tables, so that the
domain can be rolled back - also after its groups have gone to other shards. A group's move therefore hands the domain's
journal over: it is put on at the new place before the first write there, and inside the hold what the old place's
journal still holds is replayed to the domain's source. Nothing is left behind, and nothing has to be remembered.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from datalayer.errors import DatalayerError, NotFinished, PreconditionFailed, Quarantine
from datalayer.routing.replay import BATCH, Replayer
from datalayer.routing.shards import parse_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.control.base import Migration
    from datalayer.domains.record import Record
    from datalayer.migrators.work import Work
    from datalayer.routing.route import Place, Routing
    from datalayer.stores.base import Guard, Token

ROUNDS: Final = 10_000
SHORT_BACKLOG: Final = 200
IDLE_S: Final = 0.02
RETRY_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Around:
    """The domain's own migration, at `target`; ``token`` is of the domain's lease, which is held."""

    migration: Migration
    routing: Routing
    token: Token

    def guard(self, work: Work, place: Place) -> Guard:
        """The domain's guard at one place of the group that moves."""
        group = parse_group(work.migration.domain)
        assert group is not None, "only slot groups move inside their domain"
        number = group.numbered(self.migration.attempt)
        if place not in work.around_guards:
            work.around_guards[place] = work.places.store(group.domain, place).guard(number)
        return work.around_guards[place]


async def join_domain(work: Work) -> str:
    """The domain's journal is on at the other side before anything can be written there."""
    mirror = work.routing.mirror
    if work.around is None or mirror is None:
        return "not needed"
    for migration in await work.control.migrations(work.migration.domain):
        # A cancelled move leaves behind what it cannot reach; this guard does not carry that attempt's number.
        if "cancelled" in migration.milestones and migration.target.backend == mirror.backend:
            await leave_domain(work, migration.target)
    await work.around.guard(work, mirror).install(work.around.token, sealed=False)
    return f"the journal of {work.around.migration.id} is on at {mirror.backend}"


async def leave_domain(work: Work, place: Place) -> None:
    """The domain's journal goes from a place that the group has left."""
    if work.around is not None:
        await work.around.guard(work, place).remove(work.around.token, keep_fence=False)


async def drain_around(work: Work, *, enough: int = 0) -> int:
    """Replay what the domain's journal holds at the group's authority to the domain's source; how many records.

    Until no more than ``enough`` were found: before the hold, while others write, it may never be empty. Raises what
    the source raises (a hold steps back then), and PreconditionFailed for a record that it cannot store.
    """
    around = work.around
    if around is None:
        return 0
    journal = around.guard(work, work.routing.authority).journal
    domain = around.migration.domain
    source = work.places.guard(domain, around.migration.source, around.migration.attempt, "source")
    store, group = work.places.store(domain, around.migration.target), parse_group(work.routing.domain)
    assert group is not None, "around a domain's migration slot groups move"
    done = 0
    for _ in range(ROUNDS):
        records = await journal.pending(BATCH)
        if records:
            await _apply(around, source, [one for one in records if not store.marks(one, group)])
            await journal.settle(records)
            done += len(records)
        if len(records) <= enough:
            return done
    raise NotFinished(f"the journal of {around.migration.id} does not get shorter")


async def _apply(around: Around, source: Guard, records: Sequence[Record]) -> None:
    try:
        await source.apply(records)
    except Quarantine as error:
        (kind, key), reason = next(iter(error.rejected.items()))
        raise PreconditionFailed(
            f"{kind} {key.hex()} cannot be stored by {around.migration.source.backend!r}, "
            f"where the way back of {around.migration.id} leads: {reason}",
            hint=f"mend it; or datalayer migrations complete {around.migration.id}, if the way back is not needed",
        ) from error


async def replay_around(work: Work, around: Around) -> None:
    """Keep the domain's source in step for as long as its lease is held here, where no other process does it.

    Not within a hold: a round asks the journals of all slot groups, and everybody's writes would wait for that, too.
    """
    replayer: Replayer | None = None
    while True:
        idle = True
        try:
            async with work.around_lock:
                if not work.flipping:
                    if replayer is None:
                        replayer = Replayer(work.places, around.routing, around.migration.id)
                        await replayer.load_quarantine()
                    idle = len((await replayer.step()).records) < BATCH
        except DatalayerError as error:
            if not error.retryable:
                work.reporter.note(f"replay of {around.migration.id}: {error.message}")
            await asyncio.sleep(RETRY_S)
        await asyncio.sleep(IDLE_S if idle else 0)
