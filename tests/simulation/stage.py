"""Gates: actors run as tasks, and each call that an actor makes to a store waits until the order lets it pass.

A name is ``actor.call`` ("copier.scan"). The gates stand around the ports, not inside a store, so that the same table
can be played on real ones.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from datalayer.routing.places import Places
from datalayer.routing.route import Place

GATED = frozenset({
    "execute", "scan", "fetch", "apply", "get", "history", "pending", "settle", "dirty", "admit",
    "fence", "seal", "open", "publish", "repair",
})  # fmt: skip


class Stage:
    """Lets the calls of a table row happen one after the other; calls that the row does not name pass at once."""

    def __init__(self, order: Sequence[str]) -> None:
        self._order = list(order)
        self._free = {name: asyncio.Event() for name in order}
        self._done = {name: asyncio.Event() for name in order}
        self.when_passed: dict[str, Callable[[], object]] = {}
        """What to do at the instant a gate is passed, before the call."""

    async def call(self, name: str, method: Any, *args: Any, **named: Any) -> Any:
        free = self._free.get(name)
        if free is None or self._done[name].is_set():
            return await method(*args, **named)
        await free.wait()
        self.when_passed.get(name, _nothing)()
        try:
            return await method(*args, **named)
        finally:
            self._done[name].set()

    async def play(self, actors: Sequence[asyncio.Task[Any]]) -> None:
        """Open gate after gate; an actor that ended before its gate makes the row impossible."""
        for name in self._order:
            self._free[name].set()
            waiting = asyncio.ensure_future(self._done[name].wait())
            await asyncio.wait([waiting, asyncio.ensure_future(_all(actors))], return_when=asyncio.FIRST_COMPLETED)
            assert waiting.done(), f"{name} was never called"
        await asyncio.gather(*actors)


def _nothing() -> None:
    """Nobody listens."""


async def _all(actors: Sequence[asyncio.Task[Any]]) -> None:
    await asyncio.wait(actors)
    # What the last call of an actor set is seen first.
    await asyncio.sleep(0)
    await asyncio.sleep(0)


class Gated:
    """A port whose calls pass the gates of one actor."""

    def __init__(self, inner: Any, actor: str, stage: Stage) -> None:
        self._inner, self._actor, self._stage = inner, actor, stage
        if hasattr(inner, "journal"):
            self.journal = Gated(inner.journal, actor, stage)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "intents":
            return lambda *args: Gated(found(*args), self._actor, self._stage)
        if name not in GATED:
            return found

        async def call(*args: Any, **named: Any) -> Any:
            return await self._stage.call(f"{self._actor}.{name}", found, *args, **named)

        return call


class GatedPlaces(Places):
    """The places of one actor."""

    def __init__(self, inner: Places, actor: str, stage: Stage) -> None:
        super().__init__(inner.backends, inner.control, inner.clock, eager=False)
        self.control = Gated(inner.control, actor, stage)
        self._actor, self._stage = actor, stage

    def store(self, domain: str, place: Place) -> Any:
        return Gated(super().store(domain, place), self._actor, self._stage)

    def guard(self, domain: str, place: Place, attempt: int, side: Any) -> Any:
        if self.backend(place).authority_class == "last_writer":
            return super().guard(domain, place, attempt, side)
        # super() would ask our gated store for its guard: the plain one, gated here.
        return Gated(Places.store(self, domain, place).guard(attempt), self._actor, self._stage)
