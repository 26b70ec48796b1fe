"""A user moves between regions under writers and readers, with steps that fail, and processes that die at any of them."""

import pytest

from datalayer.errors import DatalayerError
from tests.conftest import TIER
from tests.simulation.region_mutants import MUTANTS, Patch
from tests.simulation.region_world import World, play
from tests.simulation.seeds import tried

RUNS = {"check": 60, "test": 250, "deep": 3000}[TIER]
RUNS_OF_MUTANT = 3000
PLANTED = MUTANTS[1:4] if TIER == "check" else MUTANTS
FAULTS = (0.0, 0.15, 0.4)


async def wrong(seed: int, faults: float) -> list[str]:
    """What a run breaks; where nothing fails, also a move's leftovers."""
    world: World = await play(seed, faults=faults)
    try:
        rows = await world.end()
    except DatalayerError as error:
        return [*world.broken, f"nobody can reach the user: {error!r}"]
    return [*world.broken, *([f"{len(rows)} rows are left"] if not faults and len(rows) != 1 else [])]


@pytest.mark.parametrize("faults", FAULTS)
async def test_nothing_is_lost_stale_twice_or_back_whatever_dies(faults: float) -> None:
    for seed in range(RUNS):
        assert await wrong(seed, faults) == [], f"seed {seed}"


@pytest.mark.parametrize("mutant", PLANTED, ids=lambda mutant: mutant.__name__)
async def test_a_planted_mistake_is_found(mutant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    for seed in tried(f"regions: {mutant.__name__}", range(RUNS_OF_MUTANT)):
        if await wrong(seed, FAULTS[seed % 3]):
            return
    raise AssertionError(f"not found in {RUNS_OF_MUTANT} runs")
