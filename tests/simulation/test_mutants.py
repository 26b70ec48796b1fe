"""Each planted mistake must be found: the red control of every oracle of this folder."""

import random

import pytest

from datalayer.errors import DatalayerError
from datalayer.testing.simulation.history import Violation
from datalayer.testing.simulation.life import Life
from datalayer.testing.simulation.loop import Stuck
from datalayer.testing.simulation.matrix import Matrix, all_cases
from tests.conftest import TIER
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.seeds import tried

SEEDS = 240
CASES = 400
IN_CHECK = {"lapsing fence not made permanent", "no tombstones", "intent after the write"}
"""The slice of `make check`; `make test` runs them all."""
CHOSEN = [m for m in MUTANTS if TIER != "check" or m.name in IN_CHECK]


def hunted(mutant: Mutant) -> str | None:
    """How the mutant was found, or None."""
    if mutant.killed_by == "matrix":
        cases = [c for c in all_cases([mutant.pair], random.Random(1)) if mutant.how in (None, c.how)][:CASES]
        for number in tried(f"protocol: {mutant.name}", range(len(cases))):
            case = cases[number]
            try:
                Matrix(case.pair, case.journey, case).run()
            except (Violation, Stuck, DatalayerError) as error:
                return f"case {number}: {error}"
        return None
    for seed in tried(f"protocol: {mutant.name}", range(1, SEEDS)):
        life = Life(seed, mutant.pair)
        if mutant.foreign and not life.plan.foreign:
            continue
        try:
            life.run()
        except (Violation, Stuck, DatalayerError) as error:
            return f"seed {seed}: {error}"
    return None


@pytest.mark.parametrize("mutant", CHOSEN, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_each_planted_mistake_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        mutant.patch(patch)
        assert hunted(mutant) is not None, f"nothing noticed: {mutant.name}"
