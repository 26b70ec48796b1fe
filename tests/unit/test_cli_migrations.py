"""datalayer migrations: seeing, steering, and that nothing destructive happens unasked."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from datalayer.cli.console import Console
from datalayer.clock import SystemClock
from datalayer.control.base import ProcessInfo
from datalayer.control.memory_server import SERVERS, MemoryControlServer
from datalayer.domains.messages import MESSAGE, tombstone
from datalayer.ids import IdSource
from datalayer.layer import DataLayer
from datalayer.routing.places import Places
from tests.unit.cli_world import ROOM, World, fresh_world

DESTRUCTIVE = ("cutover", "rollback", "complete", "cancel", "purge")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return fresh_world(tmp_path, monkeypatch)


@pytest.fixture
def moving(world: World) -> World:
    """A world with a verified migration that waits for its cut-over."""
    world.fill(10)
    world.run("migrate", "messages", "--to", "other", "--until", "verified")
    return world


def states(world: World) -> dict[str, str]:
    return {item["id"]: item["state"] for item in world.json("migrations", "list")["migrations"]}


def reasons(world: World) -> list[str]:
    return [item["reason"] for item in world.json("migrations", "why")["reasons"]]


def test_without_a_migration_every_command_says_so_in_one_sentence(world: World) -> None:
    world.fill(1)
    assert world.run("migrations", "list").stdout == "there is no migration yet\n"
    for name in ("status", "why", "verify", "repair", "pause", "resume"):
        ended = world.run("migrations", name, exit_code=3)
        assert ended.stderr.startswith("datalayer: there is no migration (datalayer migrate DOMAIN --to BACKEND"), name
    assert "there is no migration" in world.run("migrations", "throttle", "--rate", "5", exit_code=3).stderr
    for name in DESTRUCTIVE:
        world.run("migrations", name, "--yes", exit_code=3)


def test_an_unknown_migration_is_named_beside_the_known_ones(moving: World) -> None:
    ended = moving.run("migrations", "status", "messages-9", exit_code=3)
    assert ended.stderr == "datalayer: there is no migration 'messages-9' (known: messages-1)\n"


def test_status_tells_where_it_stands(moving: World) -> None:
    told = moving.json("migrations", "status")
    assert (told["id"], told["phase"], told["rows_copied"], told["backlog"]) == ("messages-1", "dual", 10, 0)
    assert told["verification"]["clean"] is True
    assert told["next_steps"][0] == "datalayer migrate messages --to other --yes"
    text = moving.run("migrations", "status", "messages-1").stdout
    assert "messages-1: messages main -> other, phase dual" in text
    assert "10 records equal" in text


def test_status_watched_is_a_line_of_json_each_until_it_ends(moving: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datalayer.cli.migrations.WATCH_EVERY_S", 0.0)
    shown: list[str] = []
    event = Console.event

    def ends_after_three(console: Console, data: dict[str, object]) -> None:
        event(console, data)
        shown.append(str(data.get("phase")))
        if len(shown) == 3:
            migrations = control_of().migrations
            live = migrations["messages-1"]
            migrations["messages-1"] = replace(live, milestones=live.milestones | {"cancelled"})

    monkeypatch.setattr(Console, "event", ends_after_three)
    told = moving.lines("migrations", "status", "--watch")
    assert [line["phase"] for line in told] == ["dual", "dual", "dual", "cancelled"]


def control_of() -> MemoryControlServer:
    return SERVERS["control"]


def test_there_and_back_and_there_for_good(moving: World) -> None:
    assert moving.json("migrations", "cutover", "--yes")["phase"] == "target"
    assert moving.json("migrations", "rollback", "--yes")["phase"] == "dual"
    assert moving.json("migrations", "cutover", "--yes")["phase"] == "target"
    told = moving.json("migrations", "complete", "--yes")
    assert (told["phase"], told["next_steps"]) == ("complete", ["datalayer migrations purge --yes"])
    assert states(moving) == {"messages-1": "completed"}
    moving.run("migrations", "purge", "--yes")
    assert states(moving) == {"messages-1": "purged"}
    assert len(moving.bodies()) == 10
    assert "no migration has retired data" in moving.run("migrations", "purge", "--yes", exit_code=3).stderr


def test_cancel_goes_back_and_drops_the_copy(moving: World) -> None:
    told = moving.json("migrations", "cancel", "--yes")
    assert told["phase"] == "cancelled"
    assert ("messages", 1) not in moving.server("other").tables
    assert moving.phase() == "source"
    ended = moving.run("migrations", "cancel", "--yes", exit_code=3)
    assert ended.stderr.startswith("datalayer: no migration is unfinished; the last was messages-1")
    moving.run("migrate", "messages", "--to", "other", "--yes")
    assert set(states(moving)) == {"messages-1", "messages-2"}


@pytest.mark.parametrize("name", DESTRUCTIVE)
def test_nothing_destructive_happens_unconfirmed(moving: World, name: str) -> None:
    if name in {"rollback", "complete"}:
        moving.run("migrations", "cutover", "--yes")
    if name == "purge":
        moving.run("migrate", "messages", "--to", "other", "--yes", "--until", "complete")
    before = moving.json("migrations", "status")
    ended = moving.run("migrations", name, exit_code=3)
    assert (
        ended.stderr
        == f"datalayer: {name} was not confirmed; nothing was changed (add --yes to do it without asking)\n"
    )
    assert moving.json("migrations", "status") == before


@pytest.mark.parametrize(("name", "typed", "exit_code"), [("cancel", "cancel", 0), ("cancel", "y", 3)])
def test_what_cannot_be_undone_wants_its_name_typed(
    moving: World, monkeypatch: pytest.MonkeyPatch, name: str, typed: str, exit_code: int
) -> None:
    monkeypatch.setattr(Console, "asks", property(lambda console: True))
    monkeypatch.setattr("datalayer.cli.console.click.prompt", lambda *_, **__: typed)
    moving.run("migrations", name, exit_code=exit_code)
    assert moving.phase() == ("source" if exit_code == 0 else "dual")


def test_cancel_is_refused_once_the_target_rules(moving: World) -> None:
    moving.run("migrations", "cutover", "--yes")
    ended = moving.run("migrations", "cancel", "--yes", exit_code=3)
    assert "the target rules (datalayer migrations rollback)" in ended.stderr
    assert moving.phase() == "target"


def test_complete_is_refused_before_the_target_rules(moving: World) -> None:
    ended = moving.run("migrations", "complete", "--yes", exit_code=3)
    assert "the target does not rule yet: the phase is dual" in ended.stderr


def test_a_paused_migration_waits_for_resume(moving: World) -> None:
    assert moving.run("migrations", "pause").stdout == "messages-1 is paused\n"
    assert reasons(moving) == ["paused"]
    ended = moving.run("migrate", "messages", "--to", "other", "--yes", exit_code=5)
    assert "datalayer: messages-1 is paused (datalayer migrations resume)" in ended.stderr
    assert moving.phase() == "dual"
    assert "phase dual (paused)" in moving.run("migrations", "status").stdout
    moving.run("migrations", "resume")
    moving.run("migrate", "messages", "--to", "other", "--yes")


def test_throttle_changes_what_is_kept_with_the_migration(moving: World) -> None:
    assert moving.json("migrations", "throttle", "--rate", "250.5")["rate_rows_per_s"] == 250.5
    kept = control_of().migrations["messages-1"].options
    assert kept["rate_rows_per_s"] == 250.5
    moving.run("migrations", "throttle", "--rate", "off")
    assert "rate_rows_per_s" not in control_of().migrations["messages-1"].options
    for wrong in ("0", "-1", "fast", "nan"):
        ended = moving.run("migrations", "throttle", f"--rate={wrong}", exit_code=2)
        assert len(ended.stderr.splitlines()) == 1, wrong


def plant(world: World, what: str) -> bytes:
    """A difference on the target, behind the library's back; the key."""
    table = world.server("other").tables["messages", 1]
    (kind, key), record = next(iter(table.records.items()))
    if what == "missing":
        table.remove((kind, key))
    elif what == "stale":
        table.put(record._replace(version=record.version + 1, fields=(*record.fields[:1], "else", *record.fields[2:])))
    else:
        key = ROOM.bytes + IdSource(SystemClock()).uuid7().bytes
        ghost = tombstone(key, 5)._replace(deleted=False)
        table.put(ghost)
    assert kind == MESSAGE.name
    return key


