"""Whole lives of sessions between both classes of stores: no revoke undone, no create or touch lost."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count, cycle
from typing import Any

import pytest

from datalayer.domains import sessions
from datalayer.domains.record import Record
from datalayer.routing import lastwriter
from datalayer.stores.memory.server import MemoryServer
from datalayer.testing.simulation.history import Violation
from datalayer.testing.simulation.life import Life
from datalayer.testing.simulation.loop import Stuck
from datalayer.testing.simulation.world import Pair
from tests.conftest import TIER
from tests.simulation.budget import within

CLASSES = ("transactional", "last_writer")
PAIRS = [Pair(source, target, "sessions") for source in CLASSES for target in CLASSES]  # type: ignore[arg-type]
SEEDS = 60


def test_whole_lives_of_sessions_keep_every_promise() -> None:
    hits: Counter[str] = Counter()
    failed: list[str] = []

    def met() -> bool:
        moved = hits["rests at target"] or hits["rests at complete"]
        return bool(hits["revoked"] and (TIER == "check" or (hits["cut"] and moved)))

    for seed, pair in within("sessions", zip(count(1), cycle(PAIRS), strict=False), met):
        life = Life(seed, pair)
        try:
            life.run()
        except (Violation, AssertionError) as error:
            failed.append(f"seed {seed} ({life.plan}): {error}\n" + "\n".join(life.log[-12:]))
        hits.update(life.world.hits)
    assert not failed, "\n".join(failed)
    assert met(), hits


def cuts_have_no_lead(patch: pytest.MonkeyPatch) -> None:
    """Whoever's clock is ahead leaves sessions alive; here every clock is."""
    patch.setattr(sessions, "CUT_LEAD_US", -1_000_000)


def tombstones_have_no_lead(patch: pytest.MonkeyPatch) -> None:
    """A touch under way comes back above the revoke."""
    patch.setattr(sessions, "FINAL_LEAD", 0)
    patch.setattr(lastwriter, "FINAL_LEAD", 0)


def cuts_do_not_move(patch: pytest.MonkeyPatch) -> None:
    """What a replayer or a backfill applies leaves out the cuts."""
    inner: Callable[..., Any] = MemoryServer.apply

    def apply(self: MemoryServer, place: Any, records: Sequence[Record], *args: Any, **named: Any) -> Any:
        return inner(self, place, [one for one in records if one.kind != "session_cut"], *args, **named)

    patch.setattr(MemoryServer, "apply", apply)


MISTAKES = {
    "cuts have no lead": (cuts_have_no_lead, PAIRS),
    "tombstones have no lead": (tombstones_have_no_lead, [PAIRS[3]]),
    "cuts do not move": (cuts_do_not_move, [PAIRS[0], PAIRS[1]]),
}
CHOSEN = [name for name in MISTAKES if TIER != "check" or name == "cuts have no lead"]


@pytest.mark.parametrize("mistake", CHOSEN)
def test_each_planted_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, pairs = MISTAKES[mistake]
    with monkeypatch.context() as patch:
        plant(patch)
        assert any(_fails(seed, pairs[seed % len(pairs)]) for seed in range(SEEDS)), f"nothing noticed: {mistake}"


def _fails(seed: int, pair: Pair) -> bool:
    try:
        Life(seed, pair).run()
    except (Violation, Stuck, AssertionError):
        return True
    return False
