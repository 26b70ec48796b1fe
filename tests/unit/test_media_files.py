"""Export and import of media: the same items and bytes elsewhere, whatever is stopped, and nothing of what is wrong."""

import errno
import hashlib
import json
import os
import random
import shutil
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.catalogue import MEDIA, Detach, Pend, to_object
from datalayer.domains.record import Record
from datalayer.errors import Closed
from datalayer.exporting import ExportProgress, export_domain, objects
from datalayer.exporting.objects import ObjectFolder
from datalayer.exporting.shapes import shapes_of
from datalayer.ids import IdSource
from datalayer.importing import Progress, import_media
from datalayer.importing.media import MediaImporter
from datalayer.layer import DataLayer
from datalayer.routing.places import Places
from datalayer.types import Media
from tests.unit.cli_world import CONFIG, World, fresh_world

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
ANN, BOB = uuid4(), uuid4()
BIG = random.Random(5).randbytes(700_000)
uuid7 = IdSource(SystemClock()).uuid7


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = fresh_world(tmp_path, monkeypatch)
    found.config.write_text(f'{CONFIG}[backends.files]\nurl = "file://{tmp_path}/files"\n[routes]\nmedia = "files"\n')
    return found


@pytest.fixture
def elsewhere(tmp_path: Path, world: World) -> World:
    """Another deployment: other backends and another control store."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    found = World(folder)
    folders = "".join(f'[backends.{name}]\nurl = "file://{folder}/{name}"\n' for name in ("files", "yonder"))
    places = f'[backends.there]\nurl = "memory://"\n{folders}'
    routes = 'media = "files"\n' + "".join(f'{domain} = "there"\n' for domain in ("users", "messages", "conversations"))
    found.config.write_text(f'{places}[routes]\n{routes}[control]\nurl = "sqlite:///control.sqlite"\n')
    return found


def embed(*worlds: World) -> None:
    """The embedded default: SQLite and a folder of files."""
    for one in worlds:
        one.config.write_text('[backends.main]\nurl = "sqlite:///main.sqlite"\n')


async def put_many(layer: DataLayer) -> None:
    """Every field in use, equal bytes of one owner and of two, no bytes at all, a deleted one, one that is not there yet."""
    media = layer.media
    await media.put(owner_id=ANN, data=BIG, content_type="image/png", filename="ä \u2028.png", attributes={"a": ["ü"]})
    for owner in (ANN, ANN, BOB):
        await media.put(owner_id=owner, data=b"same", content_type="text/plain; charset=utf-8")
    await media.put(owner_id=BOB, data=b"", content_type="a/b")
    changed = await media.put(owner_id=BOB, data=b"changed", content_type="a/b")
    await media.update(changed, filename="new")
    await media.delete(await media.put(owner_id=BOB, data=b"gone", content_type="a/b"))
    pend = Pend(BOB, uuid7(), uuid7(), 3, "a/b")
    await layer.router("catalogue").write(pend, Deadline(layer.clock, 5.0))


async def put_some(layer: DataLayer, number: int = 5) -> list[Media]:
    data = (f"item {at}".encode() for at in range(number))
    return [await layer.media.put(owner_id=ANN, data=one, content_type="a/b") for one in data]


def catalogue_of(world: World) -> dict[str, list[Record]]:
    """What the catalogue holds, by kind."""

    async def look(places: Places) -> dict[str, list[Record]]:
        _, routings = await places.control.routings()
        place = routings["catalogue"].authority
        await places.ensure_open(place)
        store = places.store("catalogue", place)
        found: dict[str, list[Record]] = {"media": [], "object": []}
        for range_ in await store.plan_scan(1):
            for record in (await store.scan(range_, None, 10_000)).records:
                found[record.kind].append(record)
        return found

    return world.with_places(look)


def exported_of(world: World) -> set[Record]:
    """The items that an export holds, in the form that counts."""
    shape = shapes_of("media")["media"]
    return {shape.normal(record) for record in catalogue_of(world)["media"] if record.fields[0] == "ready"}


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:-1]]


def export(world: World, name: str = "media.jsonl", *args: object, exit_code: int = 0) -> dict[str, Any]:
    return world.json("export", "media", world.folder / name, *args, "--config", world.config, exit_code=exit_code)


def import_(world: World, path: Path, *args: object, exit_code: int = 0) -> dict[str, Any]:
    return world.json("import", "media", path, *args, "--config", world.config, exit_code=exit_code)


# --- the same elsewhere ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_import_of_an_export_is_the_same_media(world: World, elsewhere: World, suffix: str) -> None:
    if suffix == ".jsonl":
        embed(world, elsewhere)
    world.with_layer(put_many)
    told = export(world, f"media{suffix}", "--include-deleted")
    path = world.folder / f"media{suffix}"
    assert (told["records"], told["deleted"], told["objects"]) == (7, 1, 4)
    assert told["objects_bytes"] == len(BIG) + len(b"same") + len(b"changed")
    contents = {hashlib.sha256(data).hexdigest(): data for data in (BIG, b"same", b"", b"changed")}
    for sha256, data in contents.items():
        assert (world.folder / f"media{suffix}.objects" / sha256[:2] / sha256[2:4] / sha256).read_bytes() == data
    assert files_in(world.folder / f"media{suffix}.objects") == sorted(contents)
    first = import_(elsewhere, path)
    assert (first["new"], first["digest"], first["bad_count"]) == (7, told["digest"], 0)
    again = import_(elsewhere, path)
    assert (again["new"], again["already"], again["digest"], again["differing_count"]) == (0, 7, told["digest"], 0)
    assert exported_of(elsewhere) == exported_of(world)
    kept = {(one.owner_id, one.sha256): one.refs for one in map(to_object, catalogue_of(elsewhere)["object"])}
    counts = {(ANN, BIG): 1, (ANN, b"same"): 2, (BOB, b"same"): 1, (BOB, b""): 1, (BOB, b"changed"): 1}
    assert kept == {(owner, hashlib.sha256(data).hexdigest()): refs for (owner, data), refs in counts.items()}

    async def use(layer: DataLayer) -> None:
        listed = [*(await layer.media.list(ANN)).items, *(await layer.media.list(BOB)).items]
        assert len(listed) == 6
        for item in listed:
            assert await layer.media.read(item) == contents[item.sha256]
        for item in listed:
            await layer.media.delete(item)

    elsewhere.with_layer(use)
    back = export(elsewhere, f"back{suffix}")
    assert back["records"] == 0


def test_an_export_of_an_import_is_the_same_file(world: World, elsewhere: World) -> None:
    world.with_layer(put_many)
    export(world)
    import_(elsewhere, world.folder / "media.jsonl")
    export(elsewhere)
    one, two = (where.folder / "media.jsonl" for where in (world, elsewhere))
    assert sorted(one.read_bytes().splitlines()) == sorted(two.read_bytes().splitlines())
    assert files_in(one.with_name("media.jsonl.objects")) == files_in(two.with_name("media.jsonl.objects"))
    line = next(line for line in lines_of(one) if line["size"] == len(BIG))
    assert (line["filename"], line["attributes"], line["owner_id"]) == ("ä \u2028.png", {"a": ["ü"]}, str(ANN))
    assert line.keys() >= {"id", "sha256", "content_type", "created_at", "version", "deleted"}
    assert not {"state", "upload"} & line.keys()


def test_an_import_goes_on_beside_a_move(world: World, elsewhere: World) -> None:
    world.with_layer(put_some)
    export(world)
    elsewhere.with_layer(lambda layer: put_some(layer, 2))
    moved = ("migrate", "media", "--to", "yonder", "--yes", "--config", elsewhere.config)
    elsewhere.run(*moved, "--until", "dual")
    assert import_(elsewhere, world.folder / "media.jsonl")["new"] == 5
    elsewhere.run(*moved, "--until", "complete")

    async def use(layer: DataLayer) -> list[bytes]:
        return sorted([await layer.media.read(item) for item in (await layer.media.list(ANN)).items])

    assert elsewhere.with_layer(use) == sorted(f"item {at}".encode() for at in (0, 0, 1, 1, 2, 3, 4))
    assert all("yonder:1" in to_object(record).held for record in catalogue_of(elsewhere)["object"])


# --- stopped, and gone on with -------------------------------------------------------------------------------------------


def test_an_export_that_was_stopped_uses_the_contents_it_has_left(world: World) -> None:
    path = world.folder / "media.jsonl"

    async def stopped(layer: DataLayer) -> None:
        await put_some(layer, 20)

        def progress(_told: ExportProgress) -> None:
            raise Closed("stopped")

        with pytest.raises(Closed):
            await export_domain(layer, "media", path, progress=progress)

    world.with_layer(stopped)
    assert not path.exists()
    folder = world.folder / "media.jsonl.objects"
    left = [one for one in folder.rglob("*") if one.is_file()]
    assert 0 < len(left) < 20
    left[0].write_bytes(b"damage")
    left[0].with_name(f".{left[0].name}.part").write_bytes(b"what a killed run has left")
    told = export(world)
    assert (told["records"], told["objects"]) == (20, 20 - len(left) + 1)
    for line in lines_of(path):
        assert hashlib.sha256(ObjectFolder(path).file(line["sha256"]).read_bytes()).hexdigest() == line["sha256"]
    assert len(files_in(folder)) == 20
    again = export(world, "media.jsonl", "--overwrite")
    assert (again["records"], again["objects"], again["digest"]) == (20, 0, told["digest"])


def test_an_import_that_was_stopped_goes_on_without_the_bytes_that_it_has(
    world: World, elsewhere: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MediaImporter, "batch_lines", 4)
    world.with_layer(lambda layer: put_some(layer, 12))
    told = export(world)
    path = world.folder / "media.jsonl"

    async def stopped(layer: DataLayer) -> int:
        def progress(done: Progress) -> None:
            if done.new:
                raise Closed("stopped")

        with pytest.raises(Closed):
            await import_media(layer, path, progress=progress)
        return len((await layer.media.list(ANN)).items)

    stored = elsewhere.with_layer(stopped)
    assert 0 < stored < 12
    for line in lines_of(path)[:stored]:
        ObjectFolder(path).file(line["sha256"]).unlink()
    again = import_(elsewhere, path)
    assert (again["new"], again["already"], again["digest"]) == (12 - stored, stored, told["digest"])
    shutil.rmtree(ObjectFolder(path).path)
    assert import_(elsewhere, path)["new"] == 0


def test_what_is_stored_already_stays(world: World, elsewhere: World) -> None:
    world.with_layer(put_some)
    export(world)
    path = world.folder / "media.jsonl"
    import_(elsewhere, path)

    async def change(layer: DataLayer) -> None:
        items = (await layer.media.list(ANN)).items
        await layer.media.update(items[0], filename="mine")
        await layer.media.delete(items[1])

    elsewhere.with_layer(change)
    before = catalogue_of(elsewhere)
    again = import_(elsewhere, path)
    assert (again["new"], again["differing_count"]) == (0, 2)
    assert catalogue_of(elsewhere) == before


# --- applications go on meanwhile ----------------------------------------------------------------------------------------


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[Any]]) -> None:
    """Something happens after an item was read from the catalogue and before its bytes are."""
    has = ObjectFolder.has
    done: list[bool] = []

    async def slow(folder: ObjectFolder, sha256: str, size: int) -> bool:
        if not done:
            done.append(True)
            await act()
        return await has(folder, sha256, size)

    monkeypatch.setattr(ObjectFolder, "has", slow)


@pytest.mark.parametrize("include_deleted", [False, True])
def test_an_item_that_goes_meanwhile_is_exported_as_it_is_then(
    world: World, elsewhere: World, monkeypatch: pytest.MonkeyPatch, *, include_deleted: bool
) -> None:
    path = world.folder / "media.jsonl"

    async def exported(layer: DataLayer) -> Any:
        items = await put_some(layer)

        async def delete() -> None:
            for item in items[:2]:
                detach = Detach(ANN, item.id, 0)
                await layer.router("catalogue").write(detach, Deadline(layer.clock, 5.0))
            assert (await layer.sweeper.sweep()).deleted == 2

        meanwhile(monkeypatch, delete)
        return await export_domain(layer, "media", path, include_deleted=include_deleted)

    told = world.with_layer(exported)
    assert (told.records, told.deleted, told.objects) == ((5, 2, 3) if include_deleted else (3, 0, 3))
    found = import_(elsewhere, path)
    assert (found["new"], found["digest"]) == (told.records, told.digest)


def test_an_item_whose_bytes_no_store_has_ends_the_export_by_name(world: World) -> None:
    item = world.with_layer(put_some)[4]
    (stored,) = (path for path in (world.folder / "files").rglob("*") if path.is_file() and path.read_bytes() == b"item 4")  # fmt: skip
    stored.chmod(0o600)
    for damage in (lambda: stored.write_bytes(b"item X"), stored.unlink):
        damage()
        ended = world.run("export", "media", world.folder / "media.jsonl", exit_code=1)
        assert f"media {item.id} of owner {ANN} cannot be exported" in ended.stderr
        assert "delete the item" in ended.stderr
        assert [path.name for path in world.folder.glob("media.jsonl*")] == ["media.jsonl.objects"]
        assert files_in(world.folder / "media.jsonl.objects") == sorted(
            hashlib.sha256(f"item {at}".encode()).hexdigest() for at in range(4)
        )


def test_an_export_to_a_full_disk_says_so_and_is_gone_on_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.with_layer(put_some)
    with monkeypatch.context() as full:

        def no_room(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(objects, "_finish", no_room)
        ended = world.run("export", "media", world.folder / "media.jsonl", exit_code=5)
    assert "media.jsonl.objects cannot be written: No space left on device" in ended.stderr
    assert files_in(world.folder / "media.jsonl.objects") == []
    assert export(world)["objects"] == 5


# --- what is wrong -------------------------------------------------------------------------------------------------------


def damaged(folder: ObjectFolder, sha256s: list[str]) -> dict[str, str]:
    """Five ways in which bytes are not what they should be, and what is said."""
    files = [folder.file(sha256) for sha256 in sha256s]
    files[0].unlink()
    files[1].write_bytes(b"item X")
    files[2].write_bytes(b"item 2 and more")
    files[3].unlink()
    os.mkfifo(files[3])
    files[4].unlink()
    files[4].mkdir()
    told = ("is missing", "has other bytes", "has 15 bytes, not 6", "is no plain file", "is no plain file")
    return dict(zip(sha256s, told, strict=True))


def test_missing_and_wrong_bytes_are_bad_lines_and_leave_nothing(world: World, elsewhere: World) -> None:
    world.with_layer(lambda layer: put_some(layer, 7))
    export(world)
    path = world.folder / "media.jsonl"
    numbers = {line["sha256"]: number for number, line in enumerate(lines_of(path), 2)}
    sha256s = [hashlib.sha256(f"item {at}".encode()).hexdigest() for at in range(7)]
    said = damaged(ObjectFolder(path), sha256s[:5])
    ended = elsewhere.run("import", "media", path, "--config", elsewhere.config, exit_code=1)
    for sha256, reason in said.items():
        assert f"{path}:{numbers[sha256]}: {ObjectFolder(path).file(sha256)} {reason}" in ended.stderr
    assert "nothing was imported" in ended.stderr
    assert catalogue_of(elsewhere) == {"media": [], "object": []}
    skipped = import_(elsewhere, path, "--on-error", "skip")
    assert (skipped["new"], skipped["bad_count"], skipped["complete"]) == (2, 5, True)
    assert {bad["number"] for bad in skipped["bad"]} == {numbers[sha256] for sha256 in said}
    kept = catalogue_of(elsewhere)
    assert sorted(str(record.fields[2]) for record in kept["media"]) == sorted(sha256s[5:])
    assert len(kept["object"]) == 2
    assert len(files_in(elsewhere.folder / "files" / "media")) == 2, "no bytes that nobody refers to"


HOSTILE: list[tuple[str, Any, str]] = [
    ("sha256", "../../../../etc/passwd", "sha256 is not 64 hex digits"),
    ("sha256", "/etc/passwd".ljust(64, "0"), "sha256 is not 64 hex digits"),
    ("sha256", "A" * 64, "sha256 is not 64 hex digits"),
    ("sha256", "0" * 63 + "\n", "sha256 is not 64 hex digits"),
    ("sha256", "", "sha256 is not 64 hex digits"),
    ("sha256", 5, "sha256 must be text"),
    ("sha256", None, "sha256 missing"),
    ("sha256", ["a"], "sha256 must be text"),
    ("sha256", "f" * 64, "is missing"),
    ("size", -1, "size is no number of bytes"),
    ("size", "6", "size is no whole number"),
    ("size", True, "size is no whole number"),
    ("size", 2**70, "size is no whole number"),
    ("size", 2**62, "are not allowed here"),
    ("size", 5, "has 6 bytes, not 5"),
    ("size", 7, "has 6 bytes, not 7"),
    ("content_type", "nonsense", "is no media type"),
    ("content_type", " a/b", "begins or ends with a space"),
    ("content_type", "a/b\r\nX-Evil: 1", "is no media type"),
    ("content_type", {"a": 1}, "content_type must be text"),
    ("filename", "x" * 1025, "filename is 1025 bytes"),
    ("filename", "a\x00b", "NUL"),
    ("filename", 5, "filename must be text"),
    ("attributes", [], "attributes must be a JSON object"),
    ("attributes", {"a": "x" * 20_000}, "the limit is"),
    ("owner_id", "../x", "owner_id is no id"),
    ("owner_id", None, "owner_id missing"),
    ("id", str(ANN), "ids are UUIDv7"),
    ("version", 2**62, "version is no time"),
    ("version", 0, "version is no time"),
    ("deleted", "no", "deleted is neither"),
]


def test_hostile_lines_are_named_and_nothing_of_them_is_stored(world: World, elsewhere: World) -> None:
    world.with_layer(lambda layer: put_some(layer, 1))
    export(world)
    path = world.folder / "media.jsonl"
    header, line, _ = path.read_text().splitlines()
    bad = [json.dumps({**json.loads(line), "id": str(uuid7()), name: value}) for name, value, _ in HOSTILE]
    path.write_text("\n".join([header, *bad, line, ""]))
    told = import_(elsewhere, path, "--on-error", "skip", exit_code=1)
    reasons = {one["number"]: one["reason"] for one in told["bad"]}
    for number, (name, value, said) in enumerate(HOSTILE, 2):
        assert said in reasons[number], (name, value)
        assert "passwd" not in reasons[number], "a line's own text is not repeated"
    assert (told["new"], told["bad_count"]) == (1, len(HOSTILE) + 1)
    assert "not whole" in reasons[len(HOSTILE) + 3]
    kept = catalogue_of(elsewhere)
    assert (len(kept["media"]), len(kept["object"])) == (1, 1)


def test_a_deployment_s_own_limits_hold_for_what_is_imported(world: World, elsewhere: World) -> None:
    async def put(layer: DataLayer) -> None:
        await layer.media.put(owner_id=ANN, data=b"x" * 101, content_type="image/png")
        await layer.media.put(owner_id=ANN, data=b"x" * 100, content_type="image/png")
        await layer.media.put(owner_id=ANN, data=b"x", content_type="text/html")

    world.with_layer(put)
    export(world)
    limits = '[limits]\nmedia_max_bytes = 100\nmedia_types = ["image/*"]\n'
    elsewhere.config.write_text(elsewhere.config.read_text() + limits)
    told = import_(elsewhere, world.folder / "media.jsonl", "--on-error", "skip")
    assert (told["new"], told["bad_count"]) == (1, 2)
    assert sorted(bad["reason"] for bad in told["bad"]) == [
        "media of more than 100 bytes are not allowed here",
        "media of type text/html are not allowed here",
    ]


def test_lines_of_an_application_s_own_are_no_media(world: World) -> None:
    path = world.folder / "own.jsonl"
    path.write_text('{"sha256": "x"}\n')
    ended = world.run("import", "media", path, exit_code=2)
    assert "is no export" in ended.stderr


def test_large_contents_pass_in_pieces(world: World, elsewhere: World) -> None:
    size = 48 << 20
    piece = random.Random(7).randbytes(1 << 20)
    path = world.folder / "media.jsonl"

    async def pieces() -> AsyncGenerator[bytes, None]:
        for at in range(size >> 20):
            yield bytes([at]) + piece[1:]

    async def put(layer: DataLayer) -> int:
        await layer.media.put(owner_id=ANN, data=pieces(), content_type="a/b")
        tracemalloc.start()
        await export_domain(layer, "media", path)
        return peak()

    async def taken(layer: DataLayer) -> int:
        tracemalloc.start()
        assert (await import_media(layer, path)).new == 1
        return peak()

    assert max(world.with_layer(put), elsewhere.with_layer(taken)) < 6_000_000


def peak() -> int:
    try:
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_every_kind_of_the_catalogue_that_people_see_is_exported() -> None:
    (shape,) = shapes_of("media").values()
    assert shape.kind is MEDIA
    assert {spec.name for spec in MEDIA.fields} == {spec.name for spec in shape.fields} | {"state", "upload"}
