"""datalayer plan and grow: what they say, that a plan changes nothing, and that a growth goes on wherever it was cut short."""

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import pytest

from datalayer.cli.console import Console
from datalayer.domains.movement import MOVEMENTS
from datalayer.errors import PreconditionFailed
from datalayer.layer import MOVABLE, DataLayer
from datalayer.migrators import run
from datalayer.migrators.plan import Action
from datalayer.migrators.rates import benchmarked, seen
from datalayer.migrators.sizes import KINDS, ORDER, SIZES
from datalayer.settings import parse_settings
from tests.unit.cli_world import World, fresh_world

CORE = ("users", "conversations", "listings", "catalogue", "messages")
CONFIG = """\
[backends.main]
url = "memory://"
[backends.disk]
url = "sqlite:///disk.sqlite"
[backends.other]
url = "memory://"
"""
TO_OTHER = ("--size", "mvp", *(word for domain in CORE for word in ("--use", f"{domain}=other")))
"""The same growth within the memory, which is faster."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Everything in memory, and a SQLite file beside it: the smallest size wants it there."""
    found = fresh_world(tmp_path, monkeypatch)
    found.config.write_text(CONFIG)
    return found


def placed(world: World) -> dict[str, str]:
    routes: list[dict[str, Any]] = world.json("routes")["routes"]
    return {route["domain"]: route["backend"] for route in routes if route["domain"] in CORE}


def commands(told: dict[str, Any]) -> list[str]:
    return [step["command"] for step in told["steps"]]


def test_every_size_says_something_of_every_domain_and_every_domain_has_its_turn() -> None:
    assert set(ORDER) == set(MOVEMENTS)
    for size, needs in SIZES.items():
        assert set(needs) == set(MOVEMENTS), size


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_a_plan_tells_to_add_is_a_configuration(kind: Any) -> None:
    settings = parse_settings({**tomllib.loads(kind.toml), "control": {"url": "memory://"}})
    assert [kind.fits(backend) for backend in settings.backends.values()] == [True]


def test_a_plan_lists_the_steps_in_order_and_changes_nothing(world: World) -> None:
    world.fill(7)
    before = world.json("routes")
    told = world.json("plan", "--size", "mvp")
    assert commands(told)[: len(CORE)] == [f"datalayer migrate {domain} --to disk --yes" for domain in CORE]
    assert (told["ready"], told["done"]) == (True, False)
    step = next(step for step in told["steps"] if step["domain"] == "messages")
    assert (step["rows"], step["source"], step["target"]) == (7, "main", "disk")
    assert step["seconds"] > 0
    assert "guess" in step["rate"]
    assert told["next_steps"] == ["datalayer grow --size mvp"]
    assert world.json("routes") == before
    assert world.json("migrations", "list")["migrations"] == []
    text = world.run("plan", "--size", "mvp").stdout
    assert "7 rows" in text


def test_a_plan_makes_no_file_and_gives_no_domain_its_first_place(world: World) -> None:
    for words in (("plan", "--size", "mvp"), ("grow", "--size", "mvp", "--dry-run")):
        told = world.json(*words, exit_code=3)
        users = next(plan for plan in told["domains"] if plan["domain"] == "users")
        assert (users["standing"], users["backend"]) == ("blocked", None)
        assert {route["phase"] for route in world.json("routes")["routes"]} == {"not placed yet"}
        assert (world.server("main").tables, world.server("main").meta) == ({}, {})
    world.fill(1)
    assert world.json("plan", "--size", "mvp")["ready"] is True
    assert not (world.folder / "disk.sqlite").exists()


def test_a_rate_that_was_chosen_is_what_the_time_goes_by(world: World) -> None:
    world.fill(7)
    told = world.json("plan", "--size", "mvp", "--rate", "1")
    step = next(step for step in told["steps"] if step["domain"] == "messages")
    assert 10 <= step["seconds"] < 11
    assert step["rate"].startswith("--rate")


def test_who_has_no_configuration_is_told_to_begin_with_what_is_in_use(world: World) -> None:
    assert "datalayer init" not in world.run("plan", "--size", "100m", exit_code=3).stdout
    world.config.unlink()
    asyncio.run(_open_and_close())
    told = world.run("plan", "--size", "100m", exit_code=3).stdout
    assert "`datalayer init` writes a file that names what is in use; to that\nadd for users, conversations" in told
    before = world.json("routes")
    world.run("init")
    assert world.json("routes") == before


async def _open_and_close() -> None:
    async with DataLayer.open():
        pass


