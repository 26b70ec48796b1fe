"""Planted mistakes: what a demo or a test must notice, or its green light means nothing.

Only entry points of the demo and of tests apply them, each to its own process; the product has no switch for them.

``no-journal``  the source's journal triggers are dropped behind the engine's back right after they were installed;
                nobody applies eagerly or replays, and the looks that would notice are blinded: writes during the
                backfill are missed.
``no-arming``   the cut-over does not wait until the readers have acknowledged, and processes never hear of the armed
                phase and late of the next one: they read at the old authority after the new one has taken writes.

The seams they use, all of them data or constructors of the engine:
- ``datalayer.migrators.run.HANDLERS``: one handler per action of the plan; a sabotaged process replaces some
- ``Work``: ``places``, ``migration``, ``control``, ``add_milestones`` (what a handler works with)
- ``DataLayer(settings, control, backends, clock=, options=)`` and ``.start()``: a process is given a control store that
  tells news late, and ``LayerOptions(eager=False, assist=False)``
- ``datalayer_journal_%`` in the text of a SQLite source's journal triggers
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from datalayer.clock import SystemClock
from datalayer.layer import DataLayer, LayerOptions, make_backends, open_control_store
from datalayer.migrators import actions
from datalayer.migrators.lives import life_of_mirror
from datalayer.migrators.plan import Action
from datalayer.migrators.run import HANDLERS
from datalayer.migrators.verify import Verdict
from datalayer.routing.route import LEASE_BINDS, Phase
from datalayer.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from datalayer.clock import Clock
    from datalayer.control.base import Control
    from datalayer.migrators.work import Work
    from datalayer.routing.route import Routing

READERS_LATE_S: Final = 2.5
WRITERS_LATE_S: Final = 0.2


class Sabotage(StrEnum):
    """Which mistake."""

    NO_JOURNAL = "no-journal"
    NO_ARMING = "no-arming"


def sabotage_engine(sabotage: Sabotage) -> None:
    """Plant the mistake in the engine of this process, for good."""
    if sabotage is Sabotage.NO_ARMING:
        HANDLERS[Action.AWAIT_READERS] = _look_away
        return
    HANDLERS[Action.ARM_JOURNAL] = _arm_and_switch_off
    HANDLERS[Action.VERIFY] = _find_nothing
    HANDLERS[Action.CHECK_ARM] = _look_away
    HANDLERS[Action.CHECK_HOLD] = _look_away
    HANDLERS[Action.CHECK_CHANGED] = _look_away


@asynccontextmanager
async def open_sabotaged(config: Path, name: str, sabotage: Sabotage, *, reads: bool) -> AsyncIterator[DataLayer]:
    """The data layer of one process that lives with the mistake; ``reads``: it only reads."""
    settings, clock = load_settings(config), SystemClock()
    control: Any = await open_control_store(settings, clock)
    options = LayerOptions(name=name)
    if sabotage is Sabotage.NO_JOURNAL:
        options = LayerOptions(name=name, eager=False, assist=False)
    else:
        control = LateControl(control, clock, READERS_LATE_S if reads else WRITERS_LATE_S)
    layer = DataLayer(settings, control, make_backends(settings, clock), clock=clock, options=options)
    try:
        await layer.start()
        yield layer
    finally:
        await layer.close()


class LateControl:
    """A control store that shows no armed phase, and each other change of the routings ``late_s`` after it was made.

    A reader that came to know of the armed phase would be right again, however late it learns of the target.
    """

    def __init__(self, control: Control, clock: Clock, late_s: float) -> None:
        self._control = control
        self._clock = clock
        self._late_s = late_s
        self._shown: tuple[int, dict[str, Routing]] | None = None
        self._seen = -1
        self._due = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    async def routings(self) -> tuple[int, dict[str, Routing]]:
        """The routings as of ``late_s`` ago."""
        newest = await self._control.routings()
        now = self._clock.monotonic()
        if newest[0] != self._seen:
            self._seen, self._due = newest[0], now + self._late_s
        armed = any(routing.phase in LEASE_BINDS for routing in newest[1].values())
        if self._shown is None or (now >= self._due and not armed):
            self._shown = newest
        return self._shown

    async def wait_news(self, seen: int, timeout_s: float, *, poll_s: float) -> int:
        """The news counter as of ``late_s`` ago."""
        until = self._clock.monotonic() + timeout_s
        while (await self.routings())[0] == seen and self._clock.monotonic() < until:
            await asyncio.sleep(poll_s)
        assert self._shown is not None
        return self._shown[0]


async def _look_away(work: Work) -> str:
    del work
    return "nothing looked at"


async def _arm_and_switch_off(work: Work) -> str:
    detail = await actions.arm_journal(work)
    database: Any = work.places.backend(work.migration.source).database  # type: ignore[attr-defined]  # SQLite's own
    query = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%INTO%datalayer_journal_%'"
    names = [name for (name,) in await database.fetch(query)]
    assert names, "a journal that is on has triggers"
    for name in names:
        await database.run(f'DROP TRIGGER "{name}"')
    return detail


async def _find_nothing(work: Work) -> str:
    verdict = Verdict("full", work.clock.now_us(), 0.0, 0, 0, 0)
    told = {"authority": work.routing.authority.backend, "life": await life_of_mirror(work)}
    document = {**verdict.document(), **told}
    await work.control.put_document(work.migration.id, actions.VERDICT, document)
    if work.routing.phase is Phase.DUAL:
        await work.add_milestones("verified")
    return "nothing compared"
