"""A soft domain moves in simulation: late news, lost calls, missed beats, deaf processes, dead coordinators."""

import random
from collections import Counter
from itertools import count
from typing import Any

import pytest

from datalayer.migrators.soft import STRATEGY, SoftAction
from datalayer.migrators.work import Work
from datalayer.routing.soft import Misses, SoftSides
from datalayer.testing.simulation.history import Violation
from datalayer.testing.simulation.matrix import all_cases, number
from datalayer.testing.simulation.soft import SOFT_JOURNEYS, SOFT_PAIR, SoftMatrix
from datalayer.testing.simulation.soft_lives import TROUBLES, SoftLife
from tests.simulation.budget import within


def lives(trouble: str, programme: str = "soft") -> Counter[str]:
    """Runs of one kind of trouble; the first violation is raised."""
    hits: Counter[str] = Counter()
    for seed in within(programme, count(), lambda: _telling(hits)):
        hits.update(SoftLife(seed, trouble).run().hits)
    return hits


def _telling(hits: Counter[str]) -> bool:
    """Whether there was enough of what the promises are about."""
    gone = sum(hits[f"gone: offline in {phase}"] for phase in ("dual", "target"))
    return gone > 0 and min(hits["online in dual"], hits["online in target"]) > 100


@pytest.mark.parametrize("trouble", TROUBLES)
def test_whoever_beats_is_never_called_away(trouble: str) -> None:
    hits = lives(trouble)
    assert _telling(hits), hits


def test_the_journeys_reach_every_action() -> None:
    hit = {action for journey in SOFT_JOURNEYS for action in number(SOFT_PAIR, journey, SoftMatrix).actions}
    assert hit == set(SoftAction) == set(STRATEGY.handlers)
    assert {action for actions in STRATEGY.plan.values() for action in actions} == set(SoftAction)


def test_a_coordinator_may_die_at_every_call_and_another_goes_on() -> None:
    failed: list[str] = []
    struck: list[bool] = []
    for case in within("soft matrix", all_cases([SOFT_PAIR], random.Random(1), SoftMatrix), lambda: sum(struck) >= 10):
        try:
            struck.append(SoftMatrix(case.pair, case.journey, case).run().struck_at is not None)
        except (Violation, AssertionError) as error:
            failed.append(f"{case} => {error}")
    assert not failed, "\n".join(failed[:10])
    assert sum(struck) >= 10


# --- planted mistakes ------------------------------------------------------------------------------------------------


async def _at_once(work: Work) -> str:
    if work.routing.phase == "dual" and "backfilled" not in work.migration.milestones:
        await work.add_milestones("backfilled")
    return "planted"


async def _one_side(self: SoftSides, keys: Any, now: int, deadline: Any) -> Any:
    return await self.route.authority.ends(keys, deadline)


def _deaf_note(self: Misses, routing: Any, reason: str) -> None:
    del self, routing, reason


def _flip_before_the_wait(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(STRATEGY.handlers, SoftAction.OUTLIVE, _at_once)


def _flip_before_everybody_writes_both(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(STRATEGY.handlers, SoftAction.AWAIT_BOTH, _at_once)


def _forget_missed_beats(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Misses, "note", _deaf_note)


def _ask_one_side(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SoftSides, "ends", _one_side)


def _complete_before_the_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    _flip_before_everybody_writes_both(patch)
    patch.setitem(STRATEGY.handlers, SoftAction.OUTLIVE_OTHER, _at_once)


def _complete_before_the_other_side_has_ended(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(STRATEGY.handlers, SoftAction.OUTLIVE_OTHER, _at_once)


@pytest.mark.parametrize(
    ("plant", "trouble", "promise"),
    [
        (_flip_before_the_wait, "window", "present"),
        (_forget_missed_beats, "window", "present"),
        (_ask_one_side, "lossy", "never away"),
        (_complete_before_the_acknowledgement, "deaf", "never away"),
        (_complete_before_the_other_side_has_ended, "deaf", "never away"),
    ],
)
def test_a_planted_mistake_turns_a_life_red(
    monkeypatch: pytest.MonkeyPatch, plant: Any, trouble: str, promise: str
) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation, match=promise):
        lives(trouble, "soft mutants")