def test_a_missing_backend_is_named_with_what_to_add(world: World) -> None:
    world.fill(1)
    told = world.json("plan", "--size", "100m", exit_code=3)
    lacking = {plan["domain"]: plan for plan in told["domains"] if plan["standing"] == "lacks"}
    assert set(lacking) >= set(CORE)
    assert lacking["messages"]["toml"].startswith("[backends.cassandra]")
    assert "members" in lacking["users"]["toml"]
    ended = world.run("grow", "--size", "100m", "--yes", exit_code=3)
    assert "messages: no configured backend is Cassandra" in ended.stderr
    assert "datalayer plan --size 100m" in ended.stderr
    assert world.json("migrations", "list")["migrations"] == []


def test_growth_moves_everything_and_a_second_one_does_nothing(world: World) -> None:
    world.fill(7)
    grow = ("grow", "--size", "mvp", "--yes")
    told = world.json(*grow)
    assert told["done"][: len(CORE)] == [f"datalayer migrate {domain} --to disk --yes" for domain in CORE]
    assert placed(world) == dict.fromkeys(CORE, "disk")
    assert world.bodies() == [f"m{n}" for n in range(7)]
    assert world.phase() == "target"
    assert world.json(*grow)["done"] == []
    plan = world.json("plan", "--size", "mvp")
    assert plan["done"] is True
    details = {one["domain"]: one["detail"] for one in plan["domains"]}
    assert "the way back to 'main' is open" in details["messages"]


def test_a_dry_run_is_the_plan(world: World) -> None:
    world.fill(3)
    assert world.json("grow", "--size", "mvp", "--dry-run") == world.json("plan", "--size", "mvp")
    assert world.json("migrations", "list")["migrations"] == []


def test_unconfirmed_it_ends_with_5_before_the_first_cut_over(world: World) -> None:
    world.fill(7)
    told = world.json("grow", *TO_OTHER, exit_code=5)
    assert told["next_steps"] == [f"datalayer grow {' '.join(TO_OTHER)} --yes"]
    assert placed(world) == dict.fromkeys(CORE, "main")
    assert [m["domain"] for m in world.json("migrations", "list")["migrations"]] == ["users"]
    world.run("grow", *TO_OTHER, "--yes")
    assert placed(world) == dict.fromkeys(CORE, "other")


def test_a_person_is_asked_before_each_step_and_may_stop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(2)
    asked: list[str] = []

    def answer(_console: object, question: str, *, word: str | None = None) -> bool:
        asked.append(question)
        return len(asked) < 3

    monkeypatch.setattr(Console, "asks", True)
    monkeypatch.setattr(Console, "confirmed", answer)
    ended = world.run("grow", *TO_OTHER, exit_code=5)
    assert [question.partition(" (")[0] for question in asked] == [
        "Move users from main to other",
        "Move conversations from main to other",
        "Move listings from main to other",
    ]
    assert "stopped before datalayer migrate listings" in ended.stderr
    assert placed(world) == dict(zip(CORE, ("other", "other", "main", "main", "main"), strict=True))


@pytest.mark.parametrize("action", [Action.CREATE_TARGET, Action.BACKFILL, Action.DRAIN, Action.OPEN_OTHER])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_growth_that_died_anywhere_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, action: Action, step: int
) -> None:
    """The action ends by an exception that nobody catches, as a kill would end the process: after its effect."""
    world.fill(7)
    whole = run.HANDLERS[action]
    calls = 0

    class Died(BaseException):
        pass

    async def dies(work: Any) -> str:
        nonlocal calls
        said = await whole(work)
        calls += 1
        if calls == step:
            raise Died
        return said

    monkeypatch.setitem(run.HANDLERS, action, dies)
    with pytest.raises(Died):
        world.run("grow", *TO_OTHER, "--yes")
    assert calls == step
    world.run("grow", *TO_OTHER, "--yes")
    assert placed(world) == dict.fromkeys(CORE, "other")
    assert world.bodies() == [f"m{n}" for n in range(7)]


def test_back_to_where_a_domain_came_from_is_a_rollback_that_copies_nothing(world: World) -> None:
    world.fill(7)
    world.run("migrate", "messages", "--to", "other", "--yes")
    back = ("--size", "mvp", *(word for domain in (*CORE, "search") for word in ("--use", f"{domain}=main")))
    assert commands(world.json("plan", *back)) == ["datalayer migrations rollback messages-1 --yes"]
    world.json("grow", *back, exit_code=5)
    assert placed(world)["messages"] == "other"
    world.run("grow", *back, "--yes")
    assert placed(world)["messages"] == "main"
    assert world.bodies() == [f"m{n}" for n in range(7)]
    plan = {one["domain"]: one for one in world.json("plan", *back)["domains"]}
    assert plan["messages"]["standing"] == "fits"
    assert "datalayer migrations cancel messages-1" in plan["messages"]["detail"]


