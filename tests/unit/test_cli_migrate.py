"""datalayer migrate: every way it ends, and that a refusal leaves nothing behind."""

import asyncio
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from datalayer.cli import migrate as migrate_module
from datalayer.cli.console import Console
from datalayer.cli.running import Stop
from datalayer.clock import SystemClock
from datalayer.control import memory_server
from datalayer.domains.messages import tombstone
from datalayer.errors import Unavailable
from datalayer.ids import IdSource
from datalayer.migrators import backfill, hold, run
from datalayer.migrators.coordinator import HOLDS_MAX, Coordinator
from datalayer.migrators.plan import PLAN, Action, Stage
from datalayer.routing.places import Places
from datalayer.stores.base import MetaRow
from datalayer.stores.memory.server import MemoryServer, server_named
from tests.unit.cli_world import ROOM, SECRET, World, fresh_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return fresh_world(tmp_path, monkeypatch)


def started(world: World) -> list[str]:
    return [migration["id"] for migration in world.json("migrations", "list")["migrations"]]


def test_without_a_target_it_lists_them_with_reasons(world: World) -> None:
    world.fill(1)
    world.server("third").up = False
    told = world.json("migrate", "messages")
    reasons = {target["backend"]: target["reason"] for target in told["targets"]}
    assert reasons == {
        "main": "messages is there already",
        "memory": "memory is the memory of each process, for presence and typing alone",
        "other": None,
        "third": "backend third does not answer",
    }
    assert told["next_steps"] == ["datalayer migrate messages --to other"]
    assert "possible" in world.run("migrate", "messages").stdout


def test_a_command_moves_nothing_into_its_own_memory(world: World) -> None:
    world.config.write_text('[backends.main]\nurl = "sqlite:///main.sqlite"\n[backends.cache]\nurl = "memory://"\n')
    world.fill(3)
    for domain in ("messages", "users", "sessions", "search"):
        told = world.json("migrate", domain)
        assert {t["backend"]: t["possible"] for t in told["targets"]}["cache"] is False
        for more in ("--yes", "--dry-run"):
            refused = world.run("migrate", domain, "--to", "cache", more, exit_code=3).stderr
            assert f"{domain} cannot go to 'cache': cache is the memory of each process" in refused
    assert started(world) == []
    assert world.bodies() == ["m0", "m1", "m2"]


def test_it_moves_the_domain_and_stops_where_the_way_back_is_open(world: World) -> None:
    world.fill(30)
    told = world.json("migrate", "messages", "--to", "other", "--yes")
    assert (told["phase"], told["rows_copied"], len(told["holds_ms"])) == ("target", 30, 1)
    assert "datalayer migrations complete" in told["next_steps"]
    assert world.bodies() == [f"m{n}" for n in range(30)]
    assert world.phase() == "target"


def test_json_is_one_event_a_line_and_a_final_object(world: World) -> None:
    world.fill(5)
    *events, last = world.lines("migrate", "messages", "--to", "other", "--yes")
    assert {event["event"] for event in events} >= {"stage", "step", "progress"}
    done = [event["action"] for event in events if event.get("state") == "done"]
    stages = (Stage.START, Stage.BACKFILL, Stage.VERIFY, Stage.ARM, Stage.FLIP)
    assert done == [str(action) for stage in stages for action in PLAN[stage]]
    assert "next_steps" in last
    assert "event" not in last


def test_unconfirmed_it_stops_before_the_cut_over_with_5(world: World) -> None:
    world.fill(5)
    ended = world.run("migrate", "messages", "--to", "other", exit_code=5)
    assert ended.stderr.splitlines()[-2:] == [
        "datalayer: messages-1 is ready to go on to target, if that is confirmed",
        "next: datalayer migrate messages --to other --yes",
    ]
    assert world.phase() == "dual"
    told = world.json("migrate", "messages", "--to", "other", exit_code=5)
    assert told["next_steps"] == ["datalayer migrate messages --to other --yes"]
    world.run("migrate", "messages", "--to", "other", "--yes")
    assert started(world) == ["messages-1"]


@pytest.mark.parametrize("until", ["dual", "backfilled", "verified"])
def test_what_needs_no_cut_over_needs_no_confirmation(world: World, until: str) -> None:
    world.fill(5)
    told = world.json("migrate", "messages", "--to", "other", "--until", until)
    assert told["phase"] == "dual"
    assert set(told["milestones"]) == {"dual": set(), "backfilled": {"backfilled"}}.get(
        until, {"backfilled", "verified"}
    )