@pytest.mark.parametrize("what", ["missing", "stale", "ghost"])
def test_verify_ends_with_4_on_a_difference_and_repair_mends_it(moving: World, what: str) -> None:
    assert moving.json("migrations", "verify")["clean"] is True
    key = plant(moving, what)
    told = moving.json("migrations", "verify", exit_code=4)
    assert [item["key"] for item in told["differences"]] == [key.hex()]
    assert told["next_steps"] == ["datalayer migrations repair"]
    assert key.hex() in moving.run("migrations", "verify", exit_code=4).stdout
    assert "verification" in reasons(moving)
    mended = moving.json("migrations", "repair")
    assert (mended["repaired"], mended["clean"]) == (1, True)
    moving.run("migrations", "verify")
    moving.run("migrations", "cutover", "--yes")
    assert len(moving.bodies()) == 10


def test_why_names_a_process_that_has_not_acknowledged(moving: World) -> None:
    async def stray(places: Places) -> None:
        info = ProcessInfo("p1", "elsewhere", 4711, "", "worker")
        await places.control.register(info, {"messages": 1})

    moving.with_places(stray)
    told = moving.json("migrations", "why")["reasons"]
    assert [item["reason"] for item in told] == ["process"]
    assert "worker elsewhere:4711" in told[0]["detail"]
    assert "--assume-dead elsewhere:4711" in told[0]["way_out"]
    moving.run("migrate", "messages", "--to", "other", "--yes", "--assume-dead", "elsewhere:*")
    assert moving.phase() == "target"


