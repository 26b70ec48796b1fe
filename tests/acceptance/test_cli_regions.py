"""Users by region, as an operator sees them; three SQLite files are shards in two regions."""

import asyncio
import json
import random
import sqlite3
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from datalayer.clock import Deadline
from datalayer.domains.users import Swap, UpdateUser, changed, to_record
from datalayer.errors import InvalidArgument, RoutingMismatch
from datalayer.exporting import export, export_domain
from datalayer.importing import users_lines
from datalayer.importing.users import import_users
from datalayer.layer import DataLayer, LayerOptions
from datalayer.migrators import coordinator
from datalayer.migrators.regions import regional_users
from datalayer.routing.regional import RegionalUsers
from datalayer.routing.sharded import ShardedUsers
from datalayer.settings import Settings, load_settings
from datalayer.types import User
from tests.unit.cli_world import World, fresh_world

REGIONS = {"s0": "eu", "s1": "us", "s2": "us"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = fresh_world(tmp_path, monkeypatch)
    members = ", ".join(f'{name} = "sqlite:///{name}.db"' for name in REGIONS)
    regions = ", ".join(f'{name} = "{region}"' for name, region in REGIONS.items())
    world.config.write_text(
        f"""
[backends.main]
url = "sqlite:///main.db"
[backends.shards]
members = {{ {members} }}
regions = {{ {regions} }}
slot_groups = 8
[control]
url = "sqlite:///control.db"
"""
    )
    return world


def fill(world: World, count: int = 60) -> dict[UUID, User]:
    """Users of both regions and of none, whose ids know nothing of it."""

    async def act(layer: DataLayer) -> dict[UUID, User]:
        made = [
            await layer.users.create(username=f"user{n}", email=f"u{n}@example.org", region=("eu", "us", None)[n % 3])
            for n in range(count)
        ]
        return {user.id: user for user in made}

    return world.with_layer(act)


def everybody(world: World) -> dict[UUID, User]:
    async def act(layer: DataLayer) -> dict[UUID, User]:
        return {user.id: user for user in (await layer.users.list(limit=500)).items}

    return world.with_layer(act)


def texts_in(world: World, shard: str) -> list[tuple[str, str | None]]:
    """(username, region) of every row of users in a shard's file that holds anything of a user."""
    connection = sqlite3.connect(world.config.parent / f"{shard}.db")
    try:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'users%'")]
        plain = [t for t in tables if t == "users" or t.removeprefix("users_").isdecimal()]
        return [
            row for t in plain for row in connection.execute(f"SELECT username, region FROM {t} WHERE username != ''")
        ]
    finally:
        connection.close()


def assert_all_at_home(world: World) -> None:
    for shard, region in REGIONS.items():
        rows = texts_in(world, shard)
        assert rows
        assert {found for _, found in rows} <= {region, None}, shard
    data = world.json("users", "check-regions", "--config", world.config)
    assert data["outside"] == []


def test_users_of_one_database_come_to_lie_in_their_regions_move_and_go_home(world: World) -> None:
    before = fill(world)
    world.run("migrate", "users", "--to", "shards", "--yes", "--config", world.config)
    assert_all_at_home(world)
    assert everybody(world) == before
    chosen = list(before)[:12]
    for number, user_id in enumerate(chosen):
        data = world.json(
            "users", "move-region", str(user_id), "--to", ("us", "eu")[number % 2], "--config", world.config
        )
        assert (data["user"], data["region"]) == (str(user_id), ("us", "eu")[number % 2])
    assert_all_at_home(world)
    after = everybody(world)
    assert [after[user_id].region for user_id in chosen] == ["us", "eu"] * 6
    assert {u.username for u in after.values()} == {u.username for u in before.values()}

    async def look(layer: DataLayer) -> None:
        for user in after.values():
            assert await layer.users.get(user.id) == user
            assert await layer.users.get_by_username(user.username) == user
        assert await layer.users.get_many(list(after)) == after
        await layer.users.update(chosen[0], username="renamed", display_name="moved")
        await layer.users.delete(chosen[1])
        assert await layer.users.get(chosen[1]) is None
        assert (await layer.users.create(username=after[chosen[1]].username)).region is None

    world.with_layer(look)
    served = everybody(world)
    world.run("migrations", "rollback", "--yes", "--config", world.config)
    assert everybody(world) == served
    assert served[chosen[0]].username == "renamed"


def test_a_user_is_created_in_the_region_that_is_named(world: World) -> None:
    with world.config.open("a") as config:
        config.write('[routes]\nusers = "shards"\n')

    async def act(layer: DataLayer) -> None:
        made = [await layer.users.create(username=f"u{n}", region=("eu", "us")[n % 2]) for n in range(20)]
        assert [user.region for user in made] == ["eu", "us"] * 10
        users = regional_users(layer.places)
        assert [users.region_of(user.id) for user in made] == ["eu", "us"] * 10
        with pytest.raises(InvalidArgument, match=f"the id {made[0].id} is one of region 'eu', not 'us'"):
            await layer.users.create(username="other", id=made[0].id, region="us")
        for wrong in (layer.users.create(username="mars", region="ap"), layer.users.move_region(made[0].id, "ap")):
            with pytest.raises(InvalidArgument, match="no shard of 'shards' is in region 'ap'"):
                await wrong
        with pytest.raises(InvalidArgument, match="'EU west' is no name of a region"):
            await layer.users.move_region(made[0].id, "EU west")

    world.with_layer(act)
    assert_all_at_home(world)


@pytest.mark.parametrize("bulk", [True, False])
def test_imported_users_lie_in_their_regions_whatever_their_ids_are(world: World, bulk: bool) -> None:
    with world.config.open("a") as config:
        config.write('[routes]\nusers = "shards"\n')
    path = world.folder / "users.jsonl"
    lines = [{"username": f"user{n}", "region": ("eu", "us", None)[n % 3], "id": n} for n in range(60)]
    lines += [{"username": "USER1", "region": "eu", "id": n} for n in (61, 62)]  # taken: one by one, and refused
    path.write_text("\n".join(json.dumps(line) for line in lines))
    left = [users_lines.user_id(n) for n in range(12)]  # an import that died between create and move: no region yet

    async def die_half_way(layer: DataLayer) -> None:
        for n, id_ in enumerate(left):
            await layer.users.create(username=f"user{n}", id=id_)

    world.with_layer(die_half_way)
    if bulk:
        report = world.json("import", "users", path, "--on-error", "skip", "--config", world.config)
    else:
        report = asdict(world.with_layer(lambda layer: import_users(layer, path, on_error="skip")))
    assert (report["new"], report["bad_count"]) == (60 - len(left), 2)
    assert_all_at_home(world)
    again = world.json("import", "users", path, "--on-error", "skip", "--config", world.config)
    assert (again["new"], again["digest"]) == (0, report["digest"])
    regions = {user.username: user.region for user in everybody(world).values()}
    assert regions == {f"user{n}": ("eu", "us", None)[n % 3] for n in range(60)}


def move_a_group_with_pointers(world: World, patch: pytest.MonkeyPatch) -> int:
    """Move a slot group whose journals hold nothing but pointers; how many users are tombstones at the source then.

    The mover keeps the domain's source in step from its first step on, and throws pointers away as it meets them: the
    hand-over finds those alone that were written since its last look. Here it never looks, so all of them are left.
    """
    before = fill(world)
    world.run("migrate", "users", "--to", "shards", "--yes", "--config", world.config)

    async def of_us() -> tuple[list[UUID], str, str]:
        async with DataLayer.open(world.config, options=LayerOptions(eager=False, assist=False)) as layer:
            users = regional_users(layer.places)
            group = next(g for g in users.map.groups if users.regions.of_group(g) == "us")
            mine = [user_id for user_id in before if users.regions.home(user_id.bytes) == group]
            for user_id in mine:
                await layer.users.move_region(user_id, "us")
                await layer.users.move_region(user_id, "eu")
            shard = layer.places.routing_of(group.name).authority.backend.partition("/")[2]
            return mine, group.slots, "s2" if shard == "s1" else "s1"

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    moved, slots, to = asyncio.run(of_us())
    assert moved
    patch.setattr(coordinator, "replay_around", never)
    world.run("shards", "move", "--slots", slots, "--to", to, "--yes", "--config", world.config)
    with closing(sqlite3.connect(world.config.parent / "main.db")) as source:
        return int(source.execute("SELECT count(*) FROM users WHERE deleted").fetchone()[0])


def test_a_pointer_that_moves_with_its_group_deletes_nobody_at_the_source(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert move_a_group_with_pointers(world, monkeypatch) == 0
    served = everybody(world)
    assert len(served) == 60
    world.run("migrations", "rollback", "--yes", "--config", world.config)
    assert everybody(world) == served


def test_control_a_pointer_handed_over_as_a_record_is_seen_as_a_deleted_user(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RegionalUsers, "marks", lambda *_: False)
    assert move_a_group_with_pointers(world, monkeypatch) > 0


def test_a_row_that_was_left_over_is_listed_by_nobody_and_mended(world: World) -> None:
    before = fill(world, 12)
    world.run("migrate", "users", "--to", "shards", "--until", "complete", "--yes", "--config", world.config)

    async def leave(layer: DataLayer) -> UUID:
        """An old row arrives where the user lay long ago, from somebody who dies before he looks around."""
        users = regional_users(layer.places)
        user = next(u for u in before.values() if users.regions.of_id(u.id.bytes) == "us" and u.region != "eu")
        row = to_record(user)._replace(version=user.version - 5)
        row = row._replace(fields=(*row.fields[:-1], "eu"))
        await (await users.store(users.regions.spot(row.key, "eu"))).apply([row])
        await layer.users.delete(user.id)
        return user.id

    user_id = world.with_layer(leave)
    assert user_id not in everybody(world)
    ended = world.run("users", "check-regions", "--config", world.config, exit_code=4)
    assert str(user_id) in ended.stdout
    assert world.json("users", "check-regions", "--mend", "--config", world.config)["outside"] == []


def test_a_move_that_died_is_named_and_mended(world: World) -> None:
    before = fill(world, 12)
    world.run("migrate", "users", "--to", "shards", "--until", "complete", "--yes", "--config", world.config)
    user = next(user for user in before.values() if user.region == "eu")

    async def die_half_way(layer: DataLayer) -> None:
        users = regional_users(layer.places)
        found = await users.records.settled(user.id.bytes, Deadline(layer.clock, 10.0))
        assert found is not None
        leaves = changed(UpdateUser(user.id, (("region", "us"),)), user, layer.clock.now_us())
        swap = Swap(to_record(leaves), user.version)
        await users.records.swap_at(found.group, swap, Deadline(layer.clock, 10.0))

    world.with_layer(die_half_way)
    assert everybody(world).keys() == before.keys(), "it is served as before"
    ended = world.run("users", "check-regions", "--config", world.config, exit_code=4)
    assert str(user.id) in ended.stdout
    data = world.json("users", "check-regions", "--mend", "--config", world.config)
    assert data["outside"] == []
    assert_all_at_home(world)
    assert everybody(world)[user.id].region == "us"


def test_slot_groups_of_users_stay_in_their_region(world: World) -> None:
    fill(world)
    world.run("migrate", "users", "--to", "shards", "--until", "complete", "--yes", "--config", world.config)
    listed = world.json("shards", "list", "--config", world.config)
    assert {row["shard"] for row in listed["shards"]} == set(REGIONS)

    async def first_of(layer: DataLayer) -> dict[str, str]:
        users = regional_users(layer.places)
        return {users.regions.of_group(group): group.slots for group in reversed(users.map.groups)}

    slots = world.with_layer(first_of)
    ended = world.run(
        "shards", "move", "--slots", slots["eu"], "--to", "s1", "--yes", "--config", world.config, exit_code=2
    )
    assert "belong to region 'eu', and shard 's1' is in 'us'" in ended.stderr
    world.run("shards", "drain", "s1", "--yes", "--config", world.config)
    assert texts_in(world, "s1") == [] or world.json("users", "check-regions", "--config", world.config)
    ended = world.run("shards", "drain", "s0", "--yes", "--config", world.config, exit_code=3)
    assert "no shard of region 'eu' would be left to hold its slots" in ended.stderr


# --- the regions that were written down ------------------------------------------------------------------------------


def configure(world: World, old: str, new: str) -> None:
    text = world.config.read_text()
    assert old in text
    world.config.write_text(text.replace(old, new))


@pytest.fixture
def placed(world: World) -> World:
    """Users on shards with regions, and home again is possible."""
    fill(world, 30)
    world.run("migrate", "users", "--to", "shards", "--yes", "--config", world.config)
    return world


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('s0 = "eu"', 's0 = "europe"', "belong to region 'eu', and this configuration puts their shard into 'europe'"),
        ('s1 = "us"', 's1 = "eu"', "belong to region 'us', and this configuration puts their shard into 'eu'"),
        (
            'regions = { s0 = "eu", s1 = "us", s2 = "us" }',
            "",
            "users on backend 'shards' lie by regions (eu, us), and this configuration names none",
        ),
    ],
)
def test_a_process_with_other_regions_or_none_serves_no_users_and_moves_none(
    placed: World, old: str, new: str, told: str
) -> None:
    before = everybody(placed)
    right = placed.config.read_text()
    configure(placed, old, new)
    with pytest.raises(RoutingMismatch) as caught:
        everybody(placed)
    assert told in caught.value.message
    assert "[backends.shards]" in (caught.value.hint or "")
    for words in (
        ("shards", "list"),
        ("shards", "drain", "s2", "--yes"),
        ("migrations", "rollback", "--yes"),
        ("migrations", "complete", "--yes"),
        ("users", "check-regions", "--mend"),
    ):
        ended = placed.run(*words, "--config", placed.config, exit_code=3)
        assert told in ended.stderr, words
    placed.config.write_text(right)
    assert everybody(placed) == before