def test_armed_unconfirmed_does_not_pass_for_done(world: World) -> None:
    world.fill(5)
    world.run("migrate", "messages", "--to", "other", "--until", "armed", "--yes")
    assert world.phase() == "armed"
    world.run("migrate", "messages", "--to", "other", exit_code=5)
    assert world.phase() == "armed"
    world.run("migrate", "messages", "--to", "other", "--yes")
    world.run("migrate", "messages", "--to", "other", "--until", "complete", exit_code=5)
    assert world.phase() == "target"
    assert world.json("migrate", "messages", "--to", "other", "--until", "complete", "--yes")["phase"] == "complete"


@pytest.mark.parametrize(("answer", "phase", "exit_code"), [(True, "target", 0), (False, "dual", 5)])
def test_on_a_terminal_it_asks(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: bool, phase: str, exit_code: int
) -> None:
    asked: list[str] = []

    def confirmed(console: Console, question: str, *, word: str | None = None) -> bool:
        asked.append(question)
        return answer

    monkeypatch.setattr(Console, "confirmed", confirmed)
    world.fill(3)
    world.run("migrate", "messages", "--to", "other", exit_code=exit_code)
    assert asked == ["Ready. Now let other serve messages?"]
    assert world.phase() == phase


def test_a_dry_run_says_the_plan_and_changes_nothing(world: World) -> None:
    world.fill(3)
    told = world.json("migrate", "messages", "--to", "other", "--dry-run")
    assert [stage["stage"] for stage in told["plan"]] == ["start", "backfill", "verify", "arm", "flip"]
    assert started(world) == []
    world.run("migrate", "messages", "--to", "other", "--until", "backfilled")
    told = world.json("migrate", "messages", "--to", "other", "--dry-run", "--until", "armed")
    assert [stage["stage"] for stage in told["plan"]] == ["verify", "arm"]
    world.run("migrate", "messages", "--to", "third", "--dry-run", exit_code=3)


@pytest.mark.parametrize(
    ("args", "exit_code", "says"),
    [
        (["messages", "--to", "nope"], 2, "backend 'nope' is not configured (one of: main, memory, other, third)"),
        (["messages", "--to", "main"], 3, "messages is on backend 'main' already"),
        (
            ["avatars", "--to", "other"],
            3,
            "'avatars' cannot be migrated; movable are catalogue, conversations, listings, ",
        ),
        (["avatars"], 3, "'avatars' cannot be migrated; movable are catalogue, conversations, listings, "),
        (["messages", "--to", "other", "--workers", "0"], 2, "workers is 0; it must be from 1 to 64"),
        (["messages", "--to", "other", "--rate", "0"], 2, "rate is 0.0; it must be above 0 rows a second"),
        (["messages", "--to", "other", "--canary", "101"], 2, "canary is 101; it must be a percentage from 1 to 100"),
        (["messages", "--to", "other", "--max-hold", "0"], 2, "max-hold is 0.0 ms; it must be from 1 to 60000"),
        (["messages", "--to", "other", "--until", "soon"], 2, "Invalid value for '--until'"),
    ],
)
def test_a_wrong_argument_is_one_sentence(world: World, args: list[str], exit_code: int, says: str) -> None:
    world.fill(1)
    ended = world.run("migrate", *args, exit_code=exit_code)
    assert ended.stderr.startswith(f"datalayer: {says}")
    assert len(ended.stderr.splitlines()) == 1
    assert started(world) == []


def test_a_second_target_is_refused_while_one_is_under_way(world: World) -> None:
    world.fill(1)
    world.run("migrate", "messages", "--to", "other", "--until", "dual")
    ended = world.run("migrate", "messages", "--to", "third", exit_code=3)
    assert ended.stderr.startswith("datalayer: messages is already moving to 'other' (messages-1)")
    told = world.json("migrate", "messages")
    assert told["migration"] == "messages-1"
    assert {t["backend"]: t["possible"] for t in told["targets"]} == {
        "main": False,
        "memory": False,
        "other": True,
        "third": False,
    }


def test_a_target_that_is_down_is_refused_and_nothing_is_begun(world: World) -> None:
    world.fill(1)
    world.server("other").up = False
    ended = world.run("migrate", "messages", "--to", "other", exit_code=1)
    assert "backend other does not answer" in ended.stderr
    assert started(world) == []


