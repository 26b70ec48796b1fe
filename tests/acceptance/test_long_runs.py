"""What `make deep` adds on real servers: the main job with every way and kill, and twenty judged holds."""

import json
from pathlib import Path

import pytest

from tests.acceptance import holds, main_job
from tests.servers import Servers

pytestmark = [pytest.mark.servers, pytest.mark.deep]
MAX_HOLD_MS = 250.0


async def test_the_main_job_over_back_complete_and_home_again(
    servers: Servers, tmp_path: Path, chat_data: Path | None
) -> None:
    await main_job.play(servers, tmp_path / "fleet", chat_data, rest_s=5.0, messages=5000)


async def test_twenty_holds_are_short(servers: Servers, tmp_path: Path) -> None:
    told = await holds.play(servers, tmp_path, flips=20, messages=2000, rest_s=2.0)
    print(json.dumps(told))
    assert told["clean"]
    assert told["errors"] == 0
    assert told["flips"] >= 20
    assert told["max_ms"] <= MAX_HOLD_MS
