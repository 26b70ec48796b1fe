"""datalayer doctor, routes, schema: they see what is wrong, and change nothing."""

from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest

from datalayer.cli.console import Console
from datalayer.cli.progress import TRYING_AGAIN, ProgressBar, Watcher, duration, line
from datalayer.control.base import ProcessInfo
from datalayer.control.memory_server import SERVERS as CONTROL_SERVERS
from datalayer.layer import MOVABLE
from datalayer.migrators import doctor
from datalayer.migrators.plan import IN_HOLD, Action
from datalayer.routing.places import Places
from datalayer.stores.base import MetaRow
from datalayer.sync import DataLayer
from tests.unit.cli_world import CONFIG, SECRET, World, fresh_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return fresh_world(tmp_path, monkeypatch)


def wrong(world: World) -> dict[str, str]:
    told = world.json("doctor", exit_code=None)
    return {item["check"]: item["detail"] for item in told["findings"] if not item["ok"]}


def test_a_backend_that_cannot_hold_a_domain_is_not_told_as_its_first_place(world: World) -> None:
    def said_of_media() -> tuple[bool, str, str | None]:
        told = world.json("doctor", exit_code=None)
        found = next(item for item in told["findings"] if item["check"] == "route media")
        route = next(route for route in world.json("routes")["routes"] if route["domain"] == "media")
        return found["ok"], found["detail"], route["backend"]

    ok, detail, first = said_of_media()
    assert (ok, first) == (True, None)
    assert detail.startswith("no backend was given to it, so nobody can use it: media would be gone with this process")
    assert "[routes] media = NAME" in detail
    world.config.write_text(CONFIG + '[routes]\nmedia = "other"\n')
    ok, detail, first = said_of_media()
    assert (ok, first) == (False, None)
    assert detail == "other cannot be its first place: media would be gone with this process"


def test_an_installation_in_order_is_ok(world: World) -> None:
    world.fill(1)
    told = world.json("doctor")
    assert told["ok"] is True
    checks = {item["check"] for item in told["findings"]}
    assert {"packages", "control store", "fleet", "backend main", "route messages", "route users"} <= checks
    assert world.run("doctor").stdout.startswith("ok    packages: datalayer is datalayer-online\n")


def test_before_the_first_use_nothing_is_wrong_and_nothing_is_made(world: World) -> None:
    world.config.write_text('[backends.main]\nurl = "sqlite:///data/main.sqlite"\n')
    (world.folder / "data").mkdir()
    assert world.json("doctor")["ok"] is True
    assert list((world.folder / "data").iterdir()) == []


def test_a_control_store_that_was_lost_is_not_taken_for_a_new_deployment(world: World) -> None:
    world.config.write_text('[backends.main]\nurl = "sqlite:///data/main.sqlite"\n')
    with DataLayer.open(world.config) as layer:
        layer.users.create(username="ann")
    assert world.json("doctor")["ok"] is True
    for file in (world.folder / "data").glob("control.sqlite*"):
        file.unlink()
    told = wrong(world)
    assert set(told) == {f"route {domain}" for domain in MOVABLE}
    assert "main says authority for deployment" in told["route users"]


def test_a_foreign_package_of_the_same_name_is_named() -> None:
    assert doctor.foreign_packages({"datalayer": ["datalayer-online"]})[0].ok
    assert doctor.foreign_packages({"datalayer": ["Datalayer_Online"]})[0].ok
    (found,) = doctor.foreign_packages({"datalayer": ["datalayer-online", "datalayer"]})
    assert (found.ok, found.detail) == (False, "another project is installed as datalayer: datalayer")
    assert found.way_out.startswith("pip uninstall datalayer; ")


def test_a_control_store_that_is_down_is_one_finding_among_the_others(world: World) -> None:
    world.fill(1)
    CONTROL_SERVERS["control"].machine.up = False
    ended = world.run("doctor", exit_code=1)
    assert "WRONG control store: " in ended.stdout
    assert "ok    backend main: " in ended.stdout


