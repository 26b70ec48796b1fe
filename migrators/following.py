"""What a move of messages or users owes the search indexes: their outboxes move with the writes.

Each live index has an outbox at every place that may be written to. So it is on at the other side before a cut-over of
either direction can let anybody write there. The side that was left goes on being drained by the indexers until nobody
looks at it any more; before that, what is left of it is handed over to the side that stays: also while an index is down,
for entries are keys, and do not care in which outbox of their domain they wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datalayer.domains.movement import INDEXED
from datalayer.errors import DatalayerError
from datalayer.routing.shards import base_domain

if TYPE_CHECKING:
    from datalayer.migrators.work import Work
    from datalayer.routing.route import Place


async def join_indexes(work: Work) -> str:
    """The outbox of every index is on at the other side before anything can be written there."""
    mirror = work.routing.mirror
    if base_domain(work.migration.domain) not in INDEXED or mirror is None:
        return "not needed"
    indexes = work.places.indexes
    live = await indexes.fresh()
    done = await indexes.follow(indexes.at(work.migration.domain, mirror), live)
    return f"{len(live)} indexes follow {mirror.backend}, {done} outboxes"


async def leave_source(work: Work) -> str:
    """What indexes have not taken in from the source is theirs to find at the target."""
    return await _leave(work, work.migration.source)


async def leave_target(work: Work) -> str:
    """The other way. A target that was never near ruling holds nothing, and may be down."""
    try:
        return await _leave(work, work.migration.target)
    except DatalayerError as error:
        if not error.retryable or work.migration.flips > 0:
            raise
        return f"left behind: {error.message}"


async def _leave(work: Work, place: Place) -> str:
    domain = work.migration.domain
    if base_domain(domain) not in INDEXED:
        return "not needed"
    indexes = work.places.indexes
    await work.places.ensure_open(place)
    heir = indexes.at(domain, work.routing.authority)[0]
    done = [await indexes.hand_over(leaf, heir) for leaf in indexes.at(domain, place)]
    return f"{sum(done)} entries handed over to {work.routing.authority.backend}"
