"""The marks of a place, written again where a store's failover lost them.

A mark says that a place exists, so that a late write of an attempt that has ended lands nowhere. Whoever writes it again
must know that the attempt has not ended, and must not be overtaken by its end: a place is dropped only after every
process has acknowledged a later epoch. So the watchdog calls this while it takes no newer routing, and the call has a
short deadline: a process that was stopped in it, and assumed dead meanwhile, sends nothing when it wakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.clock import Deadline
from datalayer.stores.base import Marked

if TYPE_CHECKING:
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing

MARK_S: Final = 2.0


async def mark_again(places: Places, routing: Routing) -> int:
    """Write the missing marks of the place that rules; how many there were.

    Nothing is written unless the control store's newest routing is this one and the backend says itself that it holds
    the authority, for this deployment. Repeating it is harmless.
    """
    store = places.store(routing.domain, routing.authority)
    if not isinstance(store, Marked):
        return 0
    deadline = Deadline(places.clock, MARK_S)
    row = (await places.backend(routing.authority).read_meta()).get((routing.domain, routing.authority.attempt))
    if row is None or row.role != "authority" or row.epoch > routing.epoch:
        return 0
    if row.deployment != await places.control.deployment():
        return 0
    _, routings = await places.control.routings()
    if routings.get(routing.domain) != routing:
        return 0
    return await store.mark_again(deadline)
