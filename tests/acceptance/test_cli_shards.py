"""`datalayer shards` and moves onto and off shards, as an operator types them; three SQLite files are the shards."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.users import Swap, claim_key, claim_record
from datalayer.errors import AlreadyExists, NotFinished, RoutingMismatch, Unavailable
from datalayer.ids import uuid7_at
from datalayer.layer import DataLayer
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions, Silent
from datalayer.migrators.rebalance import Move
from datalayer.migrators.shards import Mover, groups_of_slots, loads, sharding_of
from datalayer.settings import load_settings
from datalayer.types import Count
from tests.unit.cli_world import SECRET, World, fresh_world

GROUPS = 8
SIZE = 4096 // GROUPS


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = fresh_world(tmp_path, monkeypatch)
    world.config.write_text(
        f"""
[backends.main]
url = "sqlite:///main.db"
[backends.shards]
members = {{ s0 = "sqlite:///s0.db", s1 = "sqlite:///s1.db", s2 = "sqlite:///s2.db" }}
weights = {{ s2 = 0 }}
slot_groups = {GROUPS}
[control]
url = "sqlite:///control.db"
"""
    )
    return world


def with_layer(world: World, act: Callable[[DataLayer], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with DataLayer.open(world.config) as layer:
            return await act(layer)

    return asyncio.run(run())


def fill(world: World, count: int) -> None:
    async def act(layer: DataLayer) -> None:
        for number in range(count):
            await layer.users.create(username=f"user{number}", email=f"user{number}@example.org")

    with_layer(world, act)


def names(world: World) -> set[str]:
    async def act(layer: DataLayer) -> set[str]:
        found: set[str] = set()
        cursor = None
        while True:
            page = await layer.users.list(limit=7, cursor=cursor)
            found |= {user.username for user in page.items}
            cursor = page.next_cursor
            if cursor is None:
                return found

    return with_layer(world, act)  # type: ignore[no-any-return]


def sharded(world: World, count: int = 40) -> World:
    fill(world, count)
    world.run("migrate", "users", "--to", "shards", "--until", "complete", "--yes", "--config", world.config)
    return world


def held(told: dict[str, Any]) -> dict[str, int]:
    """Slot groups by shard."""
    return {row["shard"]: row["groups"] for row in told["shards"]}


def test_one_database_becomes_shards_is_rebalanced_drained_and_becomes_one_again(world: World) -> None:
    sharded(world)
    before = {f"user{number}" for number in range(40)}
    assert names(world) == before
    assert held(world.json("shards", "list", "--config", world.config)) == {"s0": 4, "s1": 4, "s2": 0}
    plan = world.json("shards", "plan", "--add", "s2", "--by", "slots", "--config", world.config)
    assert len(plan["moves"]) == 2
    assert plan["estimate"]["seconds"] is None, "nothing has moved yet"
    told = world.json("shards", "rebalance", "--add", "s2", "--by", "slots", "--yes", "--config", world.config)
    assert sorted(held(told).values()) == [2, 3, 3]
    assert told["holds_ms"]["count"] == len(told["moved"]) == 2
    assert names(world) == before
    told = world.json(
        "shards", "drain", "s0", "--by", "slots", "--yes", "--purge", "--parallel", "2", "--config", world.config
    )
    assert held(told)["s0"] == 0
    assert sum(held(told).values()) == GROUPS
    told = world.json("shards", "split", "s1", "--to", "s0", "--by", "slots", "--yes", "--config", world.config)
    assert (held(told)["s0"], held(told)["s1"]) == (4, 4), "s2 has no weight in the configuration: drained, too"
    slots = f"0-{SIZE - 1}"
    told = world.json("shards", "move", "--slots", slots, "--to", "s2", "--yes", "--config", world.config)
    assert sum(held(told).values()) == GROUPS
    assert world.json("shards", "sweep", "--config", world.config)["freed"] == 0
    world.run("migrate", "users", "--to", "main", "--until", "complete", "--yes", "--config", world.config)
    assert names(world) == before
    with_layer(world, lambda layer: layer.users.create(username="after"))


def test_a_domain_is_rolled_back_after_its_groups_have_moved(world: World) -> None:
    fill(world, 30)
    world.run("migrate", "users", "--to", "shards", "--yes", "--config", world.config)

    def write(generation: str) -> None:
        async def act(layer: DataLayer) -> None:
            page = await layer.users.list(limit=100)
            for user in page.items[:20]:
                await layer.users.update(user.id, username=f"{generation}-{user.id}")
            await layer.users.delete(page.items[-1].id)
            await layer.users.create(username=f"new in {generation}")

        with_layer(world, act)

    write("on two")
    world.run("shards", "rebalance", "--add", "s2", "--by", "slots", "--yes", "--config", world.config)
    write("on three")
    world.run("shards", "drain", "s0", "--by", "slots", "--yes", "--purge", "--parallel", "3", "--config", world.config)
    write("on the rest")
    last = names(world)
    assert len(last) == 30
    world.run("migrations", "verify", "--config", world.config)
    world.run("migrations", "rollback", "--yes", "--config", world.config)
    assert names(world) == last
    routes = {route["domain"]: route for route in world.json("routes", "--config", world.config)["routes"]}
    assert routes["users"]["backend"] == "main"
    write("back on one")
    world.run("migrations", "cutover", "--yes", "--config", world.config)
    write("over again")
    world.run("shards", "rebalance", "--by", "slots", "--yes", "--config", world.config)
    last = names(world)
    world.run("migrations", "complete", "--yes", "--config", world.config)
    assert names(world) == last


def test_names_stay_unique_over_shards_and_through_the_way_back(world: World) -> None:
    fill(world, 5)
    world.run("migrate", "users", "--to", "shards", "--yes", "--config", world.config)

    async def rename(layer: DataLayer) -> None:
        ann, bob = await layer.users.get_by_username("user0"), await layer.users.get_by_username("user1")
        assert ann is not None
        assert bob is not None
        for who, name in ((ann, "between"), (bob, "user0"), (ann, "user1")):
            await layer.users.update(who.id, username=name)
        for taken in ("user0", "USER1", "\N{FULLWIDTH LATIN SMALL LETTER U}ser2"):
            with pytest.raises(AlreadyExists) as refused:
                await layer.users.create(username=taken)
            assert refused.value.field == "username"
        await layer.users.delete(bob.id)
        again = await layer.users.create(username="user0")
        assert again.id != bob.id

    with_layer(world, rename)
    world.run("migrations", "rollback", "--yes", "--config", world.config)

    async def look(layer: DataLayer) -> None:
        ann = await layer.users.get_by_username("user1")
        assert ann is not None
        assert ann.email == "user0@example.org"
        with pytest.raises(AlreadyExists):
            await layer.users.create(username="user0")
        assert await layer.users.get_by_username("between") is None
        await layer.users.create(username="between")

    with_layer(world, look)


def test_sixty_four_racing_creates_of_one_name_make_one_user(world: World) -> None:
    sharded(world, 1)

    async def race(layer: DataLayer) -> list[Any]:
        creates = (layer.users.create(username="Racer", email=f"racer{i}@example.org", timeout=30) for i in range(64))
        return await asyncio.gather(*creates, return_exceptions=True)

    answers = with_layer(world, race)
    lost = [answer for answer in answers if isinstance(answer, AlreadyExists)]
    assert len(lost) == 63
    assert {answer.field for answer in lost} == {"username"}
    assert len(names(world)) == 2

    async def freed(layer: DataLayer) -> None:
        await layer.users.create(username="another", email="racer7@example.org")

    won = next(answer for answer in answers if not isinstance(answer, Exception))
    if won.email != "racer7@example.org":
        with_layer(world, freed)  # the losers' addresses are free again


def test_a_domain_may_lie_on_shards_from_its_first_day(world: World) -> None:
    world.config.write_text(world.config.read_text() + '[routes]\nusers = "shards"\nmessages = "shards"\n')
    fill(world, 10)
    assert held(world.json("shards", "list", "--config", world.config)) == {"s0": 4, "s1": 4, "s2": 0}
    assert len(names(world)) == 10

    async def talk(layer: DataLayer) -> None:
        room, who = uuid7_at(1, 1), uuid7_at(1, 2)
        sent = [await layer.messages.append(room, sender_id=who, body=str(number)) for number in range(5)]
        await layer.messages.edit(room, sent[0].id, body="edited")
        await layer.messages.delete(room, sent[1].id)
        page = await layer.messages.history(room, limit=10)
        assert [message.body for message in page.items] == ["4", "3", "2", "edited"]

    with_layer(world, talk)
    told = world.json(
        "shards", "rebalance", "messages", "--add", "s2", "--by", "slots", "--yes", "--config", world.config
    )
    assert sorted(held(told).values()) == [2, 3, 3]


class StopAt(Silent):
    """Ends the engine at a named place, once."""

    def __init__(self, place: str, number: int) -> None:
        self._place, self._left = place, number

    async def reach(self, name: str) -> None:
        if name == self._place:
            self._left -= 1
            if self._left == 0:
                raise NotFinished("stopped by the test")


@pytest.mark.parametrize(
    "place", ["create_target.after", "publish_dual.after", "backfill.before", "fence.after", "retire_source.before"]
)
def test_a_rebalance_that_died_goes_on_where_it_stopped(world: World, place: str) -> None:
    sharded(world)

    async def died() -> None:
        async with moving(world) as (places, moves):
            with pytest.raises(NotFinished, match="stopped by the test"):
                await Mover(places, "users", holder="test", failpoints=StopAt(place, 2)).run(moves)

    asyncio.run(died())
    refused = world.run("migrate", "users", "--to", "main", "--yes", "--config", world.config, exit_code=3)
    assert "are moving to 'shards/s2'" in refused.stderr
    assert world.json("shards", "list", "--config", world.config)["unfinished_moves"] == 1
    told = world.json("shards", "rebalance", "--add", "s2", "--by", "slots", "--yes", "--config", world.config)
    assert sorted(held(told).values()) == [2, 3, 3]
    assert len(names(world)) == 40


@pytest.mark.parametrize("words", [("drain", "s2"), ("move", "--slots", f"0-{4 * SIZE - 1}", "--to", "s1")])
def test_a_plan_counts_a_move_that_was_begun_as_made(world: World, words: tuple[str, ...]) -> None:
    sharded(world)

    async def died() -> None:
        async with moving(world) as (places, moves):
            with pytest.raises(NotFinished, match="stopped by the test"):
                await Mover(places, "users", holder="test", failpoints=StopAt("fence.after", 1)).run(moves[:1])

    asyncio.run(died())
    assert held(world.json("shards", "list", "--config", world.config)) == {"s0": 4, "s1": 4, "s2": 0}
    told = world.json("shards", *words, "--yes", "--config", world.config)
    assert held(told)["s2"] == 0
    assert len(names(world)) == 40


@asynccontextmanager
async def moving(world: World) -> AsyncIterator[Any]:
    """Places, and the move of the groups of two thirds of s0 to s2."""
    async with open_places(load_settings(world.config), SystemClock()) as places:
        sharding = await sharding_of(places, "users")
        found = await loads(places, sharding)
        yield places, [Move(load, "s2") for load in found if load.shard == "s0"][:2]


def test_groups_do_not_move_while_their_domain_does(world: World) -> None:
    fill(world, 3)
    world.run("migrate", "users", "--to", "shards", "--until", "complete", "--yes", "--config", world.config)
    world.run("migrate", "users", "--to", "main", "--until", "verified", "--yes", "--config", world.config)
    refused = world.run("shards", "rebalance", "--add", "s2", "--yes", "--config", world.config, exit_code=3)
    assert "users is moving as a whole: the phase is dual" in refused.stderr
    assert world.json("shards", "list", "--config", world.config)["unfinished_moves"] == 0


def test_a_domain_is_not_rolled_back_while_a_group_moves(world: World) -> None:
    fill(world, 10)
    world.run("migrate", "users", "--to", "shards", "--yes", "--config", world.config)

    async def died() -> None:
        async with moving(world) as (places, moves):
            with pytest.raises(NotFinished, match="stopped by the test"):
                await Mover(places, "users", holder="test", failpoints=StopAt("join_domain.after", 1)).run(moves)

    asyncio.run(died())
    for action in ("rollback", "complete"):
        refused = world.run("migrations", action, "users-1", "--yes", "--config", world.config, exit_code=3)
        assert "are moving to 'shards/s2'" in refused.stderr
    world.run("shards", "rebalance", "--add", "s2", "--yes", "--config", world.config)
    world.run("migrations", "rollback", "--yes", "--config", world.config)
    assert len(names(world)) == 10


def test_an_orphan_is_swept_and_a_young_one_left(world: World) -> None:
    sharded(world, 3)

    async def plant(layer: DataLayer) -> None:
        store = layer.router("users").route.authority
        now = layer.clock.now_us()
        for name, at in (("orphan", now - 3_600_000_000), ("young", now)):
            claim = claim_record(claim_key("username", name), uuid7_at(at, 5), at)
            await store.execute(Swap(claim, None), Deadline(layer.clock, 5.0))
        with pytest.raises(AlreadyExists):
            await layer.users.create(username="young")

    with_layer(world, plant)
    swept = world.json("shards", "sweep", "--config", world.config)
    assert (swept["freed"], swept["young"]) == (1, 1)
    with_layer(world, lambda layer: layer.users.create(username="orphan"))


def test_an_orphan_that_came_back_to_one_database_is_swept_there(world: World) -> None:
    fill(world, 3)
    world.run("migrate", "users", "--to", "shards", "--yes", "--config", world.config)

    async def plant(layer: DataLayer) -> None:
        store = layer.router("users").route.authority
        at = layer.clock.now_us() - 3_600_000_000
        claim = claim_record(claim_key("username", "orphan"), uuid7_at(at, 5), at)
        await store.execute(Swap(claim, None), Deadline(layer.clock, 5.0))

    with_layer(world, plant)
    world.run("migrations", "rollback", "--yes", "--config", world.config)

    async def refused(layer: DataLayer) -> None:
        with pytest.raises(AlreadyExists):
            await layer.users.create(username="orphan")

    with_layer(world, refused)
    assert world.json("shards", "sweep", "--config", world.config)["freed"] == 1
    with_layer(world, lambda layer: layer.users.create(username="orphan"))


def test_one_shard_that_is_down_keeps_only_its_own_users_from_being_served(world: World) -> None:
    sharded(world, 40)
    (world.folder / "s1.db").rename(world.folder / "away.db")
    (world.folder / "s1.db").mkdir()

    async def look(layer: DataLayer) -> tuple[int, int]:
        served = down = 0
        for number in range(40):
            try:
                served += await layer.users.get_by_username(f"user{number}") is not None
            except Unavailable:
                down += 1
        for whole in (layer.users.list(limit=100), layer.users.count()):
            with pytest.raises(Unavailable):
                await whole
        page = await layer.users.list(limit=100, partial=True)
        assert page.missing == ("shards/s1",)
        assert await layer.users.count(partial=True) == Count(len(page.items), ("shards/s1",))
        assert 0 < len(page.items) < 40
        health = await layer.health()
        assert health["ready"]
        assert health["backends"]["shards/s0"] == "ok"
        assert health["backends"]["shards/s1"] != "ok"
        return served, down

    served, down = with_layer(world, look)
    ill = world.json("doctor", "--config", world.config, exit_code=1)
    assert [finding["check"] for finding in ill["findings"] if not finding["ok"]] == ["backend shards/s1"]
    assert served > 0
    assert down > 0
    assert served + down == 40


def test_a_process_that_does_not_know_a_shard_says_so_and_serves_the_rest(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    sharded(world, 40)
    old = world.folder / "old.toml"
    old.write_text(world.config.read_text().replace(', s2 = "sqlite:///s2.db"', "").replace("weights = { s2 = 0 }", ""))

    async def act() -> int:
        async with DataLayer.open(old) as layer:
            async with moving(world) as (places, moves):
                options = MigrateOptions(ack_timeout_s=0.5)
                with pytest.raises(NotFinished, match="have not acknowledged") as behind:
                    await Mover(places, "users", holder="test", options=options).run(moves[:1])
                assert "lacks backend 'shards/s2' never does: restart it" in str(behind.value)
            return len((await layer.users.list(limit=100)).items)

    assert asyncio.run(act()) == 40
    assert "'shards/s2', which is not configured here" in caplog.text
    world.run("shards", "rebalance", "--add", "s2", "--yes", "--config", world.config)
    refused = world.run("shards", "list", "--config", old, exit_code=3)
    assert "not configured here" in refused.stderr
    with pytest.raises(RoutingMismatch, match="not configured here") as mismatch:
        asyncio.run(opened(old))
    assert mismatch.value.hint == "add s2 to [backends.shards] members"


async def opened(config: Path) -> None:
    async with DataLayer.open(config):
        pass


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("shards", "drain", "s9"), "'s9' is no shard of backend 'shards'", 2),
        (("shards", "list", "messages"), "messages is on backend 'main', which has no shards", 3),
        (("shards", "move", "--slots", "0-100", "--to", "s1"), "slots 0-100 are not whole slot groups of users", 2),
        (("shards", "move", "--slots", "0-511,0-511", "--to", "s1"), "slots 0-511 are named twice", 2),
        (("shards", "move", "--slots", "x", "--to", "s1"), "'x' is no range of slots", 2),
        (("shards", "rebalance", "--weights", "s0=1,s7=2"), "'s7' is no shard", 2),
        (("shards", "rebalance", "--weights", "s0=heavy"), "'s0=heavy' is no weight", 2),
        (("shards", "rebalance", "--parallel", "0"), "parallel is 0", 2),
        (("shards", "split", "s0", "--to", "s0"), "cannot be split onto itself", 2),
        (("shards", "drain", "s0", "--by", "rows"), "no shard is left", 3),
        (("migrate", "users", "--to", "shards/s0"), "is one shard of backend 'shards'", 3),
    ],
)
def test_bad_input_is_told_in_one_sentence(world: World, words: tuple[str, ...], said: str, code: int) -> None:
    sharded(world, 2)
    if words[-1] == "rows":
        world.config.write_text(world.config.read_text().replace("s2 = 0", "s1 = 0, s2 = 0"))
    if words[-1] == "0":
        words = (*words, "--add", "s2")
    ended = world.run(
        *words,
        "--yes" if words[1] in {"drain", "move", "rebalance", "split"} else "--json",
        "--config",
        world.config,
        exit_code=code,
    )
    assert said in ended.stderr
    assert SECRET not in ended.output


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("slot_groups = 60", "must divide 4096 evenly"),
        ("weights = { s9 = 1 }", "is no member of this backend"),
        ("weights = { s0 = 0, s1 = 0 }", "leave no member that may hold anything"),
        ("capacity = { s0 = -1 }", "must be a whole number"),
        ("capacity = { s7 = 100 }", "is no member of this backend"),
    ],
)
def test_a_wrong_configuration_of_shards_is_told(world: World, line: str, said: str) -> None:
    members = '[backends.shards]\nmembers = { s0 = "sqlite:///s0.db", s1 = "sqlite:///s1.db" }\n'
    world.config.write_text(f'[backends.main]\nurl = "sqlite:///main.db"\n{members}{line}\n')
    ended = world.run("config", "check", "--config", world.config, exit_code=2)
    assert said in ended.output


def test_whole_groups_are_found_by_their_slots(world: World) -> None:
    sharded(world, 1)

    async def look() -> list[int]:
        async with open_places(load_settings(world.config), SystemClock()) as places:
            sharding = await sharding_of(places, "users")
            return [group.first for group in groups_of_slots(sharding, f"0-{2 * SIZE - 1},{3 * SIZE}-{4 * SIZE - 1}")]

    assert asyncio.run(look()) == [0, SIZE, 3 * SIZE]


def test_options_of_a_move_are_checked_before_anything_moves() -> None:
    with pytest.raises(ValueError, match="max-hold"):
        MigrateOptions(max_hold_ms=0).checked()


def test_the_way_on_is_the_command_with_its_options(world: World) -> None:
    sharded(world, 2)
    chosen = ("--by", "slots", "--drain", "s1", "--weights", "s0=1,s1=1")
    planned = world.json("shards", "plan", *chosen, "--config", world.config)
    config = f"--config {world.config}"
    assert planned["next_steps"] == [f"datalayer shards rebalance {' '.join(chosen)} {config}"]
    move = ("move", "users", "--slots", "0-511", "--to", "s1", "--rate", "5.0", "--purge")
    ended = world.run("shards", *move, "--config", world.config, exit_code=5)
    assert f"next: datalayer shards {' '.join(move)} --yes {config}" in ended.stderr
