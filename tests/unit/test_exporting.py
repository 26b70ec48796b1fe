"""datalayer export, and its import: the same records, to the bit, in every format; no file that is half and looks whole."""

import asyncio
import errno
import fcntl
import gzip
import io
import json
import sys
import tracemalloc
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalayer.clock import SystemClock
from datalayer.domains.catalogue import MEDIA
from datalayer.domains.conversations import CONVERSATION, MEMBER
from datalayer.domains.messages import MESSAGE, Append, appended, to_record
from datalayer.domains.record import Key, Kind, Record, canonical_json
from datalayer.domains.users import USER
from datalayer.errors import Closed, NotFinished, PreconditionFailed
from datalayer.exporting import SHAPES, ExportProgress, export, export_domain
from datalayer.exporting.shapes import RECORD, shapes_of
from datalayer.exporting.sink import FORMAT, MARK, JsonLinesSink, PartFile
from datalayer.ids import uuid7_at
from datalayer.importing import Progress, import_domain
from datalayer.importing.records import RecordImporter
from datalayer.layer import DataLayer
from datalayer.migrators.lease import held_lease
from datalayer.parquet.sink import ParquetSink
from datalayer.parquet.source import ParquetRows
from datalayer.routing.places import Places
from datalayer.routing.route import Place
from tests.unit.cli_world import ROOM, World, fresh_world

NOW_US = 1_790_000_000_000_000
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return fresh_world(tmp_path, monkeypatch)


