"""The presence job, small: a primary of the cluster dies under beating users, and nobody is called offline."""

import pytest

from tests.acceptance.presence_job import job
from tests.servers import Servers

pytestmark = pytest.mark.servers


async def test_nobody_who_beats_is_called_offline_when_a_primary_dies(servers: Servers) -> None:
    found = await job(servers, users=600, every_s=3.0, seconds=3.0)
    assert found["called_offline_who_beat"] == 0
    assert found["answers"]["online"] > 600
    assert found["first_beat_after_kill_s"] < 15