def test_an_unfinished_migration_elsewhere_is_in_the_way_until_it_may_be_completed(world: World) -> None:
    world.config.write_text(CONFIG + '[backends.third]\nurl = "memory://"\n')
    world.fill(7)
    world.run("migrate", "messages", "--to", "other", "--yes")
    rest = (word for domain in (*CORE[:4], "search") for word in ("--use", f"{domain}=main"))
    onwards = ("--size", "mvp", "--use", "messages=third", *rest)
    told = world.json("plan", *onwards, exit_code=3)
    blocked = next(one for one in told["domains"] if one["domain"] == "messages")
    assert blocked["standing"] == "blocked"
    assert "messages-1 still keeps the way back to 'main' open: --complete closes it first" in blocked["detail"]
    told = world.json("plan", *onwards, "--complete")
    assert commands(told) == [
        "datalayer migrations complete messages-1 --yes",
        "datalayer migrate messages --to third --yes",
    ]
    world.json("grow", *onwards, "--complete", exit_code=5)
    assert placed(world)["messages"] == "other"
    world.run("grow", *onwards, "--complete", "--yes")
    assert placed(world)["messages"] == "third"
    assert world.bodies() == [f"m{n}" for n in range(7)]


def test_a_migration_that_has_begun_elsewhere_must_be_ended_by_hand(world: World) -> None:
    world.config.write_text(CONFIG + '[backends.third]\nurl = "sqlite:///third.sqlite"\n')
    world.fill(7)
    world.run("migrate", "messages", "--to", "other", "--until", "dual")
    told = world.json("plan", "--size", "mvp", "--use", "messages=third", "--complete", exit_code=3)
    blocked = next(one for one in told["domains"] if one["domain"] == "messages")
    assert "datalayer migrations cancel messages-1" in blocked["detail"]


def test_where_several_would_do_the_first_by_name_is_taken_and_the_others_are_named(world: World) -> None:
    world.config.write_text(CONFIG + '[backends.third]\nurl = "sqlite:///third.sqlite"\n')
    world.fill(1)
    told = world.json("plan", "--size", "mvp")
    messages = next(one for one in told["domains"] if one["domain"] == "messages")
    assert messages["target"] == "disk"
    assert messages["detail"] == "third would do, too: --use messages=third"


@pytest.mark.parametrize("use", ["messages", "=disk", "messages=", "letters=disk", "messages=nowhere"])
def test_a_choice_that_names_nothing_is_refused(world: World, use: str) -> None:
    world.fill(1)
    world.run("plan", "--size", "mvp", "--use", use, exit_code=2)


def test_a_step_that_fails_stops_it_and_names_the_next_command(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(7)

    async def refuses(_work: Any) -> str:
        raise PreconditionFailed("the target is full")

    monkeypatch.setitem(run.HANDLERS, Action.BACKFILL, refuses)
    ended = world.run("grow", *TO_OTHER, "--yes", exit_code=3)
    assert "step 1 of" in ended.stderr
    assert "the target is full" in ended.stderr
    assert placed(world) == dict.fromkeys(CORE, "main")


def test_a_rate_is_what_was_seen_here_if_it_was_long_enough() -> None:
    found = seen("messages-1", {"rows": 900, "copied": 500, "seconds": 1.0}, {"seconds": 2.0, "authority_records": 900})
    assert found is not None
    assert (found.copied_per_s, found.compared_per_s) == (500, 450)
    assert seen("messages-1", {"rows": 900, "copied": 500, "seconds": 0.1}, None) is None
    assert seen("messages-1", None, None) is None
    assert "guess" in benchmarked("memory", "SQLite").source
    assert benchmarked("Postgres", "Cassandra").capped(100).copied_per_s == 100


def test_movable_domains_are_all_planned(world: World) -> None:
    async def nothing(layer: DataLayer) -> None:
        await layer.health()

    world.with_layer(nothing)
    told = world.json("plan", "--size", "mvp")
    assert [plan["domain"] for plan in told["domains"]] == [name for name in ORDER if name in MOVABLE]
