"""What the tests of the Postgres store share: a database, a store in it, and programs that do not know the library."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID

import psycopg

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.messages import Append
from datalayer.domains.record import Record
from datalayer.ids import IdSource
from datalayer.settings import BackendUrl
from datalayer.stores.base import Token
from datalayer.stores.postgres.backend import PostgresBackend, create_backend
from datalayer.stores.postgres.guard import PostgresGuard
from datalayer.stores.postgres.partitions import Unit
from datalayer.stores.postgres.stores import PostgresMessages
from tests.servers import Servers

CLOCK = SystemClock()
IDS = IdSource(CLOCK)
ATTEMPT = 7
TOKEN = Token("m1", "messages", ATTEMPT, 5)
Program = psycopg.AsyncConnection[tuple[Any, ...]]
JOURNAL = f"datalayer_journal_messages_{ATTEMPT}"
TOMBS = f"datalayer_tombs_messages_{ATTEMPT}"
INSERT = "INSERT INTO messages (conversation_id, id, sender_id, body) VALUES (%s, %s, %s, %s)"
FENCED = "DLF01"


def soon(timeout_s: float = 20.0) -> Deadline:
    return Deadline(CLOCK, timeout_s)


@contextmanager
def database(servers: Servers, name: str) -> Iterator[str]:
    """An empty database on the run's cluster, dropped at the end."""
    cluster = servers.postgres(1)[0]
    full = f"{name}_{uuid.uuid4().hex[:8]}"
    yield cluster.create_database(full)
    with psycopg.connect(cluster.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {full} WITH (FORCE)".encode())


@asynccontextmanager
async def program(url: str, name: str = "psql", *, isolation: str | None = None) -> AsyncIterator[Program]:
    """A plain connection; with ``isolation`` its transactions are of that level, else it is in autocommit."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=isolation is None, application_name=name) as found:
        if isolation is not None:
            await found.set_isolation_level(psycopg.IsolationLevel[isolation])
        yield found


class Place:
    """A messages table, its guard, and what there is to ask of them."""

    def __init__(self, url: str, backend: PostgresBackend) -> None:
        self.url = url
        self.backend = backend
        self.messages: PostgresMessages = backend.store("messages", 0)
        self.conversation = IDS.uuid7()

    @property
    def guard(self) -> PostgresGuard:
        """A guard object of its own, as another process would have."""
        found = self.messages.guard(ATTEMPT)
        assert isinstance(found, PostgresGuard)
        return found

    def row(self, message_id: UUID | None = None, body: str = "hello") -> tuple[UUID, UUID, UUID, str]:
        """The parameters of INSERT."""
        return (self.conversation, message_id or IDS.uuid7(), UUID(int=1), body)

    async def append(self) -> Record:
        """A write by the library."""
        mutation = Append(self.conversation, IDS.uuid7(), UUID(int=1), "hi")
        executed = await self.messages.execute(mutation, soon())
        return executed.records[0]

    async def journalled(self) -> dict[UUID, int]:
        """Versions in the journal, by message id."""
        rows = await self.backend.db.fetch(f"SELECT key, version FROM {JOURNAL}")
        return {UUID(bytes=bytes(key)[16:]): version for key, version in rows}

    async def stored(self) -> dict[UUID, int]:
        """Versions in the table, by message id."""
        return dict(await self.backend.db.fetch("SELECT id, version FROM messages"))

    async def settle_all(self) -> None:
        """What a replayer does once it has applied everything."""
        guard = self.guard
        while found := await guard.journal.pending(1000):
            await guard.journal.settle(found)


@asynccontextmanager
async def place(url: str, partition_messages: Unit | None = None) -> AsyncIterator[Place]:
    """A schema made anew: without a guard, without a row."""
    backend = create_backend(
        "main", BackendUrl.parse(url), pool_max=8, clock=CLOCK, partition_messages=partition_messages
    )
    try:
        async with program(url, "datalayer/test") as admin:
            await admin.execute("DROP SCHEMA public CASCADE")
            await admin.execute("CREATE SCHEMA public")
        await backend.open()
        await backend.ensure_schema(create=True)
        yield Place(url, backend)
    finally:
        await backend.close()


async def waiting(url: str, pid: int) -> None:
    """Return as soon as this session waits for a lock."""
    async with program(url, "datalayer/test") as admin:
        while True:
            cursor = await admin.execute("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", (pid,))
            if await cursor.fetchone() == ("Lock",):
                return
            await asyncio.sleep(0.005)
