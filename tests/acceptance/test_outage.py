"""The target dies and comes back while both sides are written: the application hears nothing of it."""

import asyncio
from pathlib import Path

import pytest

from tests.acceptance.ground import MIGRATE, eventually, ground
from tests.integration.live import traffic
from tests.servers import Servers

pytestmark = pytest.mark.servers


async def test_a_target_that_is_down_in_dual_costs_no_error_and_is_caught_up_with(
    servers: Servers, tmp_path: Path
) -> None:
    cassandra = servers.cassandra()
    async with ground(servers, tmp_path, messages=500) as at:
        fleet = at.fleet
        async with traffic(fleet.stage.settings, layers=2, writers=2, readers=2, pause_s=0.02) as live:
            await fleet.command(*MIGRATE, "--until", "backfilled")
            cassandra.kill9()
            try:
                before = live.writes
                told = (await fleet.command("migrations", "status")).told
                assert live.writes > before, "the application stood still"
                assert told["backlog"] > 0
                fleet.tell(f"Cassandra is down: backlog {told['backlog']}, {live.writes} writes, {live.reads} reads")
            finally:
                await asyncio.to_thread(cassandra.start)

            async def drained() -> int | None:
                left = (await fleet.command("migrations", "status")).told["backlog"]
                return left if left < told["backlog"] / 2 else None

            # Nobody migrates now: the open data layers bring over what the journal holds.
            left = await eventually(drained, seconds=15, what="the journal is drained")
            fleet.tell(f"Cassandra is back: backlog {left}")
            await fleet.command(*MIGRATE)
            assert live.errors == []
        await fleet.verdict()
        status = await fleet.command("migrations", "status")
        assert status.told["phase"] == "target"
        assert status.told["backlog"] == 0
