"""The job of media, small: killed at every point, nothing lost, nothing wrong, nothing half seen."""

from pathlib import Path

import pytest

from tests.acceptance.media_job import KILLS, MEMORY_KB, job
from tests.servers import Servers

SMALL = tuple((point, max(1, count // 10)) for point, count in KILLS)


@pytest.mark.servers
async def test_media_move_to_s3_under_traffic_and_kills(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datalayer.stores.memory.server.SERVERS", {})
    seen = await job(servers, tmp_path, objects=60, largest=6 << 20, kills=SMALL)
    assert seen["wrong"] == []
    assert seen["errors"] == []
    assert (seen["killed"], seen["differences"]) == (len(SMALL), 0)
    assert seen["verified"] >= 60
    assert seen["memory_kb"] <= MEMORY_KB
