"""A program that does not use the library writes the table while it moves: plain SQL, no version, a hard DELETE."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from datalayer.cli.demo.stage import Role
from datalayer.layer import DataLayer
from datalayer.stores.postgres.faults import FENCED
from tests.acceptance.ground import MIGRATE, ground
from tests.servers import Servers

pytestmark = pytest.mark.servers
INSERT = "INSERT INTO messages (conversation_id, id, sender_id, body) VALUES (%s, %s, %s, %s)"
PROGRAM = "psql"


@dataclass
class Program:
    """An old program with a connection of its own; ``left`` is what it left behind, None for a row it deleted."""

    connection: psycopg.AsyncConnection
    room: UUID = field(default_factory=uuid4)
    left: dict[UUID, str | None] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Program"]:
        async with await psycopg.AsyncConnection.connect(url, application_name=PROGRAM, autocommit=True) as connection:
            yield cls(connection)

    async def insert(self, body: str) -> UUID:
        id_ = uuid4()
        await self.connection.execute(INSERT, (self.room, id_, self.room, body))
        self.left[id_] = body
        return id_

    async def update(self, id_: UUID, body: str) -> None:
        await self.connection.execute(
            "UPDATE messages SET body = %s WHERE conversation_id = %s AND id = %s", (body, self.room, id_)
        )
        self.left[id_] = body

    async def delete(self, id_: UUID) -> None:
        await self.connection.execute("DELETE FROM messages WHERE conversation_id = %s AND id = %s", (self.room, id_))
        self.left[id_] = None

    async def change_all_kinds(self, number: int) -> None:
        """An insert; an update and a hard delete of rows it made before, with another id in the deleted one's place."""
        living = [id_ for id_, body in self.left.items() if body is not None]
        await self.insert(f"new {number}")
        await self.update(living[number % len(living)], f"changed {number}")
        await self.delete(living[(number * 7 + 3) % len(living)])
        await self.insert(f"instead {number}")

    async def differences(self, layer: DataLayer) -> list[str]:
        """Where the library shows something else than this program left."""
        found = {id_: await layer.messages.get(self.room, id_) for id_ in self.left}
        shown = {id_: None if message is None else message.body for id_, message in found.items()}
        return [f"{id_}: {shown[id_]!r} instead of {body!r}" for id_, body in self.left.items() if shown[id_] != body]


async def test_rows_of_a_foreign_program_move_as_it_left_them_and_its_writes_after_the_cut_over_are_refused(
    servers: Servers, tmp_path: Path
) -> None:
    async with ground(servers, tmp_path, messages=800) as at, Program.open(at.postgres) as program:
        fleet = at.fleet
        for number in range(40):
            await program.insert(f"before {number}")
        await fleet.stage.start([Role("writer-1", "writer", 20), Role("reader-1", "reader", 20)])
        await fleet.command(*MIGRATE, "--until", "dual")
        # Slow enough for the program to write before, behind and ahead of the scan.
        copying = asyncio.create_task(fleet.command(*MIGRATE, "--until", "verified", "--rate", "400"))
        changes = 0
        while not copying.done():
            await program.change_all_kinds(changes)
            changes += 1
            await asyncio.sleep(0.05)
        await copying
        assert changes >= 10

        ended = await fleet.command(*MIGRATE, code=3)
        assert PROGRAM in ended.told["error"]["message"]
        status = await fleet.command("migrations", "status")
        assert status.told["phase"] == "dual"
        assert status.told["foreign_writers"] == [PROGRAM]
        await program.change_all_kinds(changes)  # refused was the cut-over, not the program

        await fleet.command(*MIGRATE, "--foreign-writers", "refuse")
        with pytest.raises(psycopg.Error) as refused:
            await program.connection.execute(INSERT, (program.room, uuid4(), program.room, "too late"))
        assert refused.value.sqlstate == FENCED
        assert "moving to another store" in str(refused.value)
        await fleet.verdict()
        async with DataLayer.open(fleet.stage.config) as layer:
            assert layer.router("messages").routing.authority.backend == "cassandra"
            assert await program.differences(layer) == []
            # What the comparison would say of a row that did not arrive and of one that came back:
            program.left |= {uuid4(): "lost", next(id_ for id_, body in program.left.items() if body): None}
            assert len(await program.differences(layer)) == 2
        found = await fleet.judge()
    assert found.clean, found.violations[:5]
