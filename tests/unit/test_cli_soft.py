"""datalayer migrate presence: what an operator sees of a move without a hold."""

from pathlib import Path
from uuid import UUID

import pytest

from datalayer.layer import DataLayer
from datalayer.types import Presence
from tests.unit.cli_world import World, fresh_world

ANN = UUID(int=1)
TTL = ("--longest-ttl", "0.2")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return fresh_world(tmp_path, monkeypatch)


def test_presence_goes_over_and_back_and_over_by_command(world: World) -> None:
    async def beat(layer: DataLayer) -> None:
        await layer.presence.heartbeat(ANN, ttl=120)

    async def look(layer: DataLayer) -> Presence:
        return (await layer.presence.online([ANN]))[ANN]

    world.with_layer(beat)
    plan = world.json("migrate", "presence", "--to", "other", "--dry-run")
    assert [stage["stage"] for stage in plan["plan"]] == ["start", "backfill", "verify", "flip"]
    told = world.json("migrate", "presence", "--to", "other", *TTL, "--until", "backfilled")
    copied = next(step for step in told["steps"] if (step["action"], step["state"]) == ("copy", "done"))
    assert copied["detail"].startswith("not copied: memory is the memory of each process")
    told = world.json("migrate", "presence", "--to", "other", "--yes")
    assert (told["phase"], told["backlog"], told["quarantined_count"]) == ("target", None, 0)
    assert "waits" not in world.run("migrations", "status").stderr
    assert world.json("migrations", "why")["reasons"]
    world.run("migrations", "rollback", "--yes")
    assert world.json("migrations", "status")["phase"] == "dual"
    world.run("migrations", "cutover", "--yes")
    world.with_layer(beat)
    world.run("migrations", "complete", "--yes")
    assert world.with_layer(look) is Presence.ONLINE
    world.run("migrations", "purge", "--yes")
    routes = {route["domain"]: route["backend"] for route in world.json("routes")["routes"]}
    assert (routes["presence"], routes["typing"]) == ("other", "memory")


def test_a_longest_ttl_out_of_bounds_is_one_sentence(world: World) -> None:
    for given in ("0", "121", "nan"):
        result = world.run("migrate", "presence", "--to", "other", "--longest-ttl", given, exit_code=2)
        assert "longest-ttl is" in result.stderr
