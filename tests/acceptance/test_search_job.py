"""Search kept in step on real servers, at the size of a test run."""

from pathlib import Path

import pytest

from tests.acceptance.search_job import Job, play
from tests.servers import Servers

pytestmark = pytest.mark.servers


async def test_search_is_in_step_whatever_is_killed_and_a_rebuild_hides_nothing(
    servers: Servers, tmp_path: Path
) -> None:
    await play(servers, tmp_path, Job(operations=1600, rate=30.0, seconds=5.0, outage_s=2.0, p99_s=10.0))
