"""datalayer import messages, and the function behind it."""

import asyncio
import gzip
import json
import os
import signal
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.messages import Append
from datalayer.errors import NotFinished, OutcomeUnknown, Unavailable
from datalayer.importing import BadLines, ImportReport, Progress, conversation_id, import_messages, messages, reading
from datalayer.importing.tally import Tally
from datalayer.layer import DataLayer
from datalayer.stores.memory.server import server_named
from datalayer.types import Message
from tests.unit.cli_world import World, fresh_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return fresh_world(tmp_path, monkeypatch)


def line(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "conversation": f"room {number % 7}",
        "id": number,
        "sender": number % 3,
        "sent_at": 1_600_000_000 + number,
        "body": f"body {number}",
    } | changes


def written(world: World, lines: Iterable[dict[str, Any] | str], name: str = "in.jsonl") -> Path:
    path = world.folder / name
    text = "\n".join(item if isinstance(item, str) else json.dumps(item) for item in lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def load(world: World, path: Path, on_error: Literal["stop", "skip"] = "stop", **how: Any) -> ImportReport:
    async def use(layer: DataLayer) -> ImportReport:
        return await import_messages(layer, path, on_error=on_error, **how)

    return world.with_layer(use)


def stored(world: World, rooms: int = 7) -> dict[str, Message]:
    """What an application reads, by body."""

    async def use(layer: DataLayer) -> dict[str, Message]:
        found: dict[str, Message] = {}
        for room in range(rooms):
            page = await layer.messages.history(conversation_id(f"room {room}"), limit=1000)
            found |= {message.body: message for message in page.items}
        return found

    return world.with_layer(use)


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_a_second_import_changes_nothing(world: World, name: str) -> None:
    path = written(world, [line(n) for n in (*range(700), *range(20))], name)
    first = world.json("import", "messages", path)
    wanted = {"lines": 720, "distinct": 700, "new": 700, "already": 0, "repeated": 20, "bad_count": 0}
    assert {key: first[key] for key in wanted} == wanted
    before = stored(world)
    assert len(before) == 700
    second = world.json("import", "messages", path)
    assert {key: second[key] for key in wanted} == wanted | {"new": 0, "already": 700}
    assert second["digest"] == first["digest"]
    assert stored(world) == before


def test_the_result_is_told_to_people_too(world: World) -> None:
    ended = world.run("import", "messages", written(world, [line(1), line(2), line(1)]))
    assert ended.stdout.startswith("3 lines: 2 distinct messages, 2 new, 0 already there, 1 repeated, 0 bad (")
    assert ended.stdout.splitlines()[1].startswith("digest ")
    assert ended.stderr == ""


def test_the_digest_changes_with_what_is_stored(world: World) -> None:
    path = written(world, [line(n) for n in range(50)])
    digest = load(world, path).digest
    message = stored(world)["body 7"]

    async def edit(layer: DataLayer) -> None:
        await layer.messages.edit(message.conversation_id, message.id, body="edited")

    world.with_layer(edit)
    again = load(world, path)
    assert again.digest != digest
    assert (again.new, again.differing_count) == (0, 0)
    assert stored(world)["edited"].id == message.id


def test_the_digest_is_the_same_wherever_it_is_stored(world: World) -> None:
    path = written(world, [line(n) for n in range(300)])
    digest = load(world, path).digest
    server_named("other", SystemClock(), "last_writer")
    world.run("migrate", "messages", "--to", "other", "--yes", "--until", "complete")
    assert load(world, path).digest == digest


def test_a_deleted_message_does_not_come_back(world: World) -> None:
    path = written(world, [line(n) for n in range(10)])
    load(world, path)
    message = stored(world)["body 3"]

    async def delete(layer: DataLayer) -> None:
        await layer.messages.delete(message.conversation_id, message.id)

    world.with_layer(delete)
    again = load(world, path)
    assert (again.new, again.already, again.differing_count) == (0, 10, 0)
    assert "body 3" not in stored(world)


@pytest.mark.parametrize("authority_class", ["transactional", "last_writer"])
def test_what_was_stored_first_stays_and_the_line_that_differs_is_named(
    world: World, authority_class: Literal["transactional", "last_writer"]
) -> None:
    server_named("other", SystemClock(), authority_class)
    world.config.write_text(world.config.read_text() + '[routes]\nmessages = "other"\n')
    path = written(world, [line(1), line(2), line(1, body="else"), line(2, sender=9)])
    ended = world.run("import", "messages", path)
    assert "2 line(s) differ from the message stored with their id, which stays: 3, 4" in ended.stderr
    assert set(stored(world)) == {"body 1", "body 2"}


BAD: list[dict[str, Any] | str] = ["{", line(2, body="x\0"), line(3, sent_at="soon"), line(4, body="y" * 101)]


def test_stop_names_every_bad_line_and_stores_nothing(world: World) -> None:
    world.config.write_text(world.config.read_text() + "[limits]\nbody_max_bytes = 100\n")
    path = written(world, [*(line(n) for n in range(10, 600)), *BAD, line(9)])
    ended = world.run("import", "messages", path, exit_code=1)
    assert [text.split(": ")[1] for text in ended.stderr.splitlines()[:4]] == [f"{path}:{n}" for n in range(591, 595)]
    assert "4 line(s) cannot be imported, first line 591" in ended.stderr
    assert "nothing was imported" in ended.stderr
    assert stored(world) == {}
    with pytest.raises(BadLines) as caught:
        load(world, path)
    assert caught.value.count == 4


def test_skip_leaves_bad_lines_out_and_names_them(world: World) -> None:
    world.config.write_text(world.config.read_text() + "[limits]\nbody_max_bytes = 100\n")
    path = written(world, [line(10), *BAD, line(11)])
    told = world.json("import", "messages", path, "--on-error", "skip")
    assert [bad["number"] for bad in told["bad"]] == [2, 3, 4, 5]
    assert told["bad"][3]["reason"] == "body is 101 bytes; the limit is 100"
    assert (told["lines"], told["distinct"], told["bad_count"]) == (6, 2, 4)
    assert set(stored(world)) == {"body 10", "body 11"}


def test_a_truncated_gzip_file_is_no_success_either_way(world: World) -> None:
    path = written(world, [line(n, body=os.urandom(20).hex()) for n in range(2000)], "in.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    ended = world.run("import", "messages", path, exit_code=1)
    assert "the gzip file ends too early" in ended.stderr
    assert stored(world) == {}
    told = world.json("import", "messages", path, "--on-error", "skip", exit_code=1)
    assert told["complete"] is False
    assert 0 < told["distinct"] < 2000
    assert told["bad"] == [
        {"number": told["lines"] + 1, "reason": "the gzip file ends too early: what follows is missing", "unit": "line"}
    ]


def test_many_bad_lines_are_counted_and_the_first_named(world: World) -> None:
    ended = world.run("import", "messages", written(world, ["{"] * 1500), "--on-error", "skip")
    assert "and 1480 more" in ended.stderr
    assert len(ended.stderr.splitlines()) == 21
    assert len(load(world, world.folder / "in.jsonl", "skip").bad) == 1000


@pytest.mark.parametrize("what", ["absent", "folder"])
def test_a_file_that_cannot_be_read_is_one_sentence(world: World, what: str) -> None:
    path = world.folder / what
    if what == "folder":
        path.mkdir()
    ended = world.run("import", "messages", path, exit_code=2)
    assert len(ended.stderr.splitlines()) == 1
    assert str(path) in ended.stderr


def test_keys_that_are_not_imported_are_named(world: World) -> None:
    ended = world.run("import", "messages", written(world, [line(1, reactions=3), line(2, topic="t")]))
    assert "these keys are not imported: reactions, topic" in ended.stderr


def test_ctrl_c_stops_with_130_and_the_same_import_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(world, [line(n) for n in range(1200)])
    tell = messages._Importer._tell

    def interrupted(importer: Any, file: Any, found: Any, *, checking: bool) -> None:
        if found.new == 500:
            os.kill(os.getpid(), signal.SIGINT)
        tell(importer, file, found, checking=checking)

    with monkeypatch.context() as patched:
        patched.setattr(messages._Importer, "_tell", interrupted)
        ended = world.run("import", "messages", path, exit_code=130)
    assert ended.stderr.endswith(f"next: datalayer import messages {path}\n")
    assert 500 <= len(stored(world)) < 1200
    assert world.json("import", "messages", path)["distinct"] == 1200
    assert len(stored(world)) == 1200


def test_a_retryable_error_is_repeated_as_the_same_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(world, [line(n) for n in range(300)])
    write = messages._Importer._append
    failures = {n: OutcomeUnknown("lost") if n % 2 else Unavailable("away") for n in range(0, 300, 10)}
    calls = [0]

    async def flaky(importer: Any, append: Append) -> Message:
        calls[0] += 1
        failure = failures.pop(calls[0], None)
        message = await write(importer, append) if failure is None or isinstance(failure, OutcomeUnknown) else None
        if failure is not None:
            raise failure
        assert message is not None
        return message

    monkeypatch.setattr(messages._Importer, "_append", flaky)
    report = load(world, path)
    assert (report.new, report.distinct) == (300, 300)
    assert len(stored(world)) == 300


def test_a_store_that_stays_away_ends_with_5_and_says_how_to_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(world, [line(n) for n in range(1200)])
    monkeypatch.setattr(reading, "PATIENCE_S", 0.2)

    def outage(progress: Progress) -> None:
        world.server("main").up = not (progress.new >= 500 and not progress.checking)

    with pytest.raises(NotFinished, match="the import stopped near line"):
        load(world, path, progress=outage)
    world.server("main").up = True
    assert load(world, path).distinct == 1200
    monkeypatch.setattr(messages._Importer, "_look_up", _away)
    ended = world.run("import", "messages", path, exit_code=5)
    assert ended.stderr.endswith(f"next: datalayer import messages {path}\n")


async def _away(*_: object) -> None:
    raise Unavailable("backend main does not answer")


def test_an_import_during_a_migration_lands_on_both_sides(world: World) -> None:
    load(world, written(world, [line(n) for n in range(300)]))
    world.run("migrate", "messages", "--to", "other", "--until", "backfilled")
    more = written(world, [line(n) for n in range(600)], "more.jsonl")
    assert load(world, more).new == 300
    told = world.json("migrate", "messages", "--to", "other", "--yes")
    assert told["verification"]["authority_records"] == 600
    assert len(stored(world)) == 600


def test_two_imports_at_once_store_each_message_once(world: World) -> None:
    path = written(world, [line(n) for n in range(1100)])

    async def both(layer: DataLayer) -> list[ImportReport]:
        return list(await asyncio.gather(import_messages(layer, path), import_messages(layer, path)))

    first, second = world.with_layer(both)
    assert first.digest == second.digest
    assert len(stored(world)) == 1100


def test_progress_rises_to_the_end(world: World) -> None:
    path = written(world, [line(n) for n in range(1200)])
    seen: list[Progress] = []
    load(world, path, progress=seen.append)
    assert {progress.checking for progress in seen} == {True, False}
    last = [progress for progress in seen if not progress.checking]
    assert [progress.lines for progress in last] == [500, 1000, 1200]
    assert last[-1].position_bytes == last[-1].size_bytes == path.stat().st_size


def test_the_tally_counts_in_bounded_memory_what_it_has_seen_twice(world: World) -> None:
    load(world, written(world, [line(1), line(2)]))
    one, two = stored(world).values()
    with Tally() as tally:
        for message in (one, two, one):
            tally.add(message)
        assert tally.total()[0] == 2
        digest = tally.total()[1]
    with Tally() as other:
        for message in (two, one):
            other.add(message)
        assert other.total() == (2, digest)


def test_memory_does_not_grow_with_the_file(world: World) -> None:
    """Twice the lines, the same peak: bodies are not kept. The check file is read by the same code."""

    def peak(lines: int) -> int:
        path = written(world, (line(n, body="x" * 2000) for n in range(lines)), f"{lines}.jsonl")

        async def check(layer: DataLayer) -> int:
            importer = messages._Importer(layer, path, lambda _: None)
            tracemalloc.start()
            try:
                await importer.check()
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        return world.with_layer(check)

    assert peak(6000) < 1.3 * peak(2000)
