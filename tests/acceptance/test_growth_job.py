"""The scenario over all sizes at a small size; many minutes on a busy machine, so it is `make deep`'s."""

from pathlib import Path

import pytest

from tests.acceptance.growth_job import Job, play
from tests.acceptance.side_traffic import KINDS
from tests.servers import Servers

pytestmark = [pytest.mark.servers, pytest.mark.deep]


async def test_a_service_grows_through_every_size_and_one_back(servers: Servers, tmp_path: Path) -> None:
    job = Job(messages=300, users=100, sample=50, rest_s=1.0, groups=4, few=True)
    judged = await play(servers, tmp_path, job)
    assert [row for row in judged if not row.clean] == []
    served = {"messages", "users", "search index", *(kind.domain for kind in KINDS)}
    assert {row.what for row in judged} >= served
    assert [row.what for row in judged if row.what in served and not row.operations] == []