def test_a_slow_control_store_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(1)
    monkeypatch.setattr(doctor, "SLOW_CONTROL_MS", -1.0)
    assert wrong(world)["control store"].startswith("answers in ")


def test_a_backend_that_is_down_is_named(world: World) -> None:
    world.fill(1)
    world.server("third").up = False
    assert wrong(world) == {"backend third": "backend third does not answer"}


def test_a_route_to_a_backend_that_is_not_configured_is_named(world: World) -> None:
    world.fill(1)
    world.run("migrate", "messages", "--to", "other", "--yes", "--until", "complete")
    world.config.write_text('[backends.main]\nurl = "memory://"\n')
    assert wrong(world) == {"route messages": "it is routed to backend 'other', which is not configured here"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (MetaRow("messages", 0, "else", "authority", 1), "main belongs to deployment else, the control store to"),
        (MetaRow("messages", 0, "memory:control", "retired", 1), "main says retired at epoch 1"),
        (MetaRow("messages", 0, "memory:control", "authority", 9), "main says authority at epoch 9"),
        (None, "main holds no messages of attempt 0"),
    ],
)
def test_a_backend_of_another_mind_than_the_control_store_is_named(
    world: World, row: MetaRow | None, says: str
) -> None:
    world.fill(1)
    meta = world.server("main").meta
    del meta["messages", 0]
    if row is not None:
        meta["messages", 0] = row
    assert wrong(world)["route messages"].startswith(says)


def test_processes_that_went_silent_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stray(places: Places) -> None:
        await places.control.register(ProcessInfo("p", "elsewhere", 4711, "", "worker"), {})

    world.fill(1)
    world.with_places(stray)
    assert wrong(world) == {}
    monkeypatch.setattr(doctor, "SILENT_S", -1.0)
    assert "worker elsewhere:4711" in wrong(world)["fleet"]