def test_a_target_with_foreign_rows_is_refused_and_nothing_is_begun(world: World) -> None:
    world.fill(1)
    row = tombstone(ROOM.bytes + IdSource(SystemClock()).uuid7().bytes, 1)
    other = world.server("other")
    other.create(("messages", 0))
    other.put(other.table(("messages", 0)), row)
    ended = world.run("migrate", "messages", "--to", "other", exit_code=3)
    assert "holds messages rows that do not belong to this deployment" in ended.stderr
    assert started(world) == []
    listed = world.json("migrate", "messages")["targets"]
    assert next(t["reason"] for t in listed if t["backend"] == "other").startswith(
        "backend 'other' holds messages rows"
    )


def test_a_target_of_another_deployment_is_refused_and_nothing_is_begun(world: World) -> None:
    world.fill(1)
    world.server("other").meta["messages", 0] = MetaRow("messages", 0, "somebody else", "authority", 1)
    ended = world.run("migrate", "messages", "--to", "other", exit_code=3)
    assert "holds messages of another deployment (somebody else, attempt 0)" in ended.stderr
    assert started(world) == []


def test_a_domain_that_needs_compare_and_set_is_refused_by_a_last_writer_store(world: World) -> None:
    server_named("other", SystemClock(), "last_writer")
    world.fill(1)
    ended = world.run("migrate", "users", "--to", "other", exit_code=3)
    assert ended.stderr == "datalayer: users needs compare-and-set\n"
    assert started(world) == []


def test_at_a_last_writer_target_it_says_what_the_open_way_back_costs(world: World) -> None:
    server_named("other", SystemClock(), "last_writer")
    world.fill(5)
    ended = world.run("migrate", "messages", "--to", "other", "--yes")
    assert "the control store is in the path of every write" in ended.stderr
    assert "datalayer migrations complete" in ended.stderr
    plain = world.run("migrate", "messages", "--to", "other", "--yes", "--until", "complete")
    assert "in the path of every write" not in plain.stderr


def test_another_coordinator_at_work_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(1)
    monkeypatch.setattr("datalayer.migrators.lease.TAKE_WAIT_S", 0.1)

    async def busy(places: Places) -> None:
        assert await places.control.take("migrate:messages", "migrate@elsewhere:7", 60.0) is not None

    world.with_places(busy)
    ended = world.run("migrate", "messages", "--to", "other", exit_code=3)
    assert "another coordinator works on messages: migrate@elsewhere:7" in ended.stderr


def test_a_configuration_with_a_wrong_url_shows_no_password(world: World) -> None:
    world.config.write_text(f'[backends.main]\nurl = "postgresql://app:{SECRET}@db:badport/app"\n')
    ended = world.run("migrate", "messages", "--to", "other", exit_code=2)
    assert ended.stderr.startswith("datalayer: datalayer.toml:2: backends.main.url")


def interrupt(monkeypatch: pytest.MonkeyPatch, at: str, times: int = 1) -> None:
    """Ctrl-C, as the terminal sends it, when the engine reaches a failpoint."""
    reach = Stop.reach
    left = [times]

    async def interrupted(stop: Stop, name: str) -> None:
        if name == at and left[0]:
            while left[0]:
                left[0] -= 1
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.05)
        await reach(stop, name)

    monkeypatch.setattr(Stop, "reach", interrupted)


@pytest.mark.parametrize("at", ["arm_journal.before", "backfill.page", "verify.page", "check_hold.before"])
def test_ctrl_c_stops_at_a_safe_point_with_130_and_the_same_command_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    world.fill(20)
    with monkeypatch.context() as patched:
        interrupt(patched, at)
        ended = world.run("migrate", "messages", "--to", "other", "--yes", exit_code=130)
    assert "stopping after this step; Ctrl-C again stops at once" in ended.stderr
    assert ended.stderr.endswith("next: datalayer migrate messages --to other\n")
    assert world.json("migrations", "status")["coordinator"] is None
    world.run("migrate", "messages", "--to", "other", "--yes")
    assert len(world.bodies()) == 20


def test_ctrl_c_inside_a_hold_waits_for_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(20)
    interrupt(monkeypatch, "drain.before")
    world.run("migrate", "messages", "--to", "other", "--yes", exit_code=None)
    assert world.phase() == "target"


def test_ctrl_c_twice_stops_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(20)
    with monkeypatch.context() as patched:
        interrupt(patched, "drain.before", times=2)
        ended = world.run("migrate", "messages", "--to", "other", "--yes", exit_code=130)
    assert ended.stderr.splitlines()[-2:] == [
        "datalayer: interrupted",
        "next: datalayer migrate messages --to other",
    ]
    assert world.phase() == "armed"
    world.run("migrate", "messages", "--to", "other", "--yes")
    assert world.phase() == "target"


