"""Each mistake planted in the sharding code must be found."""

import asyncio
import random
from typing import Any

import pytest

from datalayer.errors import DatalayerError
from datalayer.testing.simulation.history import Violation
from datalayer.testing.simulation.loop import Stuck
from datalayer.testing.simulation.matrix import Case, all_cases, number
from datalayer.testing.simulation.sharded import ShardedWorld, sharded_traffic
from datalayer.testing.simulation.sharded_life import ShardedLife
from datalayer.testing.simulation.sharded_matrix import SHARDED_JOURNEYS, ShardedMatrix
from datalayer.testing.simulation.world import Pair
from tests.conftest import TIER
from tests.simulation.seeds import tried
from tests.simulation.sharded_mutants import MUTANTS, Mutant
from tests.simulation.takeover import send_home_half_moved, take_over, wake_when_armed

USERS = Pair(domain="users")
SEEDS = 120
CASES = 250
HELD_S = 0.25
FOUND = (Violation, Stuck, DatalayerError, AssertionError)
IN_CHECK = {"a nested router never gives up", "the lease of the domain is not compared"}
"""The slice of `make check`; `make test` runs them all."""
CHOSEN = [m for m in MUTANTS if TIER != "check" or m.name in IN_CHECK]


class _Slowly:
    """Failpoints: the flip takes long when both sides are closed, so that everybody's write is held."""

    def __init__(self, numbered: Any) -> None:
        self._numbered = numbered

    async def reach(self, name: str) -> None:
        await self._numbered.reach(name)
        if name == "open_other.before":
            await asyncio.sleep(HELD_S)


class _SlowFlips(ShardedMatrix):
    """So much traffic that every flip holds some of it."""

    def _make_traffic(self) -> Any:
        assert isinstance(self.world, ShardedWorld), "made by the matrix"
        return sharded_traffic(self.world, pause_s=0.01)

    @property
    def failpoints(self) -> Any:
        return _Slowly(self.numbered)


def without_a_fault(journey: str) -> None:
    """No caller sees an error of a move in which nothing goes wrong."""
    failed = number(USERS, journey, _SlowFlips).world.history.failed
    assert set(failed) <= {"NotFound"}, failed


def _cases(mutant: Mutant) -> list[Case]:
    class Chosen(ShardedMatrix):
        journeys = {name: SHARDED_JOURNEYS[name] for name in mutant.journeys}  # noqa: RUF012 - read only

    cases = all_cases([USERS], random.Random(1), Chosen)
    return [case for case in cases if mutant.at in ("", case.point.action, case.point.call)][:CASES]


def hunt(mutant: Mutant) -> None:
    """Raises when the mutant is found."""
    match mutant.killed_by:
        case "matrix":
            cases = _cases(mutant)
            for case in (cases[number] for number in tried(f"sharding: {mutant.name}", range(len(cases)))):
                ShardedMatrix(case.pair, case.journey, case).run()
        case "quiet":
            without_a_fault(mutant.journeys[0])
        case "lives":
            for seed in tried(f"sharding: {mutant.name}", range(1, SEEDS)):
                ShardedLife(seed).run()
        case "half moved":
            send_home_half_moved()
        case "late reader":
            wake_when_armed()
        case "sleeper":
            take_over("asleep")
        case "new mover":
            take_over("new")


@pytest.mark.parametrize("mutant", CHOSEN, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_each_mistake_planted_in_the_sharding_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        mutant.patch(patch)
        with pytest.raises(FOUND):
            hunt(mutant)


@pytest.mark.parametrize("journey", ["out, move, back"] if TIER == "check" else list(SHARDED_JOURNEYS))
def test_no_caller_sees_an_error_of_a_move_in_which_nothing_goes_wrong(journey: str) -> None:
    without_a_fault(journey)
