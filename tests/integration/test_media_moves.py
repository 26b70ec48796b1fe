"""Life cycles of media between every ordered pair of stores, under traffic: over, back, over, complete, purged."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from datalayer.layer import DataLayer
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


async def seen(layer: DataLayer, backend: str) -> None:
    """Wait until a process stores new bytes there."""
    async with asyncio.timeout(10):
        while layer.router("media").routing.authority.backend != backend:
            await asyncio.sleep(0.01)


@pytest.mark.servers
@pytest.mark.life_cycle("media")
@pytest.mark.parametrize("catalogue", ["sqlite", "postgres"])
@pytest.mark.parametrize(("source", "target"), [("files", "s3"), ("s3", "s3"), ("s3", "files"), ("files", "files")])
async def test_media_go_over_and_back_and_over_under_traffic(
    servers: Servers, tmp_path: Path, source: str, target: str, catalogue: str
) -> None:
    main, control = f"sqlite:///{tmp_path}/main.sqlite", f"sqlite:///{tmp_path}/control.sqlite"
    if catalogue == "postgres":
        main = control = servers.postgres(1)[0].create_database(f"media_{uuid4().hex[:12]}")
    urls = {"a": url_of(source, servers, tmp_path), "b": url_of(target, servers, tmp_path)}
    settings = media_settings(urls, media="a", main=main, control=control)
    if catalogue == "postgres":
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