def slow_drains(patched: pytest.MonkeyPatch, times: int) -> list[float]:
    """The first so many holds come to 20 ms, half of a limit of 40; when each of all was drained."""
    drain, seen = hold.drain, []

    async def slow(work: Any) -> str:
        seen.append(time.monotonic())
        if len(seen) <= times:
            await asyncio.sleep(0.02)
            await hold._check_budget(work)
        return await drain(work)

    patched.setitem(run.HANDLERS, Action.DRAIN, slow)
    return seen


def test_a_fence_lapses_at_half_of_max_hold(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(5)
    lapses: list[float] = []
    fence = MemoryServer.fence

    def noted(server: MemoryServer, place: Any, attempt: int, token: Any, flip: int, lapse_s: float) -> None:
        lapses.append(lapse_s)
        fence(server, place, attempt, token, flip, lapse_s)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryServer, "fence", noted)
        world.run("migrate", "messages", "--to", "other", "--yes", "--max-hold", "900")
    assert lapses == [0.45]


def test_holds_that_take_too_long_step_back_and_end_with_5(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(5)
    with monkeypatch.context() as patched:
        drained = slow_drains(patched, times=1000)
        ended = world.json("migrate", "messages", "--to", "other", "--yes", "--max-hold", "1", exit_code=5)
    assert "took longer than 0.5 ms" in ended["error"]["message"]
    assert len(drained) == HOLDS_MAX
    assert world.phase() == "armed"
    assert len(world.bodies()) == 5


def test_a_hold_that_takes_too_long_is_tried_again_once_writers_had_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fill(5)
    with monkeypatch.context() as patched:
        drained = slow_drains(patched, times=2)
        ended = world.run("migrate", "messages", "--to", "other", "--yes", "--max-hold", "40")
    assert ended.stderr.count("the hold took longer than 20 ms, half of --max-hold; it stepped back; trying again") == 2
    assert [later - one >= 0.08 for one, later in itertools.pairwise(drained)] == [True] * (len(drained) - 1)
    assert world.phase() == "target"
    assert len(world.bodies()) == 5


def test_a_failing_worker_is_told_as_its_own_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(5)

    async def fail(*_: object) -> None:
        raise Unavailable("the target has gone")

    monkeypatch.setattr(backfill.Backfill, "_copy", fail)

    def impatient(*args: Any, **kwargs: Any) -> Coordinator:
        return Coordinator(*args, **kwargs, patience_s=0.1)

    monkeypatch.setattr(migrate_module, "Coordinator", impatient)
    ended = world.run("migrate", "messages", "--to", "other", exit_code=1)
    assert "datalayer: the target has gone" in ended.stderr


def test_a_quarantined_row_blocks_the_cut_over_and_is_named(world: World) -> None:
    ids = world.fill(5)
    other = world.server("other")

    def refuse(record: Any) -> str | None:
        return "it is too heavy" if record.key.endswith(ids[2].bytes) else None

    other.refuse = refuse
    ended = world.run("migrate", "messages", "--to", "other", "--yes", exit_code=None)
    assert ended.exit_code in {3, 4}
    told = world.json("migrations", "status")
    assert (told["quarantined_count"], told["quarantined"][0]["reason"]) == (1, "it is too heavy")
    assert "quarantine" in [reason["reason"] for reason in world.json("migrations", "why")["reasons"]]
    other.refuse = None
    assert world.json("migrations", "repair")["quarantined"] == 0
    world.run("migrate", "messages", "--to", "other", "--yes")
    assert len(world.bodies()) == 5


def test_a_retired_backend_is_no_authority_any_more(world: World) -> None:
    world.fill(2)
    world.run("migrate", "messages", "--to", "other", "--yes", "--until", "complete")
    main = world.server("main")
    assert main.meta["messages", 0].role == "retired"
    # A control store that has forgotten the move: nothing may be served from the retired source.
    memory_server.SERVERS.clear()
    ended = world.run("migrate", "messages", "--to", "third", exit_code=3)
    assert "backend 'main' says that its messages are retired (the data has moved)" in ended.stderr
    assert started(world) == []


def test_the_next_command_carries_the_configuration(world: World) -> None:
    world.fill(1)
    named = world.folder / "my config.toml"
    world.config.rename(named)
    told = world.json("migrate", "messages", "--to", "other", "--config", named, exit_code=5)
    assert told["next_steps"] == [f"datalayer migrate messages --to other --yes --config '{named}'"]
    told = world.json("migrations", "status", "--config", named)
    assert all(step.endswith(f"--config '{named}'") for step in told["next_steps"])
