"""datalayer import users, and the function behind it."""

import gzip
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest

from datalayer.domains.users import CreateUser, claim_key, claim_of, claim_record
from datalayer.errors import InvalidArgument, NotFinished, OutcomeUnknown, Unavailable
from datalayer.ids import id_time_us, uuid7_at
from datalayer.importing import BadLines, ImportReport, Progress, import_users, reading, user_id, user_of, users
from datalayer.importing.users_lines import UNKNOWN_SINCE_US
from datalayer.layer import DataLayer
from datalayer.migrators.lease import held_lease
from datalayer.testing.user_probe import Holdings, hold
from datalayer.types import User
from tests.acceptance.users_data import id_of, line_of
from tests.unit.cli_world import World, fresh_world

NOW = 1_800_000_000_000_000


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return fresh_world(tmp_path, monkeypatch)


def line(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "username": f"name {number}", "email": f"n{number}@example.org"} | changes


def written(world: World, lines: Iterable[dict[str, Any] | str], name: str = "in.jsonl") -> Path:
    path = world.folder / name
    text = "\n".join(item if isinstance(item, str) else json.dumps(item) for item in lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def load(
    world: World, path: Path, on_error: Literal["stop", "skip"] = "stop", *, bulk: bool = True, **how: Any
) -> ImportReport:
    async def use(layer: DataLayer) -> ImportReport:
        def lease() -> Any:
            return held_lease(layer.places.control, layer.clock, "users", "import", print)

        return await import_users(layer, path, on_error=on_error, lease=lease if bulk else None, **how)

    return world.with_layer(use)


def stored(world: World) -> dict[str, User]:
    """What an application reads, by username."""

    async def use(layer: DataLayer) -> dict[str, User]:
        return {user.username: user for user in (await layer.users.list(limit=1000)).items}

    return world.with_layer(use)


def holdings(world: World) -> Holdings:
    async def use(layer: DataLayer) -> Holdings:
        return await hold(layer.places)

    return world.with_layer(use)


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_a_second_import_changes_nothing(world: World, name: str) -> None:
    path = written(world, [line(n) for n in (*range(700), *range(20))], name)
    first = world.json("import", "users", path)
    wanted = {"lines": 720, "distinct": 700, "new": 700, "already": 0, "repeated": 20, "bad_count": 0}
    assert {key: first[key] for key in wanted} == wanted
    before = stored(world)
    assert len(before) == 700
    second = world.json("import", "users", path)
    assert {key: second[key] for key in wanted} == wanted | {"new": 0, "already": 700}
    assert second["digest"] == first["digest"]
    assert stored(world) == before
    found = holdings(world)
    assert (found.users, found.claims, found.orphans, found.missing) == (700, 1400, 0, 0)


def test_bulk_and_routed_imports_store_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for bulk in (True, False):
        (folder := tmp_path / f"{bulk}").mkdir()
        world = fresh_world(folder, monkeypatch)
        report = load(world, written(world, [line_of(n) for n in range(1, 300)]), bulk=bulk)
        found.append((report.new, report.digest, stored(world)))
    assert found[0] == found[1]
    assert {user.id for user in found[0][2].values()} == {id_of(n) for n in range(1, 300)}


def test_the_result_is_told_to_people_too(world: World) -> None:
    ended = world.run("import", "users", written(world, [line(1), line(2), line(1)]))
    assert ended.stdout.startswith("3 lines: 2 distinct users, 2 new, 0 already there, 1 repeated, 0 bad (")
    assert ended.stderr == ""


COLLIDING = [
    line(1, username="Straße", email="A@example.org"),
    line(2, username="anna"),
    line(3, username="STRASSE"),
    line(4, email="ａ@EXAMPLE.org"),
    line(2, username="anna"),
    line(5),
    line(6, username="Ａｎｎａ"),
]


def test_stop_names_every_line_whose_name_is_anothers_before_anything_is_written(world: World) -> None:
    path = written(world, COLLIDING)
    ended = world.run("import", "users", path, exit_code=1)
    assert [text.removeprefix(f"datalayer: {path}:") for text in ended.stderr.splitlines()[:3]] == [
        "3: the username is that of line 1, too (compared without case and Unicode form)",
        "4: the email is that of line 1, too (compared without case and Unicode form)",
        "7: the username is that of line 2, too (compared without case and Unicode form)",
    ]
    assert "3 line(s) cannot be imported" in ended.stderr
    assert stored(world) == {}


@pytest.mark.parametrize("bulk", [True, False])
def test_skip_leaves_out_the_later_line_of_a_name_and_says_so(world: World, bulk: bool) -> None:
    path = written(world, COLLIDING)
    first = load(world, path, "skip", bulk=bulk)
    assert [bad.number for bad in first.bad] == [3, 4, 7]
    assert first.bad[0].reason == "the username 'STRASSE' is taken (compared without case and Unicode form)"
    assert (first.lines, first.distinct, first.new, first.repeated) == (7, 3, 3, 1)
    assert set(stored(world)) == {"Straße", "anna", "name 5"}
    again = load(world, path, "skip", bulk=bulk)
    assert (again.bad, again.new, again.digest) == (first.bad, 0, first.digest)
    found = holdings(world)
    assert (found.orphans, found.missing) == (0, 0)


def test_names_that_are_taken_already_are_found_before_anything_is_written(world: World) -> None:
    async def create(layer: DataLayer) -> None:
        await layer.users.create(username="Ann", email="ann@example.org")

    world.with_layer(create)
    path = written(world, [line(1), line(2, username="ANN"), line(3, email="Ann@example.ORG")])
    with pytest.raises(BadLines) as caught:
        load(world, path)
    assert [str(bad) for bad in caught.value.bad] == [
        "line 2: the username 'ANN' is taken (compared without case and Unicode form)",
        "line 3: the email 'Ann@example.ORG' is taken (compared without case and Unicode form)",
    ]
    assert set(stored(world)) == {"Ann"}
    assert load(world, path, "skip").bad_count == 2
    assert set(stored(world)) == {"Ann", "name 1"}
    assert holdings(world).orphans == 0


def test_a_name_that_was_given_back_can_be_imported(world: World) -> None:
    async def come_and_go(layer: DataLayer) -> None:
        await layer.users.delete((await layer.users.create(username="name 1")).id)

    world.with_layer(come_and_go)
    assert load(world, written(world, [line(1), line(2)])).new == 2
    found = holdings(world)
    assert (found.users, found.orphans, found.missing) == (2, 0, 0)


def test_what_has_changed_since_stays_also_under_another_name(world: World) -> None:
    path = written(world, [line(n) for n in range(5)])
    digest = load(world, path).digest

    async def change(layer: DataLayer) -> None:
        await layer.users.update(user_id(1), username="renamed")
        await layer.users.delete(user_id(2))
        await layer.users.create(username="name 2")

    world.with_layer(change)
    again = load(world, path)
    assert (again.new, again.already, again.differing_count, again.bad_count) == (0, 5, 0, 0)
    assert again.digest != digest
    assert set(stored(world)) == {"name 0", "renamed", "name 2", "name 3", "name 4"}


def test_what_was_stored_first_stays_and_the_line_that_differs_is_named(world: World) -> None:
    path = written(world, [line(1), line(2), line(1, email=None)])
    assert load(world, path).differing == (3,)
    ended = world.run("import", "users", path)
    assert "1 line(s) differ from the user stored with their id, which stays: 3" in ended.stderr
    assert stored(world)["name 1"].email == "n1@example.org"


def test_claims_of_an_import_that_died_are_used_by_the_next(world: World) -> None:
    async def claim(layer: DataLayer) -> None:
        store = layer.router("users").route.authority
        mine = [claim_record(claim_key("username", "name 1"), user_id(1), UNKNOWN_SINCE_US)]
        await store.apply([*mine, claim_record(claim_key("username", "name 2"), user_id(99), UNKNOWN_SINCE_US)])

    world.with_layer(claim)
    report = load(world, written(world, [line(1), line(2)]), "skip")
    assert (report.new, [bad.number for bad in report.bad]) == (1, [2])
    assert set(stored(world)) == {"name 1"}
    assert [text.split(",")[0] for text in holdings(world).examples] == [
        f"username {claim_of(claim_key('username', 'name 2'))[1]!r} of {user_id(99).hex}"
    ]


def test_a_name_taken_between_the_look_and_the_write_stays_with_who_took_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race that the order of claims, look and rows decides."""
    part = users._Importer._part

    async def late(importer: Any, missing: Any, at: int) -> Any:
        parted = await part(importer, missing, at)
        await importer._layer.users.create(username="NAME 3")
        return parted

    monkeypatch.setattr(users._Importer, "_part", late)
    report = load(world, written(world, [line(n) for n in range(6)]), "skip")
    assert [bad.reason for bad in report.bad] == [
        "the username 'name 3' is taken (compared without case and Unicode form)"
    ]
    assert (report.new, report.distinct) == (5, 5)
    found = holdings(world)
    assert (found.users, found.orphans, found.missing) == (6, 0, 0)


def test_an_import_during_a_migration_lands_on_both_sides(world: World) -> None:
    load(world, written(world, [line(n) for n in range(300)]))
    world.run("migrate", "users", "--to", "other", "--until", "backfilled")
    more = written(world, [line(n) for n in range(600)], "more.jsonl")
    assert load(world, more).new == 300
    told = world.json("migrate", "users", "--to", "other", "--yes")
    assert told["phase"] == "target"
    assert len(stored(world)) == 600
    found = holdings(world)
    assert (found.users, found.orphans, found.missing) == (600, 0, 0)


def test_ctrl_c_stops_with_130_and_the_same_import_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(world, [line(n) for n in range(900)])
    monkeypatch.setattr(users._Importer, "batch_lines", 300)
    tell = users._Importer._tell

    def interrupted(importer: Any, file: Any, found: Any, *, checking: bool) -> None:
        if found.new == 300:
            os.kill(os.getpid(), signal.SIGINT)
        tell(importer, file, found, checking=checking)

    with monkeypatch.context() as patched:
        patched.setattr(users._Importer, "_tell", interrupted)
        ended = world.run("import", "users", path, exit_code=130)
    assert ended.stderr.endswith(f"next: datalayer import users {path}\n")
    assert 300 <= len(stored(world)) < 900
    assert world.json("import", "users", path)["distinct"] == 900


def test_a_retryable_error_is_repeated_as_the_same_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(world, [line(n) for n in range(300)])
    write = users._Importer._create
    failures = {n: OutcomeUnknown("lost") if n % 20 else Unavailable("away") for n in range(0, 300, 10)}
    calls = [0]

    async def flaky(importer: Any, mutation: CreateUser) -> Any:
        calls[0] += 1
        failure = failures.pop(calls[0], None)
        user = await write(importer, mutation) if failure is None or isinstance(failure, OutcomeUnknown) else None
        if failure is not None:
            raise failure
        return user

    monkeypatch.setattr(users._Importer, "_create", flaky)
    report = load(world, path, bulk=False)
    assert (report.new, report.distinct, len(stored(world))) == (300, 300, 300)


def test_a_store_that_stays_away_ends_with_5_and_says_how_to_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(world, [line(n) for n in range(900)])
    monkeypatch.setattr(users._Importer, "batch_lines", 300)
    monkeypatch.setattr(reading, "PATIENCE_S", 0.2)

    def outage(progress: Progress) -> None:
        world.server("main").up = not (progress.new >= 300 and not progress.checking)

    with pytest.raises(NotFinished, match="the import stopped near line"):
        load(world, path, progress=outage)
    world.server("main").up = True
    assert load(world, path).distinct == 900


def parse(**fields: Any) -> CreateUser:
    return user_of(json.dumps(fields).encode(), now_us=NOW)[0]


def refused(**fields: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        parse(**fields)
    return caught.value.message


def test_ids_follow_from_the_line() -> None:
    told = parse(username="ann", id=7, created_at=1_700_000_000)
    assert told.id == user_id(7, 1_700_000_000_000_000)
    assert id_time_us(told.id) == 1_700_000_000_000_000
    assert told == parse(username="ann", id=7, created_at="2023-11-14T22:13:20Z")
    assert told.id != parse(username="ann", id="8", created_at=1_700_000_000).id
    assert parse(username="ann").id == parse(username="ＡＮＮ", email="a@b.c").id
    assert id_time_us(parse(username="ann").id) == UNKNOWN_SINCE_US
    kept = uuid7_at(1_700_000_000_000_000, 5)
    assert parse(username="ann", id=str(kept)).id == kept
    assert parse(username="ann", id=str(kept), created_at=1_700_000_000).id == kept
    assert parse(username="ann", id=str(UUID(int=5))).id == user_id(str(UUID(int=5)))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "username missing"),
        ({"username": " "}, "username must not be empty"),
        ({"username": 5}, "username must be text, not int"),
        ({"username": "a\x00"}, "username contains the character NUL, which no store keeps alike"),
        ({"username": "x" * 257}, "username is 257 bytes; the limit is 256"),
        ({"username": "a", "email": ""}, "email must not be empty"),
        ({"username": "a", "display_name": 1}, "display_name must be text, not int"),
        ({"username": "a", "attributes": []}, "attributes must be a JSON object"),
        ({"username": "a", "created_at": "soon"}, "created_at is no ISO time"),
        ({"username": "a", "created_at": -1}, "created_at lies before 1970"),
        (
            {"username": "a", "created_at": 5, "id": str(uuid7_at(7_000_000_000_000, 1))},
            "created_at is not the time that the id carries; leave it out",
        ),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(fields: dict[str, Any], reason: str) -> None:
    assert refused(**fields) == reason


def test_keys_that_are_not_imported_are_named(world: World) -> None:
    ended = world.run("import", "users", written(world, [line(1, password="x"), line(2, age=4)]))
    assert "these keys are not imported: age, password" in ended.stderr