def test_why_names_a_backend_that_is_down(moving: World) -> None:
    moving.server("other").up = False
    told = moving.json("migrations", "why")["reasons"]
    assert {"backend"} == {item["reason"] for item in told}
    assert "target 'other'" in told[0]["detail"]
    assert moving.json("migrations", "status")["phase"] == "dual"


def test_foreign_writers_are_named_and_stop_the_cut_over_until_they_are_refused(moving: World) -> None:
    record = next(iter(moving.server("main").tables["messages", 0].records.values()))
    moving.server("main").foreign_write(("messages", 0), record, program="psql")
    assert reasons(moving) == ["foreign_writers"]
    assert "also written by psql" in moving.run("migrations", "status").stdout
    ended = moving.run("migrate", "messages", "--to", "other", "--yes", exit_code=3)
    assert "psql" in ended.stderr
    assert moving.phase() == "dual"
    moving.run("migrate", "messages", "--to", "other", "--yes", "--foreign-writers", "refuse")
    assert moving.phase() == "target"


def test_why_has_nothing_to_say_of_a_healthy_and_of_an_ended_migration(moving: World) -> None:
    assert reasons(moving) == ["none"]
    moving.run("migrations", "cancel", "--yes")
    assert reasons(moving) == ["finished"]


def test_several_unfinished_migrations_must_be_named(moving: World) -> None:
    async def one_more(layer: DataLayer) -> None:
        await layer.users.create(username="ann")

    moving.with_layer(one_more)
    moving.run("migrate", "users", "--to", "other", "--until", "dual")
    ended = moving.run("migrations", "status", exit_code=3)
    assert "name one of: " in ended.stderr
    assert moving.json("migrations", "status", "users-1")["domain"] == "users"
    assert moving.json("migrations", "cancel", "users-1", "--yes")["phase"] == "cancelled"


def test_a_purge_of_a_named_migration_drops_that_one(moving: World) -> None:
    moving.run("migrate", "messages", "--to", "other", "--yes", "--until", "complete")
    moving.run("migrate", "messages", "--to", "third", "--yes", "--until", "complete")
    ended = moving.run("migrations", "purge", "--yes", exit_code=3)
    assert "several migrations have retired data (name one of: messages-2, messages-1)" in ended.stderr
    moving.run("migrations", "purge", "messages-1", "--yes")
    assert states(moving) == {"messages-1": "purged", "messages-2": "completed"}
    assert ("messages", 0) not in moving.server("main").tables
    assert ("messages", 1) in moving.server("other").tables
    assert len(moving.bodies()) == 10


def test_steering_a_running_migration_reaches_it(world: World) -> None:
    """Throttle and pause are read by the command that copies, not only by the next one."""
    world.fill(200)

    async def run() -> tuple[int, str]:
        command = asyncio.create_task(
            asyncio.to_thread(world.run, "migrate", "messages", "--to", "other", "--rate", "20", exit_code=None)
        )
        async with asyncio.timeout(20):
            while not copying():
                await asyncio.sleep(0.02)
        control = control_of()
        control.set_options("messages-1", {"paused": True}, "operator")
        async with asyncio.timeout(20):
            ended = await command
        return ended.exit_code, ended.stderr

    exit_code, said = asyncio.run(run())
    assert exit_code == 5
    assert "messages-1 is paused" in said
    copied = world.json("migrations", "status")["rows_copied"]
    assert copied < 200
    world.run("migrations", "resume")
    world.run("migrations", "throttle", "--rate", "off")
    assert world.json("migrate", "messages", "--to", "other", "--yes")["rows_copied"] == 200


def copying() -> bool:
    return bool(control_of().migrations) and bool(control_of()._runs)


def test_events_are_json(moving: World) -> None:
    for line in moving.run("migrations", "cutover", "--yes", "--json").stdout.splitlines():
        json.loads(line)
