"""Commands that are refused or cut off: the sentence names the cause, the way out is the right one, and it goes on."""

from pathlib import Path
from typing import Any

import pytest

from datalayer.cli.exits import Stopped
from datalayer.cli.running import Stop
from datalayer.errors import NotFinished, PreconditionFailed
from datalayer.layer import DataLayer
from datalayer.migrators.rebalance import Load, Move, plan_by_region
from datalayer.migrators.shards import Mover
from datalayer.routing.shards import cut
from tests.unit.cli_world import CONFIG, World, fresh_world

MEMBERS = ("s0", "s1", "s2")
GROUPS = 16


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return fresh_world(tmp_path, monkeypatch)


@pytest.fixture
def fleet(world: World) -> World:
    """Users on two of three shards."""
    members = ", ".join(f'{name} = "memory://"' for name in MEMBERS)
    world.config.write_text(
        f"{CONFIG}[backends.shards]\nmembers = {{ {members} }}\nweights = {{ s2 = 0 }}\nslot_groups = {GROUPS}\n"
        '[routes]\nusers = "shards"\n'
    )

    async def use(layer: DataLayer) -> None:
        for number in range(8):
            await layer.users.create(username=f"user{number}")

    world.with_layer(use)
    return world


def held(world: World) -> dict[str, int]:
    """Slot groups by shard."""
    return {row["shard"]: row["groups"] for row in world.json("shards", "list")["shards"]}


