import pytest

from tests.conftest import TIER
from tests.simulation.model import MUTANTS, RUNS, search

STATES_MAX = {"check": 3_000, "test": 150_000, "deep": 700_000}[TIER]
"""For each run; eight runs: more than a million states in `make test`, more than five million in `make deep`."""
IN_CHECK = ("the fence never becomes permanent", "version from a counter alone", "settled before applied")
CHOSEN = [name for name in MUTANTS if TIER != "check" or name in IN_CHECK]


@pytest.mark.parametrize("name", RUNS)
def test_the_protocol_keeps_every_promise(name: str) -> None:
    found = search(RUNS[name], states_max=STATES_MAX)
    assert found.trace is None, "\n".join(found.trace or ())
    assert found.full or found.states >= STATES_MAX


@pytest.mark.parametrize("name", CHOSEN)
def test_without_one_rule_a_promise_is_broken(name: str) -> None:
    assert search(MUTANTS[name], states_max=1_500_000).trace is not None
