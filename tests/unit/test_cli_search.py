"""datalayer search rebuild: the first index of data that is there, a rebuild, and what is in its way."""

from pathlib import Path
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.messages import Append, appended, to_record
from datalayer.ids import IdSource
from datalayer.layer import DataLayer
from tests.unit.cli_world import ROOM, World, fresh_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return fresh_world(tmp_path, monkeypatch)


def search_of(world: World) -> dict[str, Any]:
    """The route of search."""
    return next(route for route in world.json("routes")["routes"] if route["domain"] == "search")


def hits(world: World, word: str) -> int:
    async def use(layer: DataLayer) -> int:
        return len((await layer.search.messages(word, conversations=[ROOM])).items)

    return world.with_layer(use)


def test_the_first_index_of_data_that_is_there_is_built_by_the_command(world: World) -> None:
    id = IdSource(SystemClock()).uuid7()
    server = world.server("main")
    server.create(("messages", 0))
    server.apply(("messages", 0), [to_record(appended(Append(ROOM, id, ROOM, "older than any index")))])
    told = world.json("migrate", "search", "--to", "other", exit_code=3)
    assert "datalayer search rebuild" in told["error"]["hint"]
    assert search_of(world)["phase"] == "not placed yet"
    told = world.json("search", "rebuild", "--yes")
    assert (told["phase"], told["target"], told["next_steps"]) == (
        "complete",
        "main",
        ["datalayer migrations purge --yes"],
    )
    assert hits(world, "older") == 1
    world.run("migrations", "purge", "--yes")


def test_a_rebuild_waits_for_a_confirmation_and_a_move_elsewhere_is_in_its_way(world: World) -> None:
    world.fill(3)
    told = world.json("search", "rebuild", exit_code=5)
    assert "search" in told["error"]["message"]
    world.json("search", "rebuild", "--yes")
    assert hits(world, "m1") == 1
    world.run("migrate", "search", "--to", "other", "--yes")
    told = world.json("search", "rebuild", "--yes", exit_code=3)
    assert "search is moving to 'other'" in told["error"]["message"]
    world.run("migrations", "rollback", "--yes")
    world.run("migrations", "cancel", "--yes")
    assert search_of(world)["backend"] == "main"


def test_doctor_says_how_far_the_index_is_behind(world: World) -> None:
    world.fill(2)
    found = [one for one in world.json("doctor")["findings"] if one["check"].startswith("search index")]
    assert [one["ok"] for one in found] == [True]
