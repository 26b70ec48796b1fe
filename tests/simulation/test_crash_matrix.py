import random
from itertools import product

import pytest

from datalayer.migrators.plan import PLAN, Action
from datalayer.stores.memory.faults import Fault
from datalayer.testing.simulation.history import Violation
from datalayer.testing.simulation.matrix import JOURNEYS, Case, Matrix, Point, all_cases, number
from datalayer.testing.simulation.world import Pair
from tests.conftest import TIER
from tests.simulation.budget import within

CLASSES = ("transactional", "last_writer")
PAIRS = [Pair(source, target) for source, target in product(CLASSES, CLASSES)]  # type: ignore[arg-type]


def test_the_journeys_reach_every_registered_action() -> None:
    hit = {action for pair in PAIRS for journey in JOURNEYS for action in number(pair, journey).actions}
    assert hit == set(Action)
    assert {action for stage in PLAN.values() for action in stage} == set(Action)


def test_one_fault_anywhere_loses_nothing_and_can_be_resumed() -> None:
    cases = all_cases(PAIRS, random.Random(1))
    failed: list[str] = []
    struck: set[str] = set()
    demanded = 10 if TIER == "check" else len(Action)
    for case in within("crash matrix", cases, lambda: len(struck) >= demanded):
        matrix = Matrix(case.pair, case.journey, case)
        try:
            if matrix.run().struck_at is not None:
                struck.add(case.point.action)
        except (Violation, AssertionError) as error:
            failed.append(f"{case} => {error}")
    assert not failed, "\n".join(failed[:10])
    assert len(struck) >= demanded, "a fault met each of so many actions"


def test_the_matrix_notices_a_migration_that_cannot_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datalayer.testing.simulation.matrix.TRIES", 1)
    point = next(p for p in number(PAIRS[0], "over").points if p.action == Action.SEAL_TARGET)
    with pytest.raises(Violation, match="I7"):
        Matrix(PAIRS[0], "over", Case(PAIRS[0], "over", point, Fault.CRASH_AFTER)).run()


def test_a_point_beyond_the_last_call_strikes_nothing() -> None:
    case = Case(PAIRS[0], "over", Point(100_000, "nowhere", "nothing"), Fault.CRASH_AFTER)
    assert Matrix(PAIRS[0], "over", case).run().struck_at is None
