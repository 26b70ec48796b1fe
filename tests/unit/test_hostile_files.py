"""No name and no link leads out of a folder of media; the hunt finds a store that follows links."""

import os
from pathlib import Path

import pytest

from datalayer.stores.filesystem import tree
from tests.conftest import TIER
from tests.hostile_files import hostile_round

ROUNDS = 60 if TIER == "check" else 2000


async def test_hostile_names_and_swapped_links_lead_nowhere(tmp_path: Path) -> None:
    assert await hostile_round(tmp_path, ROUNDS) == []


async def test_a_store_that_follows_links_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags in ("_DIRECTORY", "_READ", "_WRITE"):
        monkeypatch.setattr(tree, flags, getattr(tree, flags) & ~os.O_NOFOLLOW)
    for attempt in range(20):  # a race: on a busy machine the swapper may miss every write of a round
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if await hostile_round(folder, 300):
            return
    pytest.fail("nothing was written or read outside")
