"""What lies in the memory of each process is not read, filled or gone back to by a command, which is another process."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from datalayer.layer import DataLayer
from tests.unit.cli_world import World, fresh_world

CONFIG = """\
[backends.main]
url = "sqlite:///main.sqlite"
[backends.cache]
url = "memory://"
[routes]
sessions = "cache"
[control]
url = "sqlite:///control.sqlite"
"""
TO_MAIN = ("migrate", "sessions", "--to", "main")
GROW = ("--size", "mvp", "--use", "sessions=main")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = fresh_world(tmp_path, monkeypatch)
    found.config.write_text(CONFIG)
    return found


def standing(told: dict[str, Any]) -> tuple[str, str]:
    """How sessions stand in a plan, and what it says of them."""
    plan = next(one for one in told["domains"] if one["domain"] == "sessions")
    return plan["standing"], plan["detail"]


def test_what_processes_hold_in_memory_is_not_left_behind(world: World) -> None:
    async def use(layer: DataLayer) -> None:
        session = await layer.sessions.create(uuid4())
        for more in ("--yes", "--dry-run"):
            refused = await asyncio.to_thread(world.run, *TO_MAIN, more, exit_code=3)
            assert "sessions cannot go to 'main': it lies in the memory of each process" in refused.stderr
            assert "stop the applications first" in refused.stderr
        told = await asyncio.to_thread(world.json, "plan", *GROW, exit_code=3)
        assert standing(told)[0] == "blocked"
        assert "it lies in the memory of each process" in standing(told)[1]
        await asyncio.to_thread(world.run, "grow", *GROW, "--yes", exit_code=3)
        assert session.token is not None
        assert await layer.sessions.get(session.token) is not None

    world.with_layer(use)
    assert world.json("migrations", "list")["migrations"] == []


async def nothing(_: DataLayer) -> None:
    """It has been open, and is not any more."""


def test_there_is_no_way_back_into_the_memory_of_a_process(world: World) -> None:
    world.with_layer(nothing)
    assert world.json(*TO_MAIN, "--yes")["phase"] == "target"
    refused = world.run("migrations", "rollback", "--yes", exit_code=3).stderr
    assert "there is no way back for sessions-1: 'cache' is the memory of each process" in refused
    assert "datalayer migrations complete sessions-1" in refused
    told = world.json("plan", "--size", "mvp", "--use", "sessions=cache", exit_code=3)
    assert standing(told)[0] == "blocked"
    assert "there is no way back for sessions-1" in standing(told)[1]
    world.run("migrations", "complete", "--yes")
    told = world.json("plan", "--size", "mvp", "--use", "sessions=cache", exit_code=3)
    assert "cache is the memory of each process; what this command moves there is gone" in standing(told)[1]
    world.run("grow", "--size", "mvp", "--use", "sessions=cache", "--yes", exit_code=3)


def test_a_move_out_of_memory_that_another_command_began_is_begun_anew(world: World) -> None:
    world.with_layer(nothing)
    world.run(*TO_MAIN, "--until", "dual", "--yes")
    refused = world.run(*TO_MAIN, "--yes", exit_code=3).stderr
    assert "that of the command that began sessions-1 is gone; datalayer migrations cancel sessions-1" in refused
    world.run("migrations", "cancel", "--yes")
    assert world.json(*TO_MAIN, "--yes")["phase"] == "target"
