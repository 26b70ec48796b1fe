"""Whole lives with a search index, and the planted mistakes that they must notice."""

import random
from collections import Counter
from itertools import count

import pytest

from datalayer.errors import DatalayerError
from datalayer.migrators.projection import PLAN, Act
from datalayer.testing.simulation.history import Violation
from datalayer.testing.simulation.indexed import INDEXED_JOURNEYS, IndexedLife, IndexedMatrix
from datalayer.testing.simulation.loop import Stuck
from datalayer.testing.simulation.matrix import all_cases, number
from datalayer.testing.simulation.world import Pair
from tests.conftest import TIER
from tests.simulation.budget import within
from tests.simulation.index_mutants import INDEX_MUTANTS, IndexMutant
from tests.simulation.seeds import tried

SEEDS = 80
PAIRS = [
    Pair("transactional", "transactional"),
    Pair("transactional", "last_writer"),
    Pair("last_writer", "transactional"),
]
IN_CHECK = {"entry outside the transaction"}
CHOSEN = [m for m in INDEX_MUTANTS if TIER != "check" or m.name in IN_CHECK]
SOMETIMES = (
    "index compared",
    "both indexes compared",
    "index migrate",
    "index rollback",
    "index complete",
    "index cancel",
    "index purge",
    "outage of i",
    "outage of j",
    "process crash",
    "coordinator crash",
)


def test_whole_lives_with_an_index_end_with_an_index_that_equals_the_store() -> None:
    hits: Counter[str] = Counter()
    failed: list[str] = []
    demanded = () if TIER == "check" else SOMETIMES
    for seed in within("indexed", count(1), lambda: all(hits[name] for name in demanded)):
        life = IndexedLife(seed)
        try:
            life.run()
        except (Violation, AssertionError) as error:
            failed.append(f"seed {seed} ({life.plan}): {error}\n" + "\n".join(life.log[-12:]))
        hits.update(life.world.hits)
        if len(failed) > 3:
            break
    assert not failed, "\n".join(failed)
    assert [name for name in demanded if not hits[name]] == []


def test_the_journeys_reach_every_action_of_an_index() -> None:
    hit = {action for journey in INDEXED_JOURNEYS for action in number(PAIRS[0], journey, IndexedMatrix).actions}
    assert hit >= set(Act)
    assert {action for stage in PLAN.values() for action in stage} == set(Act)


def test_one_fault_anywhere_leaves_the_index_in_step() -> None:
    cases = all_cases(PAIRS, random.Random(1), IndexedMatrix)
    failed: list[str] = []
    struck: set[str] = set()
    demanded = 3 if TIER == "check" else 25
    for case in within("indexed matrix", cases, lambda: len(struck) >= demanded):
        matrix = IndexedMatrix(case.pair, case.journey, case)
        try:
            if matrix.run().struck_at is not None:
                struck.add(case.point.action)
        except (Violation, AssertionError) as error:
            failed.append(f"{case} => {error}")
    assert not failed, "\n".join(failed[:10])
    assert len(struck) >= demanded, "a fault met each of so many actions"


@pytest.mark.parametrize("mutant", CHOSEN, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_each_planted_mistake_of_an_index_is_found(mutant: IndexMutant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        mutant.patch(patch)
        for seed in tried(f"index: {mutant.name}", range(1, SEEDS)):
            try:
                IndexedLife(seed, mutant.pair).run()
            except (Violation, Stuck, DatalayerError):
                return
    pytest.fail(f"nothing noticed: {mutant.name}")