def test_a_missing_driver_names_the_extra(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.config.write_text(CONFIG + f'[backends.pg]\nurl = "postgresql://app:{SECRET}@db/app"\n')

    def missing(module: str) -> object:
        raise ModuleNotFoundError(f"No module named 'psycopg' for {SECRET}", name="psycopg")

    monkeypatch.setattr("datalayer.stores.registry.importlib", SimpleNamespace(import_module=missing))
    for command in ("doctor", "routes", "schema status", "migrate messages", "migrations list"):
        ended = world.run(*command.split(), exit_code=3)
        assert "pip install 'datalayer-online[" in ended.stderr, command
        assert len(ended.stderr.splitlines()) == 1


def test_routes_show_who_serves_what(world: World) -> None:
    assert "not placed yet" in world.run("routes").stdout
    world.fill(1)
    world.run("migrate", "messages", "--to", "other", "--yes")
    routes = {route["domain"]: route for route in world.json("routes")["routes"]}
    assert routes["users"]["backend"] == "main"
    assert routes["messages"] == {
        "domain": "messages",
        "backend": "other",
        "phase": "target",
        "epoch": 4,
        "table": "messages_1",
        "mirror": "main",
    }


def test_schemas_are_looked_at_and_brought_up_to_date(world: World) -> None:
    ended = world.run("schema", "status", exit_code=3)
    assert "next: datalayer schema upgrade" in ended.stderr
    assert world.json("schema", "upgrade", "main")["schemas"] == [
        {"name": "main", "product": "memory", "state": "ready", "detail": ""}
    ]
    assert world.json("schema", "status", "main")["schemas"][0]["state"] == "ready"
    world.run("schema", "status", exit_code=3)
    world.run("schema", "upgrade")
    assert {item["state"] for item in world.json("schema", "status")["schemas"]} == {"ready"}


def test_a_schema_of_a_backend_that_is_down_or_unknown(world: World) -> None:
    world.server("main").up = False
    told = world.json("schema", "status", "main", exit_code=1)
    assert told["schemas"][0]["state"] == "unreachable"
    assert "backend 'nope' is not configured" in world.run("schema", "upgrade", "nope", exit_code=2).stderr


# --- bars ------------------------------------------------------------------------------------------------------------


def test_a_bar_tells_share_rate_and_time_left() -> None:
    text = line("backfill", 250, 1000, 125.0, unit="rows", columns=100)
    assert text == "backfill  25% [########......................] 250 of 1,000 rows  125/s  6 s left"
    assert line("backfill", 5, 0, 0.0, unit="rows", columns=100).endswith("0/s  ? left")
    assert line("backfill", 20, 10, 1.0, unit="rows", columns=100).startswith("backfill 100% ")


@pytest.mark.parametrize("columns", [10, 40, 70, 200])
def test_a_bar_fits_the_terminal(columns: int) -> None:
    assert len(line("backfill", 123_456_789, 987_654_321, 98_765.4, unit="rows", columns=columns)) <= columns


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (None, 0.2, 59, 61, 3600, 90_000)] == [
        "?",
        "0 s",
        "59 s",
        "1:01 min",
        "1:00 h",
        "25:00 h",
    ]


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ProgressBar(Console()).draw("backfill", 1, 2, 1.0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(Console, "terminal", property(lambda console: True))
    bar = ProgressBar(Console())
    bar.draw("backfill", 1, 2, 1.0)
    bar.clear()
    shown = capsys.readouterr()
    assert "backfill  50%" in shown.err
    assert shown.err.endswith("\r\x1b[K")
    assert shown.out == ""


def test_nothing_is_written_inside_a_hold(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher(Console(as_json=True))
    watcher.step(Action.FENCE, "done", "flip 1")
    said = capsys.readouterr()
    assert said.out
    for action in IN_HOLD[:-1]:
        watcher.step(action, "doing", "")
        watcher.step(action, "done", "fine")
    watcher.step(IN_HOLD[-1], "doing", "")
    assert capsys.readouterr() == ("", "")
    watcher.step(IN_HOLD[-1], "done", "held 3 ms")
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 * len(IN_HOLD)
    assert said.err.splitlines()[-1] == "  open_other: held 3 ms"


def test_what_was_held_back_is_said_when_the_hold_fails(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher(Console())
    watcher.step(IN_HOLD[0], "doing", "")
    watcher.note("something")
    assert capsys.readouterr().err == ""
    watcher.step(IN_HOLD[1], "failed", "too long")
    assert capsys.readouterr().err == f"something\n  {IN_HOLD[1]} failed: too long\n"
    watcher.step(IN_HOLD[0], "doing", "")
    watcher.note("killed")
    watcher.close()
    assert capsys.readouterr().err == "killed\n"


def test_an_outage_is_told_once_and_what_is_new_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    def attempt(reason: str) -> list[str]:
        watcher.stage("backfill", "dual")
        watcher.step(Action.BACKFILL, "failed", reason)
        watcher.note(f"backfill: {reason}; {TRYING_AGAIN}")
        return capsys.readouterr().err.splitlines()

    watcher = Watcher(Console())
    assert len(attempt("x does not answer")) == 3
    assert attempt("x does not answer") == attempt("x does not answer") == []
    assert attempt("x refuses the login") == [
        "  backfill failed: x refuses the login",
        "backfill: x refuses the login; trying again",
    ]
    watcher.stage("backfill", "dual")
    watcher.step(Action.BACKFILL, "done", "5 rows")
    watcher.stage("backfill", "dual")
    assert capsys.readouterr().err.splitlines()[-2:] == ["  backfill: 5 rows", "backfill (phase dual)"]


def test_presence_in_memory_is_named_once_there_are_several_processes(world: World) -> None:
    with DataLayer.open(world.config) as layer:
        layer.presence.heartbeat(UUID(int=1))
        (found,) = [item for item in world.json("doctor")["findings"] if item["check"] == "memory"]
        assert found["ok"]
        with DataLayer.open(world.config):
            told = wrong(world)["memory"]
    assert told.startswith("presence and typing lie in the memory of each of 2 processes")
