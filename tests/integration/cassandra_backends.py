"""An opened Cassandra backend in a keyspace of its own."""

import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.messages import Append, appended, to_record, tombstone
from datalayer.domains.record import FINAL_LEAD, Record
from datalayer.ids import uuid7_at
from datalayer.settings import BackendUrl
from datalayer.stores.cassandra.backend import CassandraBackend, create_backend
from datalayer.stores.cassandra.messages import CassandraMessages

CLOCK = SystemClock()
START_US = 1_600_000_000_000_000


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[CassandraBackend]:
    """A backend with its schema, closed at the end."""
    backend = create_backend("cassandra", BackendUrl.parse(url), pool_max=20, clock=CLOCK)
    await backend.open()
    try:
        await backend.ensure_schema(create=True)
        yield backend
    finally:
        await backend.close()


async def new_place(backend: CassandraBackend, attempt: int) -> CassandraMessages:
    """An empty place."""
    store = backend.store("messages", attempt)
    await store.create()
    return store


def within(seconds: float) -> Deadline:
    return Deadline(CLOCK, seconds)


def message(conversation: UUID, at_us: int, rng: random.Random, *, body: str = "hello") -> Record:
    """The record of a first append."""
    return to_record(appended(Append(conversation, uuid7_at(at_us, rng.getrandbits(62)), conversation, body)))


def deleted(record: Record) -> Record:
    """What a delete makes of it."""
    return tombstone(record.key, record.version + FINAL_LEAD)


def conversation_of(rng: random.Random) -> UUID:
    return uuid.UUID(int=rng.getrandbits(128), version=4)
