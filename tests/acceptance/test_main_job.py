"""The main job on real servers, at the size of a test run, and the migrator killed at thirty points of the plan."""

from pathlib import Path
from uuid import uuid4

import pytest

from datalayer.cli.demo.stage import Role
from tests.acceptance.fleet import Fleet, configuration
from tests.acceptance.kill_points import BACK, COMPLETE, OVER, kill_along
from tests.acceptance.main_job import play
from tests.servers import Servers

pytestmark = pytest.mark.servers


async def test_messages_move_over_and_back_while_migrator_writer_and_server_are_killed(
    servers: Servers, tmp_path: Path
) -> None:
    await play(servers, tmp_path / "fleet", None, rest_s=1.0, messages=1500, outage_s=3.0, home=False)


async def test_thirty_deaths_of_the_migrator_lose_nothing(servers: Servers, tmp_path: Path) -> None:
    name = f"kills_{uuid4().hex[:8]}"
    urls = {
        "main": servers.postgres(1)[0].create_database(name),
        "cassandra": servers.cassandra().create_keyspace(name),
    }
    config = configuration(urls, {"users": "main", "messages": "main"}, urls["main"])
    over = list(dict.fromkeys(point for point in OVER if point.endswith((".after", ".page"))))
    async with Fleet.open(tmp_path / "fleet", config, messages=1000) as fleet:
        await fleet.command("schema", "upgrade")
        await fleet.stage.preload()
        await fleet.start(
            [Role("writer-1", "writer", 20), Role("editor-1", "editor", 20), Role("reader-1", "reader", 20)]
        )
        migrate = ("migrate", "messages", "--to", "cassandra")
        died = await kill_along(fleet, migrate, over)
        await fleet.command(*migrate, "--yes")
        died += await kill_along(fleet, ("migrations", "rollback"), [*BACK[-12::2], "fence.after"])
        await fleet.command("migrations", "rollback", "--yes")
        await fleet.command(*migrate, "--yes")
        # after the very last action there is nothing left to complete
        left = [p for p in COMPLETE if p.endswith(".after")][:-1]
        died += await kill_along(fleet, ("migrations", "complete"), left)
        await fleet.command("migrations", "complete", "--yes")
        found = await fleet.judge()
    fleet.tell(f"{len(died)} deaths: {' '.join(died)}")
    assert found.clean, found.violations[:5]
    assert len(died) >= 30
