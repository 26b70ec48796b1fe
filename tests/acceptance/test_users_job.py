"""Users from one Postgres to shards and back on real servers, at a small size: four minutes on a busy machine, so it is `make deep`'s."""

from pathlib import Path

import pytest

from tests.acceptance.users_job import Job, play
from tests.servers import Servers

pytestmark = [pytest.mark.servers, pytest.mark.deep]


async def test_users_move_to_shards_and_back_while_mover_worker_and_shard_are_killed(
    servers: Servers, tmp_path: Path
) -> None:
    job = Job(
        users=1500,
        sample=300,
        rest_s=1.0,
        outage_s=3.0,
        rates=(),
        max_hold_ms=4000,
        kill_every=2,
        sweep_s=0.0,
        groups=8,
        off_plan=0.4,
        pages=True,
    )
    await play(servers, tmp_path / "fleet", job)