class Cut:
    """Ends a command at the n-th point where it may be ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: int) -> None:
        self.left = point

        async def reach(_stop: Stop, _name: str) -> None:
            self.left -= 1
            if self.left == 0:
                raise Stopped("cut off")

        monkeypatch.setattr(Stop, "reach", reach)


SPLIT = ("shards", "split", "s0", "--to", "s2", "--by", "slots", "--yes")


@pytest.mark.parametrize("point", [1, 8, 30, 60, 90])
def test_a_split_that_was_cut_off_goes_on_with_the_half_that_it_began_with(
    fleet: World, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    with monkeypatch.context() as patched:
        cut_off = Cut(patched, point)
        ended = fleet.run(*SPLIT, exit_code=130)
        assert cut_off.left == 0
    assert f"next: datalayer {' '.join(SPLIT)}" in ended.stderr
    for _ in range(2):
        with monkeypatch.context() as patched:
            Cut(patched, 40)
            fleet.run(*SPLIT, exit_code=None)
    fleet.run(*SPLIT, exit_code=None)
    again = fleet.run("shards", "list").stdout
    assert held(fleet) == {"s0": 4, "s1": 8, "s2": 4}, again


def test_a_split_is_cut_off_after_its_last_group_and_a_later_one_halves_what_is_there(
    fleet: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember = Mover._remember

    async def dies(mover: Mover, split: Any) -> None:
        if split is None:
            raise NotFinished("cut off")
        await remember(mover, split)

    with monkeypatch.context() as patched:
        patched.setattr(Mover, "_remember", dies)
        fleet.run(*SPLIT, exit_code=5)
    assert held(fleet) == {"s0": 4, "s1": 8, "s2": 4}
    ended = fleet.run(*SPLIT)
    assert "the split that was begun goes on" in ended.stderr
    assert held(fleet) == {"s0": 4, "s1": 8, "s2": 4}
    fleet.run(*SPLIT)
    assert held(fleet) == {"s0": 2, "s1": 8, "s2": 6}, "that one is done: this is another split"


def test_other_moves_make_a_split_that_was_cut_off_a_new_one(fleet: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        Cut(patched, 60)
        fleet.run(*SPLIT, exit_code=130)
    fleet.run("shards", "drain", "s2", "--by", "slots", "--yes")
    fleet.run(*SPLIT)
    assert held(fleet) == {"s0": 4, "s1": 8, "s2": 4}


# --- regions ---------------------------------------------------------------------------------------------------------


def test_users_are_not_placed_first_where_a_region_would_get_no_slots(world: World) -> None:
    def configure(weight: int) -> None:
        world.config.write_text(
            f'{CONFIG}[backends.shards]\nmembers = {{ s0 = "memory://", s1 = "memory://" }}\n'
            f'regions = {{ s0 = "eu", s1 = "us" }}\nweights = {{ s1 = {weight} }}\n[routes]\nusers = "shards"\n'
        )

    configure(0)
    with pytest.raises(PreconditionFailed, match="no slots of backend 'shards' would fall to region 'us'"):
        world.with_layer(lambda layer: layer.users.create(username="ann"))
    configure(1)
    world.with_layer(lambda layer: layer.users.create(username="ann", region="us"))


def test_a_region_s_last_shard_is_not_drained_and_the_sentence_says_why() -> None:
    loads = [Load(group, ("eu1", "us1")[at % 2], 5) for at, group in enumerate(cut("users", 0, 4))]
    weights, regions = {"eu1": 1.0, "us1": 1.0, "us2": 0.0}, {"eu1": "eu", "us1": "us", "us2": "us"}
    for drained, region in (("eu1", "eu"), ("us1", "us")):
        with pytest.raises(PreconditionFailed, match=f"no shard of region '{region}' would be left to hold its slots"):
            plan_by_region(loads, weights, regions, drain=[drained])
    moves = plan_by_region(loads, weights | {"us2": 1.0}, regions, drain=["us1"])
    assert moves == [Move(load, "us2") for load in loads if load.shard == "us1"]


# --- migrations -------------------------------------------------------------------------------------------------------


def test_a_purge_names_what_is_wrong_with_the_migration_that_was_named(world: World) -> None:
    world.fill(3)
    world.run("migrate", "messages", "--to", "other", "--yes")
    name = world.json("migrations", "status")["id"]
    ended = world.run("migrations", "purge", "nonsense", "--yes", exit_code=3)
    assert ended.stderr == f"datalayer: there is no migration 'nonsense' (known: {name})\n"
    ended = world.run("migrations", "purge", name, "--yes", exit_code=3)
    assert f"{name} is not completed: target; nothing was dropped" in ended.stderr
    world.run("migrations", "complete", "--yes")
    world.run("migrations", "purge", name, "--yes")
    ended = world.run("migrations", "purge", name, "--yes", exit_code=3)
    assert f"{name} has been purged already; nothing was dropped" in ended.stderr
    assert "no migration has retired data" in world.run("migrations", "purge", "--yes", exit_code=3).stderr


def test_a_rollback_that_does_not_come_to_its_end_names_the_command_that_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fill(3)
    world.run("migrate", "messages", "--to", "other", "--yes")
    name = world.json("migrations", "status")["id"]

    async def too_long(*_: object) -> None:
        raise NotFinished("the hold took longer than 1000 ms")

    with monkeypatch.context() as patched:
        patched.setattr(Stop, "reach", too_long)
        ended = world.run("migrations", "rollback", "--yes", exit_code=5)
    assert ended.stderr.endswith(f"next: datalayer migrations rollback {name} --yes\n")
    world.run("migrations", "rollback", name, "--yes")


def test_who_does_not_answer_is_looked_for_with_doctor(world: World) -> None:
    world.fill(1)
    world.server("other").up = False
    ended = world.run("migrate", "messages", "--to", "other", "--yes", exit_code=None)
    assert ended.exit_code != 0
    assert "does not answer" in ended.stderr
    assert "datalayer doctor" in ended.stderr


def test_replicas_behind_a_pooler_are_told_by_config_check(world: World) -> None:
    world.config.write_text(
        '[backends.main]\nurl = "postgresql://app@db/app"\nreplicas = ["postgresql://app@r1/app?pgbouncer=true"]\n'
    )
    ended = world.run("config", "check", exit_code=2)
    assert "replicas are behind a pooler, which hides what server answers" in ended.stdout + ended.stderr
    assert "without pgbouncer=true" in ended.stdout + ended.stderr