def test_a_shard_that_is_new_may_lie_in_any_region_and_takes_groups_of_its_own(placed: World) -> None:
    before = everybody(placed)
    configure(placed, 's2 = "sqlite:///s2.db"', 's2 = "sqlite:///s2.db", s3 = "sqlite:///s3.db"')
    configure(placed, 's2 = "us" }', 's2 = "us", s3 = "eu" }')
    placed.run("shards", "rebalance", "--yes", "--config", placed.config)
    assert texts_in(placed, "s3")
    assert {region for _, region in texts_in(placed, "s3")} <= {"eu", None}
    assert everybody(placed) == before
    configure(placed, 's3 = "eu"', 's3 = "us"')
    with pytest.raises(RoutingMismatch, match="belong to region 'eu'"):
        everybody(placed)


def test_regions_come_to_users_that_are_there_when_every_process_has_stopped(world: World) -> None:
    right = world.config.read_text()
    configure(world, 'regions = { s0 = "eu", s1 = "us", s2 = "us" }', "")
    plain = world.config.read_text() + '[routes]\nusers = "shards"\n'
    world.config.write_text(plain)
    before = fill(world, 30)
    world.config.write_text(right)
    with pytest.raises(RoutingMismatch, match="placed without regions"):
        everybody(world)

    async def while_another_is_open() -> None:
        async with DataLayer.open(load_settings_of(world, plain)):
            ended = await asyncio.to_thread(
                world.run, "users", "check-regions", "--mend", "--config", world.config, exit_code=3
            )
            assert "1 process(es) may not know the regions" in ended.stderr

    asyncio.run(while_another_is_open())
    assert world.json("users", "check-regions", "--mend", "--config", world.config)["outside"] == []
    assert_all_at_home(world)
    after = everybody(world)
    assert {id_: replace(user, version=0) for id_, user in after.items()} == {
        id_: replace(user, version=0) for id_, user in before.items()
    }
    world.config.write_text(plain)
    with pytest.raises(RoutingMismatch, match="this configuration names none"):
        everybody(world)