@pytest.fixture
def elsewhere(tmp_path: Path, world: World) -> World:
    """The same deployment's twin: other backends and another control store."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    found = World(folder)
    found.config.write_text(
        '[backends.main]\nurl = "sqlite:///main.sqlite"\n[backends.twin]\nurl = "sqlite:///twin.sqlite"\n'
        '[routes]\nusers = "twin"\nmessages = "twin"\nconversations = "twin"\n'
    )
    return found


def everything(world: World, domain: str) -> dict[Key, Record]:
    """What the store that serves a domain holds, what is not exported included."""

    async def look(places: Places) -> dict[Key, Record]:
        _, routings = await places.control.routings()
        place = routings[domain].authority
        await places.ensure_open(place)
        store = places.store(domain, place)
        found: dict[Key, Record] = {}
        for range_ in await store.plan_scan(1):
            page = await store.scan(range_, None, 10_000)
            assert page.done
            found |= {record.ident: record for record in page.records}
        return found

    return world.with_places(look)


def live(records: dict[Key, Record]) -> dict[Key, Record]:
    return {key: record for key, record in records.items() if not record.deleted}


def fill(world: World) -> None:
    """Records with every field in use: edited, deleted, renamed, in threads, with attachments and attributes."""

    async def use(layer: DataLayer) -> None:
        ann = await layer.users.create(username="Ann", email="ann@example.org", attributes={"ü": ["\U0001f600", None]})
        bob = await layer.users.create(username="Bob", email="bob@example.org", display_name="Bob\r\n\u2028\t\x7f")
        gone = await layer.users.create(username="Gone", email="gone@example.org")
        await layer.users.update(ann.id, username="Anna", expected_version=ann.version)
        await layer.users.delete(gone.id)
        await layer.users.create(username="gone")  # the name was given back
        room = await layer.conversations.create(title='a "room"\n', members={ann.id: "owner", bob.id: "member"})
        first = await layer.messages.append(room.id, sender_id=ann.id, body="one\n\u2029'\"\\ \U0001f600")
        await layer.messages.append(
            room.id,
            sender_id=bob.id,
            body="",
            kind="image",
            thread_id=first.id,
            attachments=[first.id, ann.id],
            attributes={"n": 1.5, "big": 2**60},
        )
        edited = await layer.messages.append(room.id, sender_id=bob.id, body="tow")
        await layer.messages.edit(room.id, edited.id, body="two")
        deleted = await layer.messages.append(room.id, sender_id=bob.id, body="oops")
        await layer.messages.delete(room.id, deleted.id)

    world.with_layer(use)


# --- shapes: every value, both formats -------------------------------------------------------------------------------

_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40)
_uuid = st.binary(min_size=16, max_size=16)
_json = st.dictionaries(
    _text,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
).map(canonical_json)
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "uuid": _uuid,
    "uuids": st.lists(_uuid, max_size=3).map(b"".join),
    "text": _text,
    "int": st.integers(-(2**63) + 1, 2**63 - 1),
    "json": _json,
}
_v7 = st.builds(uuid7_at, st.integers(0, NOW_US), st.integers(0, 2**62 - 1)).map(lambda id_: id_.bytes)
_KINDS = {
    kind.name: (domain, kind)
    for domain, kind in (
        ("messages", MESSAGE),
        ("users", USER),
        ("conversations", CONVERSATION),
        ("conversations", MEMBER),
        ("media", MEDIA),
    )
}


def records_of(kind: Kind) -> st.SearchStrategy[Record]:
    values = [_VALUES[spec.type] | st.none() if spec.nullable else _VALUES[spec.type] for spec in kind.fields]
    dated = st.tuples(_uuid, _v7)
    key = {"message": dated, "media": dated, "member": st.tuples(_uuid, _uuid)}.get(kind.name, st.tuples(_v7))
    return st.builds(
        Record,
        st.just(kind.name),
        key.map(b"".join),
        st.integers(1, NOW_US),
        st.booleans(),
        st.tuples(*values),
    )


@pytest.mark.parametrize("name", list(_KINDS))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_field_of_every_record_comes_back_as_it_was(tmp_path: Path, name: str, suffix: str) -> None:
    domain, kind = _KINDS[name]
    shape = shapes_of(domain)[name]

    @settings(max_examples=15, deadline=None)
    @given(records=st.lists(records_of(kind), min_size=1, max_size=8))
    def comes_back(records: list[Record]) -> None:
        file = io.BytesIO()
        header = {"export": domain, "format": FORMAT, "include_deleted": True}
        if suffix == ".parquet":
            sink: Any = ParquetSink(file, domain, header)
        else:
            sink = JsonLinesSink(file, domain, header, packed=suffix.endswith(".gz"))
        sink.write(records)
        sink.finish(len(records), "00")
        if suffix == ".parquet":
            path = tmp_path / "x.parquet"
            path.write_bytes(file.getvalue())
            with ParquetRows(path) as rows:
                lines = [line.raw for line in rows.batch(100, 1 << 30) if not hasattr(line, "reason")]
                assert rows.end == {**header, "end": True, "records": len(records), "digest": "00"}
        else:
            raw = file.getvalue() if suffix == ".jsonl" else gzip.decompress(file.getvalue())
            lines = raw.split(b"\n")[1:-2]
        found = [shape.to_record(json.loads(line), NOW_US) for line in lines]
        assert found == [shape.normal(record) for record in records]

    comes_back()


def test_a_field_that_is_not_what_it_should_be_is_refused_by_name() -> None:
    shape = shapes_of("messages")["message"]
    record = Record("message", ROOM.bytes + uuid7_at(NOW_US, 1).bytes, NOW_US, False, (ROOM.bytes, "", "text", None, b"", None, "{}"))  # fmt: skip
    good = shape.to_object(record)
    assert shape.to_record(good, NOW_US) == record
    wrong: dict[str, Any] = {
        "id": str(ROOM),  # no UUIDv7
        "conversation_id": "x",
        "sender_id": None,
        "body": "\x00",
        "attachments": "no list",
        "edited_at_us": 1.5,
        "attributes": [],
        "deleted": 1,
        "version": 0,
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name.removesuffix("_us")):
            shape.to_record({**good, name: value}, NOW_US)
    with pytest.raises(ValueError, match="version"):
        shape.to_record({**good, "version": NOW_US + 61_000_000}, NOW_US)


# --- whole deployments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_an_import_of_an_export_is_the_same_deployment(world: World, elsewhere: World, suffix: str) -> None:
    fill(world)
    for domain in SHAPES:
        path = world.folder / f"{domain}{suffix}"
        told = world.json("export", domain, path, "--include-deleted", "--config", world.config)
        first = elsewhere.json("import", domain, path, "--config", elsewhere.config)
        assert (first["new"], first["digest"], first["bad_count"]) == (told["records"], told["digest"], 0)
        again = elsewhere.json("import", domain, path, "--config", elsewhere.config)
        assert (again["new"], again["already"], again["digest"]) == (0, told["records"], told["digest"])
        assert again["differing_count"] == 0
    assert everything(elsewhere, "messages") == everything(world, "messages")
    for domain in ("users", "conversations"):
        kinds = {shape.kind.name: shape for shape in SHAPES[domain]}
        there, here = everything(elsewhere, domain), everything(world, domain)
        for name, shape in kinds.items():
            assert {key: shape.normal(r) for key, r in there.items() if key[0] == name} == {
                key: shape.normal(r) for key, r in here.items() if key[0] == name
            }
    owners = [
        {key: record.fields for key, record in live(everything(one, "users")).items() if key[0] == "claim"}
        for one in (world, elsewhere)
    ]
    assert owners[0] == owners[1]

    async def use(layer: DataLayer) -> None:
        anna = await layer.users.get_by_email("ANN@example.org")
        assert anna is not None
        assert anna.username == "Anna"
        while not (listed := (await layer.conversations.of_user(anna.id)).items):
            await asyncio.sleep(0.01)
        assert [entry.role for entry in listed] == ["owner"]
        await layer.users.update(anna.id, username="Ann")

    elsewhere.with_layer(use)


def test_tombstones_are_left_out_unless_they_are_asked_for(world: World) -> None:
    fill(world)
    told = world.json("export", "messages", world.folder / "a.jsonl")
    assert (told["records"], told["deleted"]) == (3, 0)
    told = world.json("export", "messages", world.folder / "b.jsonl", "--include-deleted")
    assert (told["records"], told["deleted"]) == (4, 1)
    first, *lines, last = [json.loads(line) for line in (world.folder / "a.jsonl").read_text().splitlines()]
    assert first == {MARK: {"export": "messages", "format": FORMAT, "include_deleted": False}}
    assert last[MARK]["records"] == len(lines) == 3
    assert [line["deleted"] for line in lines] == [False] * 3
    assert lines[0]["created_at"].endswith("Z")


def test_two_kinds_in_one_file_are_told_apart(world: World) -> None:
    fill(world)
    path = world.folder / "conversations.jsonl"
    world.run("export", "conversations", path)
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:-1]]
    assert sorted(line[RECORD] for line in lines) == ["conversation", "member", "member"]
    assert "listed_us" not in lines[0]


def test_what_is_stored_already_stays(world: World) -> None:
    fill(world)
    path = world.folder / "messages.jsonl"
    world.run("export", "messages", path)
    header, *lines, last = path.read_text().splitlines()
    changed = [line.replace('"body":"two"', '"body":"TWO"') for line in lines]
    before = everything(world, "messages")
    path.write_text("\n".join([header, *changed, last, ""]))
    ended = world.run("import", "messages", path, "--on-error", "skip")
    assert "1 line(s) differ from the message stored with their id, which stays" in ended.stderr
    assert everything(world, "messages") == before


# --- a file that is not whole ------------------------------------------------------------------------------------------


def test_an_export_that_ends_early_leaves_no_file_and_one_that_died_is_begun_anew(world: World) -> None:
    world.fill(500)
    path = world.folder / "messages.jsonl"

    async def stopped(layer: DataLayer) -> None:
        def progress(told: ExportProgress) -> None:
            if told.records >= 100:
                raise Closed("stopped")

        with pytest.raises(Closed):
            await export_domain(layer, "messages", path, progress=progress)

    world.with_layer(stopped)
    assert list(world.folder.glob("messages*")) == []
    part = world.folder / "messages.jsonl.part"
    part.write_text('{"datalayer": {"export": "messages"}}\nwhat a killed run has left')
    told = world.json("export", "messages", path)
    assert (told["records"], part.exists()) == (500, False)
    assert len(path.read_text().splitlines()) == 502


def test_a_file_is_not_replaced_unasked_and_not_written_by_two(world: World) -> None:
    world.fill(3)
    path = world.folder / "messages.jsonl"
    path.write_text("mine")
    ended = world.run("export", "messages", path, exit_code=3)
    assert "exists already" in ended.stderr
    assert path.read_text() == "mine"
    world.run("export", "messages", path, "--overwrite")
    assert path.read_text() != "mine"
    with (world.folder / "messages.jsonl.part").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        ended = world.run("export", "messages", path, "--overwrite", exit_code=3)
    assert "another export is writing" in ended.stderr
    world.run("export", "messages", world.folder / "messages.csv", exit_code=2)
    world.run("export", "messages", world.folder / "no" / "such.jsonl", exit_code=2)
    world.run("export", "sessions", world.folder / "sessions.jsonl", exit_code=2)


def test_a_file_that_another_export_finished_meanwhile_is_not_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "messages.jsonl"
    whole = fcntl.flock
    with ExitStack() as first:
        first.enter_context(PartFile(path, overwrite=False)).file.write(b"whole")

        def ends_first(file: Any, how: int) -> None:
            monkeypatch.setattr(fcntl, "flock", whole)
            first.close()
            whole(file, how)

        monkeypatch.setattr(fcntl, "flock", ends_first)
        with pytest.raises(PreconditionFailed, match="exists already"):
            PartFile(path, overwrite=False)
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_export_to_a_full_disk_says_so_and_keeps_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    world.fill(50)

    class FullDisk(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, _data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    locked = PartFile._locked

    def full(file: PartFile) -> Any:
        locked(file).close()
        return NoRoom(FullDisk())

    class NoRoom(io.BufferedWriter):
        def truncate(self, _size: int | None = None) -> int:
            return 0

    monkeypatch.setattr(PartFile, "_locked", full)
    ended = world.run("export", "messages", world.folder / f"messages{suffix}", exit_code=None)
    assert ended.exit_code == 5
    assert "cannot be written: No space left on device" in ended.stderr
    assert list(world.folder.glob("messages*")) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_export_that_was_cut_off_is_refused_and_nothing_is_stored(world: World, suffix: str) -> None:
    world.fill(50)
    path = world.folder / f"messages{suffix}"
    world.run("export", "messages", path)
    if suffix == ".jsonl":
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    else:
        path.write_bytes(path.read_bytes()[:-40])
    there = World(world.folder)
    there.config.write_text('[backends.main]\nurl = "sqlite:///there.sqlite"\n')
    code = 2 if suffix == ".parquet" else 1
    ended = there.run("import", "messages", path, exit_code=code)
    assert any(word in ended.stderr for word in ("not whole", "too early", "no whole"))
    if suffix == ".jsonl":
        told = there.json("import", "messages", path, "--on-error", "skip", exit_code=1)
        assert (told["complete"], told["new"]) == (False, 50)


def test_an_export_that_was_changed_is_noticed(world: World) -> None:
    world.fill(5)
    path = world.folder / "messages.jsonl"
    world.run("export", "messages", path)
    whole = path.read_text()
    path.write_text(whole.replace('"body":"m3"', '"body":"m7"'))
    ended = world.run("import", "messages", path, exit_code=1)
    assert f"{path}:7: the file was changed after its export" in ended.stderr
    lines = whole.splitlines()
    path.write_text("\n".join([*lines[:2], *lines[3:], ""]))
    ended = world.run("import", "messages", path, exit_code=1)
    assert "4 records, but 5 were exported" in ended.stderr


def test_an_export_of_another_domain_or_a_later_version_is_refused(world: World) -> None:
    world.fill(2)
    path = world.folder / "messages.jsonl"
    world.run("export", "messages", path)
    ended = world.run("import", "users", path, exit_code=2)
    assert "an export of messages, not of users" in ended.stderr
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', '"format": 99'))
    ended = world.run("import", "messages", path, exit_code=2)
    assert "format 99" in ended.stderr
    plain = world.folder / "plain.jsonl"
    plain.write_text("{}\n")
    ended = world.run("import", "conversations", plain, exit_code=2)
    assert "is no export" in ended.stderr


# --- stopped, moving, names that are taken ---------------------------------------------------------------------------


def test_an_import_that_was_stopped_goes_on(world: World, elsewhere: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecordImporter, "batch_lines", 100)
    world.fill(300)
    path = world.folder / "messages.jsonl"
    told = world.json("export", "messages", path, "--config", world.config)

    async def stopped(layer: DataLayer) -> None:
        def progress(done: Progress) -> None:
            if done.new:
                raise Closed("stopped")

        lease = held_lease(layer.places.control, SystemClock(), "messages", "test", print)
        with pytest.raises(Closed):
            await import_domain(layer, "messages", path, lease=lambda: lease, progress=progress)

    elsewhere.with_layer(stopped)
    assert 0 < len(everything(elsewhere, "messages")) < 300
    again = elsewhere.json("import", "messages", path, "--config", elsewhere.config)
    assert (again["distinct"], again["digest"]) == (300, told["digest"])
    assert 0 < again["already"] < 300
    assert everything(elsewhere, "messages") == everything(world, "messages")


def test_exported_records_wait_for_a_domain_at_rest(world: World) -> None:
    world.fill(5)
    path = world.folder / "messages.jsonl"
    world.run("export", "messages", path)
    world.run("migrate", "messages", "--to", "other", "--until", "dual")
    ended = world.run("import", "messages", path, exit_code=3)
    assert "messages is being moved" in ended.stderr
    moved = world.json("export", "messages", world.folder / "meanwhile.jsonl")
    assert moved["records"] == 5


def test_an_export_of_a_domain_that_moves_meanwhile_is_thrown_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fill(5)
    path = world.folder / "messages.jsonl"

    looks = iter([Place("main"), Place("other", 1)])

    async def lies(_exporter: object) -> dict[str, Place]:
        return {"messages": next(looks)}

    async def exported(layer: DataLayer) -> None:
        monkeypatch.setattr(export._Exporter, "_lies", lies)
        with pytest.raises(NotFinished, match="moved while it was exported"):
            await export_domain(layer, "messages", path)

    world.with_layer(exported)
    assert list(world.folder.glob("messages*")) == []


def test_a_name_that_somebody_has_is_named_and_the_user_left_out(world: World, elsewhere: World) -> None:
    fill(world)
    path = world.folder / "users.jsonl"
    told = world.json("export", "users", path, "--config", world.config)

    async def takes(layer: DataLayer) -> UUID:
        return (await layer.users.create(username="anna", email="other@example.org")).id

    taker = elsewhere.with_layer(takes)
    skipped = elsewhere.json("import", "users", path, "--on-error", "skip", "--config", elsewhere.config)
    assert (skipped["new"], skipped["bad_count"]) == (told["records"] - 1, 1)
    assert "the username 'Anna' is taken" in skipped["bad"][0]["reason"]

    async def look(layer: DataLayer) -> None:
        found = await layer.users.get_by_username("Anna")
        assert found is not None
        assert found.id == taker
        # the other name of who was left out is free
        await layer.users.create(username="free", email="ann@example.org")

    elsewhere.with_layer(look)


# --- Parquet of other programs, and without pyarrow -------------------------------------------------------------------


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.set_column(3, "sent_at", table["sent_at"].cast(pa.timestamp("us", tz="UTC"))), path)


def test_parquet_rows_are_imported_as_lines_are_and_bad_rows_named(world: World) -> None:
    path = world.folder / "in.parquet"
    rows: list[dict[str, Any]] = [
        {"conversation": "a", "id": n, "sender": "s", "sent_at": 1_600_000_000_000_000 + n, "body": f"b{n}"}
        for n in range(1200)
    ]
    write_parquet(path, rows)
    lines = world.folder / "in.jsonl"
    lines.write_text("".join(json.dumps(row | {"sent_at": row["sent_at"] / 1e6}) + "\n" for row in rows))
    first = world.json("import", "messages", path)
    assert (first["new"], first["lines"]) == (1200, 1200)
    again = world.json("import", "messages", lines)
    assert (again["new"], again["digest"]) == (0, first["digest"])
    rows[700]["body"] = None
    write_parquet(path, rows)
    ended = world.run("import", "messages", path, exit_code=1)
    assert f"{path}: row 701: body missing" in ended.stderr


def test_without_pyarrow_the_extra_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(1)
    for name in [name for name in sys.modules if name.startswith(("pyarrow", "datalayer.parquet"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ended = world.run("export", "messages", world.folder / "messages.parquet", exit_code=3)
    assert "datalayer-online[parquet]" in ended.stderr
    assert list(world.folder.glob("messages*")) == []
    world.run("export", "messages", world.folder / "messages.jsonl")


def test_memory_does_not_grow_with_the_export(world: World) -> None:
    async def use(layer: DataLayer) -> int:
        records = [
            to_record(appended(Append(ROOM, uuid7_at(NOW_US, number), ROOM, f"{number}{'x' * 4000}")))
            for number in range(3000)
        ]
        await layer.router("messages").route.authority.apply(records)
        del records
        peaks = []
        for name in ("a.jsonl", "a.parquet"):
            tracemalloc.start()
            await export_domain(layer, "messages", world.folder / name)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return max(peaks)

    # 12 MB of bodies: pages are of 2 MB, a page is in memory as records and as lines
    assert world.with_layer(use) < 10_000_000
