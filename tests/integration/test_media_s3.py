"""Media on a real S3 server: clients' own uploads and downloads by signed URLs, and a server that dies in a move."""

import asyncio
import gzip
import hashlib
import http.client
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest

from datalayer.errors import NotFound, PreconditionFailed
from datalayer.exporting import export_domain
from datalayer.importing import import_media
from datalayer.layer import DataLayer
from datalayer.migrators.options import Silent
from datalayer.settings import Settings
from datalayer.types import Media, PresignedUpload
from tests.media_ground import media_settings, mover, rows_and_bytes
from tests.servers import Servers

pytestmark = pytest.mark.servers
DATA = b"bytes of a client"
SHA256 = hashlib.sha256(DATA).hexdigest()
TYPE = "image/png"


@pytest.fixture(autouse=True)
def _memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier test left in the memory of this process belongs to another deployment."""
    monkeypatch.setattr("datalayer.stores.memory.server.SERVERS", {})


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def _sent(method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
    parts = urlsplit(url)
    link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        link.request(method, f"{parts.path}?{parts.query}", body=body or None, headers=headers)
        answer = link.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        link.close()


async def sent(
    method: str, url: str, headers: dict[str, str] | None = None, body: bytes = b"", **changed: str | None
) -> Answer:
    """What a client without any library of ours gets; ``changed``: other headers than it was told, None for none."""
    given = {name.lower(): value for name, value in (headers or {}).items()}
    for name, value in changed.items():
        del given[name.replace("_", "-")]
        if value is not None:
            given[name.replace("_", "-")] = value
    return await asyncio.to_thread(_sent, method, url, given, body)


@pytest.fixture
async def layer(servers: Servers, tmp_path: Path) -> AsyncIterator[DataLayer]:
    urls = {"a": servers.s3().create_bucket(f"urls-{uuid4().hex[:12]}")}
    control = f"sqlite:///{tmp_path}/control.sqlite"
    settings = media_settings(urls, media="a", main=f"sqlite:///{tmp_path}/main.sqlite", control=control)
    async with DataLayer.open(settings) as opened:
        yield opened


async def presigned(layer: DataLayer, owner: UUID, **options: object) -> PresignedUpload:
    chosen = {"size": len(DATA), "content_type": TYPE, "sha256": SHA256, "filename": "ä.png", **options}
    return await layer.media.presign_put(owner_id=owner, **chosen)  # type: ignore[arg-type]


async def seen(layer: DataLayer, owner: UUID) -> list[Media]:
    return list((await layer.media.list(owner)).items)


async def stored_names(layer: DataLayer) -> list[str]:
    return [info.name for info in await layer.router("media").route.authority.page("", 100)]


async def test_a_client_uploads_and_reads_by_urls_alone(layer: DataLayer) -> None:
    owner = uuid4()
    upload = await presigned(layer, owner)
    with pytest.raises(NotFound, match="has not come"):
        await layer.media.complete(upload.id)
    assert (await sent("PUT", upload.url, dict(upload.headers), DATA)).status == 200
    assert await seen(layer, owner) == []
    assert await layer.media.get(upload.id) is None
    item = await layer.media.complete(upload.id)
    assert await layer.media.complete(upload.id) == item
    assert (item.sha256, item.size, item.content_type, item.filename) == (SHA256, len(DATA), TYPE, "ä.png")
    assert await seen(layer, owner) == [item]
    assert await layer.media.read(item) == DATA
    url = await layer.media.presign_get(item)
    answer = await sent("GET", url)
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, DATA, TYPE)
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%A4.png"
    shown = await sent("GET", await layer.media.presign_get(item, inline=True))
    assert shown.headers["content-disposition"].startswith("inline")
    assert (await sent("GET", url.replace("attachment", "inline"))).status == 403
    assert (await sent("DELETE", url)).status == 403
    assert (await sent("PUT", url, {}, DATA)).status == 403
    assert await layer.media.read(item) == DATA


async def test_an_export_of_files_is_imported_into_s3_and_exported_equal(servers: Servers, tmp_path: Path) -> None:
    def place(name: str, url: str) -> Settings:
        folder = tmp_path / name
        folder.mkdir()
        stores = {"main": f"sqlite:///{folder}/main.sqlite", "control": f"sqlite:///{folder}/control.sqlite"}
        return media_settings({"a": url}, media="a", **stores)

    here = place("here", f"file://{tmp_path}/files")
    there = place("there", servers.s3().create_bucket(f"import-{uuid4().hex[:12]}"))
    large = random.Random(3).randbytes(12 << 20)
    owners = [uuid4(), uuid4()]
    async with DataLayer.open(here) as layer:
        for owner in owners:
            for data in (b"", DATA, large, owner.bytes):
                await layer.media.put(owner_id=owner, data=data, content_type=TYPE, filename="ä.png")
        told = await export_domain(layer, "media", tmp_path / "one.jsonl.gz")
    async with DataLayer.open(there) as layer:
        first = await import_media(layer, tmp_path / "one.jsonl.gz")
        assert (first.new, first.digest, first.bad_count) == (8, told.digest, 0)
        assert len(await stored_names(layer)) == 8
        assert (await import_media(layer, tmp_path / "one.jsonl.gz")).new == 0
        back = await export_domain(layer, "media", tmp_path / "two.jsonl.gz")
        items = [item for owner in owners for item in await seen(layer, owner)]
        contents = {hashlib.sha256(await layer.media.read(item)).hexdigest() for item in items}
    assert (back.digest, back.objects, back.objects_bytes) == (told.digest, told.objects, told.objects_bytes)
    lines = [
        sorted(gzip.decompress((tmp_path / f"{one}.jsonl.gz").read_bytes()).split(b"\n")) for one in ("one", "two")
    ]
    assert lines[0] == lines[1]
    folders = [tmp_path / f"{one}.jsonl.gz.objects" for one in ("one", "two")]
    files = [{str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in folders]
    assert files[0] == files[1]
    assert {name.rpartition("/")[2] for name in files[0]} == contents
    for name in files[0]:
        assert hashlib.sha256((folders[1] / name).read_bytes()).hexdigest() == name.rpartition("/")[2]


async def test_a_signed_upload_takes_this_object_alone_and_once(layer: DataLayer) -> None:
    owner = uuid4()
    upload = await presigned(layer, owner)
    headers, other = dict(upload.headers), await presigned(layer, owner)
    assert (await sent("PUT", upload.url, headers, DATA, content_type="text/html")).status == 403
    assert (await sent("PUT", upload.url, headers, DATA + b"!", content_length=str(len(DATA) + 1))).status == 403
    assert (await sent("PUT", upload.url, headers, DATA[1:], content_length=str(len(DATA) - 1))).status == 403
    assert (await sent("PUT", upload.url, headers, DATA, if_none_match=None)).status == 403
    assert (await sent("PUT", upload.url, headers, DATA[::-1])).status == 400
    assert (await sent("PUT", upload.url, headers, DATA, x_amz_checksum_sha256=None)).status == 403
    path = urlsplit(other.url).path
    assert (await sent("PUT", upload.url.replace(urlsplit(upload.url).path, path), headers, DATA)).status == 403
    assert (await sent("GET", upload.url)).status == 403
    assert await stored_names(layer) == []
    assert (await sent("PUT", upload.url, headers, DATA)).status == 200
    item = await layer.media.complete(upload.id)
    assert (await sent("PUT", upload.url, headers, DATA)).status == 412
    assert await layer.media.read(item) == DATA


async def test_urls_expire(layer: DataLayer) -> None:
    owner = uuid4()
    item = await layer.media.put(owner_id=owner, data=DATA, content_type=TYPE)
    upload = await presigned(layer, owner, expires_s=1)
    url = await layer.media.presign_get(item, expires_s=1)
    async with asyncio.timeout(10):
        while (await sent("GET", url)).status == 200:
            await asyncio.sleep(0.1)
    assert (await sent("GET", url)).status == 403
    assert (await sent("PUT", upload.url, dict(upload.headers), DATA)).status == 403
    with pytest.raises(NotFound, match="has not come"):
        await layer.media.complete(upload.id)


@pytest.mark.parametrize("what", ["hash", "size"])
async def test_other_bytes_than_announced_are_never_seen(layer: DataLayer, what: str) -> None:
    """The server is passed by: as one would behave that does not look at what is signed."""
    owner = uuid4()
    upload = await presigned(layer, owner)
    first = await layer._routers["catalogue"].read(  # the name that was signed
        (owner.bytes,), lambda store, deadline: store.get(owner, upload.id, deadline), layer.media._deadline(None)
    )
    store = layer.router("media").route.authority
    bad = DATA[::-1] if what == "hash" else DATA + b"!"

    async def body() -> AsyncIterator[bytes]:
        yield bad

    await store.put(f"{owner.hex}/{first.upload.hex}", body(), content_type=TYPE)
    refused = await asyncio.gather(*(layer.media.complete(upload.id) for _ in range(3)), return_exceptions=True)
    assert {type(error) for error in refused} <= {PreconditionFailed, NotFound}
    assert PreconditionFailed in {type(error) for error in refused}
    assert (await stored_names(layer), await seen(layer, owner)) == ([], [])
    # what comes by the same URL afterwards is entered by nobody: a slow refusal would delete it
    assert (await sent("PUT", upload.url, dict(upload.headers), DATA)).status == 200
    with pytest.raises(NotFound):
        await layer.media.complete(upload.id)
    assert await seen(layer, owner) == []


class Half(Silent):
    """Waits once half of the objects are copied."""

    def __init__(self) -> None:
        self.left = 30
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def reach(self, name: str) -> None:
        self.left -= name == "objects.copied"
        if self.left == 0:
            self.reached.set()
            await self.go_on.wait()


async def test_a_move_goes_on_when_its_server_was_killed(servers: Servers, tmp_path: Path) -> None:
    server = servers.fresh_s3("dies")
    urls = {"a": f"file://{tmp_path}/media", "b": server.create_bucket("target")}
    control = f"sqlite:///{tmp_path}/control.sqlite"
    settings = media_settings(urls, media="a", main=f"sqlite:///{tmp_path}/main.sqlite", control=control)
    owner, stored = uuid4(), {}
    half = Half()
    async with DataLayer.open(settings) as layer, mover(settings, failpoints=half) as coordinator:
        for number in range(60):
            data = bytes([number]) * (7 << 20 if number % 20 == 0 else 1000 * number + 1)
            stored[(await layer.media.put(owner_id=owner, data=data, content_type="a/b")).id] = data
        moving = asyncio.create_task(coordinator.migrate("b"))
        async with asyncio.timeout(30):
            await half.reached.wait()
        await asyncio.to_thread(server.kill9)
        half.go_on.set()
        while_dead = await layer.media.put(owner_id=owner, data=b"while it is dead", content_type="a/b")
        assert await layer.media.read(while_dead) == b"while it is dead"
        assert not moving.done()
        await asyncio.to_thread(server.start)
        await moving
        assert await rows_and_bytes(coordinator, "b") == []
        await coordinator.complete()
        for item, data in {**stored, while_dead.id: b"while it is dead"}.items():
            assert await layer.media.read(item) == data
    server.stop()
