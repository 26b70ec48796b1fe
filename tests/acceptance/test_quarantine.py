"""Rows that the target cannot take stop the cut-over by name, and nothing else."""

from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from datalayer.layer import DataLayer
from tests.acceptance.ground import MIGRATE, ground
from tests.servers import Servers

pytestmark = pytest.mark.servers
INSERT = "INSERT INTO messages (conversation_id, id, sender_id, body) VALUES (%s, %s, %s, repeat('x', %s))"
TOO_LONG = 7 * 1024 * 1024 + 1
"""One byte more than the Cassandra store takes; Postgres takes it."""


async def test_rows_the_target_refuses_are_named_stop_the_cut_over_and_go_once_they_are_mended(
    servers: Servers, tmp_path: Path
) -> None:
    room, copied, written = uuid4(), uuid4(), uuid4()
    keys = {(room.bytes + id_.bytes).hex() for id_ in (copied, written)}
    async with (
        ground(servers, tmp_path, messages=300) as at,
        await psycopg.AsyncConnection.connect(at.postgres, application_name="psql", autocommit=True) as psql,
    ):
        fleet = at.fleet
        await psql.execute(INSERT, (room, copied, room, TOO_LONG))
        await fleet.command(*MIGRATE, "--until", "dual", "--foreign-writers", "refuse")
        await psql.execute(INSERT, (room, written, room, TOO_LONG))

        ended = await fleet.command(*MIGRATE, code=3)
        assert any(key in ended.told["error"]["message"] for key in keys)
        status = (await fleet.command("migrations", "status")).told
        assert {row["key"] for row in status["quarantined"]} == keys
        assert status["phase"] == "dual"
        await fleet.command("migrations", "repair", code=4)  # a repair without a remedy mends nothing

        await psql.execute("UPDATE messages SET body = 'mended' WHERE conversation_id = %s", (room,))
        repaired = await fleet.command("migrations", "repair")
        assert repaired.told["quarantined"] == 0
        await fleet.command(*MIGRATE)
        async with DataLayer.open(fleet.stage.settings) as layer:
            assert layer.router("messages").routing.authority.backend == "cassandra"
            found = await layer.messages.get_many(room, [copied, written])
        assert {id_: message.body for id_, message in found.items()} == {copied: "mended", written: "mended"}