def load_settings_of(world: World, text: str) -> Settings:
    """The settings of another configuration of this world."""
    other = world.folder / "other.toml"
    other.write_text(text)
    return load_settings(other)


@pytest.mark.parametrize("line", ["weights = { s0 = 0 }", "slot_groups = 1"])
def test_a_region_that_would_get_no_slots_keeps_users_from_going_there(world: World, line: str) -> None:
    fill(world)
    text = world.config.read_text()
    world.config.write_text(text.replace("slot_groups = 8", line))
    ended = world.run("migrate", "users", "--to", "shards", "--yes", "--config", world.config, exit_code=3)
    empty = "eu" if "weights" in line else "us"
    assert f"no slots of backend 'shards' would fall to region '{empty}' (give a shard of it a weight" in ended.stderr
    assert world.json("migrations", "list", "--config", world.config)["migrations"] == []
    world.config.write_text(text)
    world.run("migrate", "users", "--to", "shards", "--yes", "--config", world.config)
    assert_all_at_home(world)


def test_users_who_move_while_they_are_exported_are_in_the_file_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fill(world)
    assert world.run("migrate", "users", "--to", "shards", "--yes").exit_code == 0
    path = world.config.parent / "users.jsonl"

    async def act(layer: DataLayer) -> None:
        chance = random.Random(7)
        inner = ShardedUsers.scan

        async def scan(store: Any, *args: Any) -> Any:
            for id_ in chance.sample(list(made), 8):
                await layer.users.move_region(id_, chance.choice(("eu", "us")))
            return await inner(store, *args)

        monkeypatch.setattr(ShardedUsers, "scan", scan)
        monkeypatch.setattr(export, "PAGE_ROWS_FIRST", 4)
        await export_domain(layer, "users", path)

    world.with_layer(act)
    ids = [json.loads(line).get("id") for line in path.read_text().splitlines()[1:-1]]
    assert sorted(map(UUID, ids)) == sorted(made)
