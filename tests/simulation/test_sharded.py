"""Slot groups in virtual time: a fault at every call of a move, and whole lives under every disaster."""

import os
import random
from collections import Counter
from itertools import count
from typing import ClassVar

import pytest

from datalayer.migrators.plan import Action
from datalayer.testing.simulation.history import Violation
from datalayer.testing.simulation.matrix import all_cases, number
from datalayer.testing.simulation.sharded_life import ShardedLife
from datalayer.testing.simulation.sharded_matrix import SHARDED_JOURNEYS, ShardedMatrix
from datalayer.testing.simulation.world import Pair
from tests.conftest import TIER
from tests.simulation.budget import within

FIRST = int(os.environ.get("DATALAYER_SEED", "1"))
USERS = Pair(domain="users")
MESSAGES = Pair(domain="messages")
SOMETIMES = (
    "acknowledged",
    "users listed",
    "names swapped",
    "a name was taken",
    "process crash",
    "coordinator crash",
    "zombie coordinator wakes",
    "two operators",
    "outage of c",
    "process hears news late",
    "request lands late",
    "command move",
    "command sweep",
    "command migrate",
    "command rollback",
    "command complete",
    "command cancel",
    "command repair",
    "ended: done",
    "sides compared",
    "rests at source",
    "rests at target",
    "rests at complete",
)
RARELY = (
    "outage of s",
    "outage of shards/s0",
    "outage of shards/s1",
    "outage of shards/s2",
    "pause past the lease",
    "ended: LostLease",
    "ended: NotFinished",
    "orphan claims",
    "orphans freed",
    "rests at dual",
    "moves finished",
)
"""Demanded of the long programme."""


class _OneJourney(ShardedMatrix):
    """The slice of `make check`: to number the calls of all journeys takes longer than it has."""

    journeys: ClassVar = {"out, move, back": SHARDED_JOURNEYS["out, move, back"]}


def test_the_journeys_reach_every_action_of_stores_that_order_writes_themselves() -> None:
    journeys = [journey for journey in SHARDED_JOURNEYS if TIER != "check" or "home" in journey]
    hit = {action for journey in journeys for action in number(USERS, journey, ShardedMatrix).actions}
    cancel = {Action.PUBLISH_SOURCE, Action.REMOVE_JOURNAL, Action.LEAVE_TARGET, Action.DROP_TARGET}
    missing = cancel if TIER == "check" else set()
    assert hit == set(Action) - missing


def test_one_fault_anywhere_in_a_move_of_groups_loses_nothing_and_can_be_resumed() -> None:
    pairs, matrix = ([USERS], _OneJourney) if TIER == "check" else ([USERS, MESSAGES], ShardedMatrix)
    failed: list[str] = []
    struck: set[str] = set()
    demanded = 3 if TIER == "check" else 25
    for case in within("sharded matrix", all_cases(pairs, random.Random(2), matrix), lambda: len(struck) >= demanded):
        try:
            if ShardedMatrix(case.pair, case.journey, case).run().struck_at is not None:
                struck.add(case.point.action)
        except (Violation, AssertionError) as error:
            failed.append(f"{case} => {error}")
    assert not failed, "\n".join(failed[:10])
    assert len(struck) >= demanded, "a fault met each of so many actions"


def test_whole_lives_over_slot_groups_keep_every_promise() -> None:
    hits: Counter[str] = Counter()
    failed: list[str] = []
    demanded = {"check": (), "test": SOMETIMES, "deep": (*SOMETIMES, *RARELY)}[TIER]
    for seed in within("sharded", count(FIRST), lambda: all(hits[name] for name in demanded)):
        life = ShardedLife(seed)
        try:
            life.run()
        except (Violation, AssertionError) as error:
            failed.append(f"seed {seed} ({life.plan}): {error}\n" + "\n".join(life.log[-12:]))
        hits.update(life.world.hits)
        if len(failed) > 3:
            break
    assert not failed, "\n".join(failed)
    assert [name for name in demanded if not hits[name]] == []


@pytest.mark.parametrize("seed", [3])
def test_the_same_seed_is_the_same_run_over_slot_groups(seed: int) -> None:
    runs = [ShardedLife(seed, commands=1).run() for _ in range(2)]
    assert runs[0].trace.digest() == runs[1].trace.digest()
