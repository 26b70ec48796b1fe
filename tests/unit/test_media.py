"""Media in the embedded default: what is stored is seen whole or not at all, and what is refused is told."""

import asyncio
import io
import random
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.catalogue import UPLOAD_MAX_US
from datalayer.errors import (
    AlreadyExists,
    ConfigurationError,
    Corrupt,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from datalayer.ids import IdSource
from datalayer.layer import DataLayer
from datalayer.routing.mediasweep import KEPT_US
from datalayer.settings import SettingsError, parse_settings
from datalayer.sync import DataLayer as SyncDataLayer
from datalayer.types import MediaId
from tests.media_ground import Cut

uuid7 = IdSource(SystemClock()).uuid7


@pytest.fixture(autouse=True)
def _memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier test left in the memory of this process belongs to another deployment."""
    monkeypatch.setattr("datalayer.stores.memory.server.SERVERS", {})
    monkeypatch.setattr("datalayer.control.memory_server.SERVERS", {})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of the store alone."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture
async def layer(place: Path) -> AsyncIterator[DataLayer]:
    url = f"sqlite:///{place}/main.sqlite"
    settings = parse_settings(
        {
            "backends": {"main": {"url": url}},
            "limits": {"media_max_bytes": 2_000_000, "media_types": ["image/*", "a/b"]},
        }
    )
    async with DataLayer.open(settings) as opened:
        yield opened


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "media" / "media").rglob("*") if path.is_file())


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_bytes_files_paths_and_streams_are_stored_alike(layer: DataLayer, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(700_000)
    (tmp_path / "file").write_bytes(data)
    owner = uuid4()
    made = [
        await layer.media.put(owner_id=owner, data=given, content_type="image/png", filename="ä.png")
        for given in (data, bytearray(data), tmp_path / "file", io.BytesIO(data), pieces(data[:5], data[5:]))
    ]
    assert {(item.size, item.sha256) for item in made} == {(700_000, made[0].sha256)}
    assert [item.id for item in (await layer.media.list(owner)).items] == [item.id for item in reversed(made)]
    for item in made:
        assert await layer.media.read(item) == data
        assert await layer.media.read(item.id, start=699_990) == data[-10:]
        assert await layer.media.read(item, start=5, stop=10) == data[5:10]
    await layer.media.save(made[0], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    with pytest.raises(InvalidArgument, match="File exists"):
        await layer.media.save(made[0], tmp_path / "copy")


async def test_equal_bytes_of_an_owner_lie_in_the_store_once(layer: DataLayer, place: Path) -> None:
    first, second = uuid4(), uuid4()
    for owner in (first, first, second):
        await layer.media.put(owner_id=owner, data=b"same", content_type="a/b")
    assert len(files(place)) == 2


async def _into(met: list[bytes], chunks: AsyncIterator[bytes]) -> None:
    async for chunk in chunks:
        met += [chunk]


async def test_an_id_knows_its_owner_and_a_plain_one_is_passed_with_it(layer: DataLayer) -> None:
    owner = uuid4()
    item = await layer.media.put(owner_id=owner, data=b"x", content_type="a/b")
    assert item.owner_id == owner
    plain = UUID(str(item.id))
    assert plain == item.id
    assert await layer.media.get(plain, owner_id=owner) == item
    with pytest.raises(InvalidArgument, match="whose media it is"):
        await layer.media.get(plain)
    assert await layer.media.get(MediaId(uuid4(), plain)) is None


async def test_an_upload_that_is_cut_off_is_never_seen(layer: DataLayer, place: Path) -> None:
    owner = uuid4()

    async def cut() -> AsyncIterator[bytes]:
        yield b"half"
        assert (await layer.media.list(owner)).items == ()
        raise Cut

    with pytest.raises(Cut):
        await layer.media.put(owner_id=owner, data=cut(), content_type="a/b")
    assert (await layer.media.list(owner)).items == ()
    assert files(place) == []


async def test_a_retry_with_its_id_is_the_same_write(layer: DataLayer, place: Path) -> None:
    owner, item = uuid4(), uuid7()
    first = await layer.media.put(owner_id=owner, data=b"x", content_type="a/b", id=item)
    assert await layer.media.put(owner_id=owner, data=b"x", content_type="a/b", id=item) == first
    with pytest.raises(AlreadyExists):
        await layer.media.put(owner_id=owner, data=b"other", content_type="a/b", id=item)
    await layer.sweeper.sweep(now_us=layer.clock.now_us() + 2 * KEPT_US)
    assert len(files(place)) == 1
    assert await layer.media.read(first) == b"x"


async def test_what_nobody_refers_to_is_swept_after_its_delay(layer: DataLayer, place: Path) -> None:
    owner = uuid4()
    one, two = [await layer.media.put(owner_id=owner, data=b"x", content_type="a/b") for _ in range(2)]
    later = layer.clock.now_us() + UPLOAD_MAX_US + 60_000_000
    await layer.media.delete(one)
    assert (await layer.sweeper.sweep(now_us=later)).deleted == 0
    assert await layer.media.read(two) == b"x"
    await layer.media.delete(two)
    await layer.media.delete(two)
    assert (await layer.sweeper.sweep()).deleted == 0
    assert await layer.media.get(two) is None
    with pytest.raises(NotFound):
        await layer.media.read(two)


async def test_bytes_that_no_row_knows_are_swept_once_no_upload_can_bring_one(layer: DataLayer, place: Path) -> None:
    kept = await layer.media.put(owner_id=uuid4(), data=b"kept", content_type="a/b")
    store = layer.router("media").route.authority
    await store.put(f"{uuid4().hex}/{uuid7().hex}", pieces(b"lost"), content_type="a/b")
    assert (await layer.sweeper.sweep()).orphans == 0
    swept = await layer.sweeper.sweep(now_us=layer.clock.now_us() + KEPT_US + 60_000_000)
    assert (swept.orphans, swept.deleted) == (1, 0)
    assert await layer.media.read(kept) == b"kept"


async def test_what_was_damaged_is_no_item_any_more(layer: DataLayer, place: Path) -> None:
    data = random.Random(2).randbytes(600_000)
    item = await layer.media.put(owner_id=uuid4(), data=data, content_type="a/b")
    (file,) = (path for path in (place / "media" / "media").rglob("*") if path.is_file())
    file.chmod(0o600)
    for damaged in (data[:-1] + b"?", data[:-1], data + b"x"):
        file.write_bytes(damaged)
        met: list[bytes] = []
        with pytest.raises(Corrupt):
            await _into(met, layer.media.open(item))
        assert len(b"".join(met)) < len(data), "the last piece comes only when the hash is right"
    file.unlink()
    with pytest.raises(NotFound):
        await layer.media.read(item)


async def test_what_is_not_allowed_is_refused_before_anything_is_stored(layer: DataLayer, place: Path) -> None:
    owner = uuid4()
    for content_type, said in (
        ("text/plain", "not allowed"),
        ("nonsense", "no media type"),
        ("image/", "no media type"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            await layer.media.put(owner_id=owner, data=b"x", content_type=content_type)
    with pytest.raises(InvalidArgument, match="more than 2000000 bytes"):
        await layer.media.put(owner_id=owner, data=b"x" * 2_000_001, content_type="a/b")
    with pytest.raises(InvalidArgument, match="more than 2000000 bytes"):
        await layer.media.put(owner_id=owner, data=pieces(b"x" * 2_000_000, b"x"), content_type="a/b")
    for wrong in ("text", 5, None):
        with pytest.raises(InvalidArgument, match="data must be bytes"):
            await layer.media.put(owner_id=owner, data=wrong, content_type="a/b")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="must give bytes"):
        await layer.media.put(owner_id=owner, data=io.StringIO("x"), content_type="a/b")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="no range"):
        await layer.media.read(uuid7(), owner_id=owner, start=5, stop=4)
    assert files(place) == []


async def test_a_timeout_stores_nothing(layer: DataLayer, place: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded):
        await layer.media.put(owner_id=uuid4(), data=endless(), content_type="a/b", timeout=0.05)
    assert files(place) == []


async def test_what_is_said_of_an_item_changes_and_its_bytes_do_not(layer: DataLayer) -> None:
    item = await layer.media.put(owner_id=uuid4(), data=b"x", content_type="a/b", attributes={"a": 1})
    changed = await layer.media.update(item, filename="new.png", expected_version=item.version)
    assert (changed.filename, changed.attributes, changed.sha256) == ("new.png", {"a": 1}, item.sha256)
    await layer.media.delete(item)
    with pytest.raises(NotFound):
        await layer.media.update(item, filename="late")


async def test_lists_go_on_by_cursor(layer: DataLayer) -> None:
    owner = uuid4()
    made = [await layer.media.put(owner_id=owner, data=b"%d" % at, content_type="a/b") for at in range(7)]
    met: list[UUID] = []
    cursor: str | None = None
    while True:
        page = await layer.media.list(owner, limit=3, cursor=cursor)
        met += [item.id for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert met == [item.id for item in reversed(made)]


async def test_a_folder_has_no_urls(layer: DataLayer) -> None:
    item = await layer.media.put(owner_id=uuid4(), data=b"x", content_type="a/b")
    with pytest.raises(PreconditionFailed, match="no URLs of its own"):
        await layer.media.presign_get(item.id)
    with pytest.raises(PreconditionFailed, match="no URLs of its own"):
        await layer.media.presign_put(owner_id=uuid4(), size=3, content_type="a/b")
    assert await layer.media.url(item) is None


async def test_a_full_disk_is_told_and_nothing_is_seen(layer: DataLayer, place: Path) -> None:
    """No file may grow beyond 1 MB: what a full disk does to an upload, without one."""
    owner, data = uuid4(), random.Random(1).randbytes(1_900_000)
    item = uuid7()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(Unavailable, match="cannot be stored: the disk is full") as told:
            await layer.media.put(owner_id=owner, data=data, content_type="a/b", id=item)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.value.hint == "make room, then try again"
    assert files(place) == []
    assert (await layer.media.list(owner)).items == ()
    stored = await layer.media.put(owner_id=owner, data=data, content_type="a/b", id=item)
    assert await layer.media.read(stored) == data


async def test_a_cdn_is_built_upon(place: Path) -> None:
    backend = {"url": f"file://{place}/shown", "cdn_url": "https://cdn.example.org/m/"}
    document = {"backends": {"main": {"url": "memory://"}, "shown": backend}, "routes": {"media": "shown"}}
    async with DataLayer.open(parse_settings(document)) as layer:
        item = await layer.media.put(owner_id=uuid4(), data=b"x", content_type="a/b")
        url = await layer.media.url(item.id)
        assert url is not None
        path = url.removeprefix("https://cdn.example.org/m/")
        assert (place / "shown" / path).read_bytes() == b"x"


async def test_media_without_a_place_say_what_to_configure(place: Path) -> None:
    backends = {"one": {"url": f"sqlite:///{place}/one.sqlite"}, "two": {"url": "memory://"}}
    document = {
        "backends": backends,
        "routes": dict.fromkeys(("users", "messages", "search"), "one"),
        "control": {"url": f"sqlite:///{place}/control.sqlite"},
    }
    async with DataLayer.open(parse_settings(document)) as layer:
        with pytest.raises(ConfigurationError, match="media"):
            await layer.media.put(owner_id=uuid4(), data=b"x", content_type="a/b")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"limits": {"media_types": ["png"]}}, "has a content type that is none"),
        ({"limits": {"media_types": "image/png text"}}, "has a content type that is none"),
        ({"limits": {"media_max_bytes": 0}}, "must be a whole number"),
        ({"backends": {"main": {"url": "memory://", "cdn_url": "https://x"}}}, "is known to s3 and file alone"),
        ({"backends": {"main": {"url": "file:///srv/media", "cdn_url": "ftp://x"}}}, "is no URL"),
    ],
)
def test_wrong_settings_are_told(document: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_settings({"backends": {"main": {"url": "memory://"}}, **document})


def test_without_await(place: Path, tmp_path: Path) -> None:
    settings = parse_settings({"backends": {"main": {"url": f"sqlite:///{place}/main.sqlite"}}})
    with SyncDataLayer.open(settings) as layer:
        owner = uuid4()
        item = layer.media.put(owner_id=owner, data=io.BytesIO(b"hello"), content_type="a/b")
        assert layer.media.read(item.id) == b"hello"
        layer.media.save(item, tmp_path / "saved")
        assert (tmp_path / "saved").read_bytes() == b"hello"
        assert [one.id for one in layer.media.list(owner).items] == [item.id]
        assert not hasattr(layer.media, "open"), "pieces over time are for asynchronous callers"
