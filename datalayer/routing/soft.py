"""Soft domains while they have one side, and while they have two.

While a domain moves, each beat goes to both sides; the authority's answer is the beat's. What fails at the mirror fails
nobody: it is noted in the control store, and whoever moves the domain begins its wait anew. A reader asks the authority,
and the mirror for those whom the authority does not call present: nobody is called absent while a process that is late
by an epoch renews the other side. Once the target may rule (`Routing.floor` < 0), a mirror that does not answer leaves
those unknown; before, it was never trusted, and a target that is down changes no answer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from datalayer.domains.soft import end_of, merge
from datalayer.errors import Closed, DatalayerError, StaleRoute, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from datalayer.clock import Clock, Deadline
    from datalayer.control.base import Control
    from datalayer.domains.soft import Beat, Entry
    from datalayer.routing.places import Route
    from datalayer.routing.route import Routing
    from datalayer.routing.router import Router
    from datalayer.stores.soft import SoftStore

log = logging.getLogger("datalayer.soft")
MIRROR_WAIT_S: Final = 0.25
"""How long a beat waits for the mirror; what takes longer goes on by itself."""
MIRROR_PENDING_MAX: Final = 10_000
NOTE_EVERY_S: Final = 0.2
MISSED: Final = "missed"
"""The document of a migration in which processes note that the mirror has missed a beat."""


class SoftSides:
    """One soft domain of one process: beats to all its sides, answers from them."""

    def __init__(self, router: Router, misses: Misses) -> None:
        self._router = router
        self._misses = misses
        self._pending: set[asyncio.Task[None]] = set()

    @property
    def route(self) -> Route:
        """The route in force."""
        return self._router.route

    async def put(self, beat: Beat, deadline: Deadline) -> None:
        """Bring a beat to the authority, and to the mirror if there is one. Raises what the authority raises."""
        route = self._router.route
        authority: SoftStore = route.authority
        if route.routing.mirror is None:
            # as _fresh does: nearly every beat passes here
            try:
                await authority.beat(beat, deadline)
            except StaleRoute as error:
                raise Unavailable(error.message) from error
            return
        mirrored = self._mirror(route, beat, deadline)
        await _fresh(authority.beat(beat, deadline))
        if mirrored is not None:
            await asyncio.wait({mirrored}, timeout=MIRROR_WAIT_S)

    def _mirror(self, route: Route, beat: Beat, deadline: Deadline) -> asyncio.Task[None] | None:
        if route.mirror is None:
            self._misses.note(route.routing, "this process has no connection to it")
            return None
        if self._too_long(route.routing, beat):
            self._misses.note(route.routing, "a lifetime is longer than the migration waits for")
        if len(self._pending) >= MIRROR_PENDING_MAX:
            self._misses.note(route.routing, "it answers too slowly")
            return None
        task = asyncio.create_task(self._bring(route, beat, deadline), name="datalayer-mirror")
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    def _too_long(self, routing: Routing, beat: Beat) -> bool:
        return beat.expires_us - beat.version > abs(routing.floor)

    async def _bring(self, route: Route, beat: Beat, deadline: Deadline) -> None:
        try:
            await route.mirror.beat(beat, deadline)
        except DatalayerError as error:
            self._misses.note(route.routing, error.message)

    async def ends(self, keys: Sequence[UUID], now: int, deadline: Deadline) -> dict[UUID, int | None]:
        """As ``SoftStore.ends``, over both sides; ``now`` (microseconds) is what the caller compares with, too: an end that
        passes meanwhile must not be taken for one that the other side was asked about.
        """
        route = self._router.route
        found = await _answers(route.authority.ends(keys, deadline), keys)
        if route.routing.mirror is None:
            return found
        doubtful = [key for key, end in found.items() if end is None or end <= now]
        if not doubtful:
            return found
        there = await self._at_mirror(route, "ends", doubtful, deadline)
        torn = [key for key in doubtful if (end := there[key]) is not None and end > now]
        if torn:
            # A side that missed a leave must not bring anybody back: item by item the newest beat decides.
            own, other = await self._both(route, torn, deadline)
            for key in torn:
                one, two = own[key], other[key]
                found[key] = None if two is None else end_of(merge(one or (), two))
        if route.routing.floor < 0:
            found |= {key: None for key in doubtful if there[key] is None}
        return found

    async def entries(self, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, Entry | None]:
        """As ``SoftStore.entries``, merged from both sides."""
        route = self._router.route
        if route.routing.mirror is None:
            return await _answers(route.authority.entries(keys, deadline), keys)
        own, there = await self._both(route, keys, deadline)
        return {key: _merged(own[key], there[key]) for key in keys}

    async def _both(
        self, route: Route, keys: Sequence[UUID], deadline: Deadline
    ) -> tuple[dict[UUID, Entry | None], dict[UUID, Entry | None]]:
        asked = _answers(route.authority.entries(keys, deadline), keys)
        own, there = await asyncio.gather(asked, self._at_mirror(route, "entries", keys, deadline))
        return own, there

    async def _at_mirror(self, route: Route, what: str, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, Any]:
        """What the mirror says, in a part of the time: it must not cost the authority's answer."""
        if route.mirror is None:
            return dict.fromkeys(keys)
        try:
            async with asyncio.timeout(max(0.0, min(deadline.remaining(), 4 * MIRROR_WAIT_S))):
                return await _answers(getattr(route.mirror, what)(keys, deadline), keys)
        except TimeoutError:
            return dict.fromkeys(keys)

    async def stop(self) -> None:
        """End what is on its way to the mirror."""
        for task in list(self._pending):
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)


def _merged(own: Entry | None, there: Entry | None) -> Entry | None:
    """A side that does not answer leaves the other one's word."""
    if own is None or there is None:
        return own if there is None else there
    return merge(own, there)


async def _fresh(call: Any) -> None:
    """A place that is gone is not written: the next try finds the new route."""
    try:
        await call
    except StaleRoute as error:
        raise Unavailable(error.message) from error


async def _answers(call: Any, keys: Sequence[UUID]) -> dict[UUID, Any]:
    """The answer of a store; what does not answer at all says nothing of any key."""
    try:
        found: dict[UUID, Any] = await call
    except Closed:
        raise
    except DatalayerError as error:
        if not error.retryable:
            raise
        return dict.fromkeys(keys)
    return found


class Misses:
    """Notes in the control store that the mirror of a migration has missed beats of this process.

    Each note differs from the one before, so that whoever waits sees it, whatever clocks say. One that cannot be written
    now is written later. Errors of the control store are swallowed here: beats do not depend on it.
    """

    def __init__(self, control: Control, clock: Clock, process_id: str, name: str) -> None:
        self._control = control
        self._clock = clock
        self._process_id = process_id
        self._name = name
        self._pending: dict[str, str] = {}
        self._written = 0
        self._task: asyncio.Task[None] | None = None

    def note(self, routing: Routing, reason: str) -> None:
        """The mirror of this routing has missed a beat."""
        self._pending[f"{routing.domain}-{routing.attempt}"] = reason
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write(), name="datalayer-misses")

    async def _write(self) -> None:
        while self._pending:
            migration, reason = next(iter(self._pending.items()))
            del self._pending[migration]
            self._written += 1
            value = {
                "id": f"{self._process_id}/{self._written}",
                "process": self._name,
                "reason": reason,
                "at_us": self._clock.now_us(),
            }
            try:
                await self._control.put_document(migration, MISSED, value)
            except DatalayerError as error:
                log.debug("a missed beat could not be noted: %s", error.message)
                self._pending.setdefault(migration, reason)
            await asyncio.sleep(NOTE_EVERY_S)

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
