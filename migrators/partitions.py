"""Messages by time, as an operator sees them: the partitions of every place that rules, and detaching old ones.

A place is one transaction; a run that was killed is repeated, and finds done what was done. The domain's lease is held
meanwhile, so that no migration of it, nor of a slot group, begins beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from datalayer.errors import NotFinished, PreconditionFailed, Unavailable
from datalayer.migrators.lease import held_lease
from datalayer.routing.shards import base_domain
from datalayer.stores.sharded import ShardedBackend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from datalayer.migrators.options import Failpoints
    from datalayer.routing.places import Places
    from datalayer.routing.route import Place

MESSAGES: Final = "messages"
LOCK_WAIT_S: Final = 20.0


class Part(Protocol):
    """One partition, from ``low`` to below ``high``; None: open."""

    @property
    def name(self) -> str: ...
    @property
    def low(self) -> UUID | None: ...
    @property
    def high(self) -> UUID | None: ...


class TimeParts(Protocol):
    """The partitions of one place."""

    async def listed(self) -> Sequence[tuple[Part, int]]:
        """By time, with their bytes; none of a plain table."""
        ...

    async def stuck(self) -> Sequence[str]:
        """The open ends that have grown too large to be split."""
        ...

    async def detach(self, before_ms: int, wait_s: float) -> list[str]:
        """Take out every partition that is older as a whole; their names from now on."""
        ...


@runtime_checkable
class Partitioned(Protocol):
    """A store whose place may be partitioned by time."""

    partitions: TimeParts


@dataclass(frozen=True, slots=True)
class Listed:
    """One partition of one place; bounds in ms since 1970, None: open. ``stuck``: an end too large to be split."""

    backend: str
    name: str
    low_ms: int | None
    high_ms: int | None
    size: int
    stuck: bool = False


@dataclass(frozen=True, slots=True)
class Detached:
    """One table that was a partition."""

    backend: str
    table: str


async def list_partitions(places: Places) -> list[Listed]:
    """Every partition of messages, where they are served now; none where their tables are plain."""
    found = []
    for place in await _ruling(places):
        parts = await _parts_of(places, place)
        stuck = await parts.stuck()
        for part, size in await parts.listed():
            low, high = (None if bound is None else bound.int >> 80 for bound in (part.low, part.high))
            found.append(Listed(place.backend, part.name, low, high, size, part.name in stuck))
    return found


async def detach(places: Places, before_ms: int, holder: str, failpoints: Failpoints) -> list[Detached]:
    """Take out every partition whose every id is older; a repeat goes on.

    PreconditionFailed while messages are being moved or the way back is open, and where they are not partitioned;
    NotFinished, naming who is in the way, when a table could not be had in time.
    """
    gone: list[Detached] = []

    def note(_: str) -> None:
        """Nothing is told: the run is short."""

    async with held_lease(places.control, places.clock, MESSAGES, holder, note):
        ruling = await _ruling(places)
        for migration in await places.control.migrations():
            if base_domain(migration.domain) == MESSAGES and not migration.finished:
                raise PreconditionFailed(
                    f"migration {migration.id} of {migration.domain} has not ended: nothing can be detached before",
                    hint="datalayer migrations complete or cancel",
                )
        for place in ruling:
            await failpoints.reach(f"detach.{place.backend}.{place.attempt}.before")
            try:
                names = await (await _parts_of(places, place)).detach(before_ms, LOCK_WAIT_S)
            except Unavailable as error:
                raise NotFinished(f"{error.message}; {len(gone)} tables are detached", hint=error.hint) from error
            gone += [Detached(place.backend, name) for name in names]
    return gone


async def _ruling(places: Places) -> list[Place]:
    """Where messages are served now: one place, or one for each slot group."""
    _, routings = await places.control.routings()
    places.learn(routings)
    if MESSAGES not in routings:
        raise PreconditionFailed("messages have no place yet", hint="open the application once")
    place = routings[MESSAGES].authority
    if not isinstance(places.backend(place), ShardedBackend):
        return [place]
    groups = places.shard_map(MESSAGES, place.attempt)
    if groups is None:
        raise PreconditionFailed("the slot groups of messages are not complete in the control store")
    return [routings[group.name].authority for group in groups.groups]


async def _parts_of(places: Places, place: Place) -> TimeParts:
    await places.ensure_open(place)
    store = places.store(MESSAGES, place)
    if not isinstance(store, Partitioned):
        raise PreconditionFailed(
            f"messages are on backend {place.backend!r}, which has no partitions", hint="datalayer routes"
        )
    return store.partitions
