"""Life cycles of media between every ordered pair of stores, under traffic: over, back, over, complete, purged."""

import asyncio
import contextlib
import re
import sqlite3
from pathlib import Path
from uuid import uuid4

import pytest

from datalayer.layer import DataLayer
from datalayer.settings import parse_settings
from tests.integration.live import create_schemas
from tests.media_ground import busy, media_settings, mover, rows_and_bytes
from tests.servers import Servers


@pytest.fixture(autouse=True)
def _memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier test left in the memory of this process belongs to another deployment."""
    monkeypatch.setattr("datalayer.stores.memory.server.SERVERS", {})


def url_of(kind: str, servers: Servers, tmp_path: Path) -> str:
    name = f"media-{uuid4().hex[:12]}"
    return servers.s3().create_bucket(name) if kind == "s3" else f"file://{tmp_path}/{name}"


def rows_of(file: Path) -> int:
    """Rows of the catalogue in a shard's file."""
    with contextlib.closing(sqlite3.connect(file)) as link:
        tables = [name for (name,) in link.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        media = [name for name in tables if re.fullmatch(r"media(_\w+)?", name)]
        return sum(link.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in media)


async def seen(layer: DataLayer, backend: str) -> None:
    """Wait until a process stores new bytes there."""
    async with asyncio.timeout(10):
        while layer.router("media").routing.authority.backend != backend:
            await asyncio.sleep(0.01)


@pytest.mark.servers
@pytest.mark.life_cycle("media")
@pytest.mark.parametrize(("source", "target"), [("files", "s3"), ("s3", "s3"), ("s3", "files"), ("files", "files")])
async def test_media_go_over_and_back_and_over_under_traffic(
    servers: Servers, tmp_path: Path, source: str, target: str
) -> None:
    main, control = f"sqlite:///{tmp_path}/main.sqlite", f"sqlite:///{tmp_path}/control.sqlite"
    in_postgres = source != target
    if in_postgres:
        main = control = servers.postgres(1)[0].create_database(f"media_{uuid4().hex[:12]}")
    urls = {"a": url_of(source, servers, tmp_path), "b": url_of(target, servers, tmp_path)}
    settings = media_settings(urls, media="a", main=main, control=control)
    if in_postgres:
        await create_schemas(settings)
    async with busy(settings) as (board, layers), mover(settings) as coordinator:
        await coordinator.migrate("b")
        await seen(layers[0], "b")
        await coordinator.rollback()
        await coordinator.migrate("b")
        verdict = await coordinator.verify()
        assert verdict["clean"], verdict
        await coordinator.complete()
        assert await rows_and_bytes(coordinator, "b") == []
        await coordinator.purge()
    assert board.wrong == []
    assert board.errors == []
    assert min(board.puts, board.reads) > 20
    async with DataLayer.open(settings) as layer:
        await board.audit(layer)
    assert board.wrong == []


@pytest.mark.servers
async def test_media_move_while_their_catalogue_lies_on_shards(servers: Servers, tmp_path: Path) -> None:
    members = {name: f"sqlite:///{tmp_path}/{name}.sqlite" for name in ("s0", "s1")}
    document = {
        "backends": {
            "main": {"url": f"sqlite:///{tmp_path}/main.sqlite"},
            "shards": {"members": members, "slot_groups": 2},
            "a": {"url": url_of("files", servers, tmp_path)},
            "b": {"url": url_of("s3", servers, tmp_path)},
        },
        "routes": {"media": "a", "catalogue": "shards"} | dict.fromkeys(("users", "messages"), "main"),
        "control": {"url": f"sqlite:///{tmp_path}/control.sqlite"},
    }
    settings = parse_settings(document)
    async with busy(settings) as (board, layers), mover(settings) as coordinator:
        for number in range(32):  # owners on either shard
            data = b"of owner %d" % number
            item = await layers[0].media.put(owner_id=uuid4(), data=data, content_type="a/b")
            board.stored[item.id] = (item.sha256, len(data))
        await coordinator.migrate("b")
        await seen(layers[0], "b")
        verdict = await coordinator.verify()
        assert verdict["clean"], verdict
        await coordinator.complete()
        assert await rows_and_bytes(coordinator, "b") == []
        await coordinator.purge()
    assert board.wrong == []
    assert board.errors == []
    assert min(board.puts, board.reads) > 20
    held = [rows_of(Path(url.removeprefix("sqlite:///"))) for url in members.values()]
    assert all(held), f"each shard has a part of the catalogue: {held}"
