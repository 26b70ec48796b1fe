"""A foreign program of the in-memory product."""

from datalayer.domains.record import Key, Record
from datalayer.stores.memory import MemoryServer
from datalayer.stores.memory.store import MemoryPort


class Program:
    """A program that writes the server's tables without a client."""

    name = "psql"

    def __init__(self, server: MemoryServer) -> None:
        self._server = server

    async def upsert(self, store: MemoryPort, record: Record) -> None:
        self._server.foreign_write(store.place, record, program=self.name)

    async def delete(self, store: MemoryPort, key: Key) -> None:
        self._server.foreign_delete(store.place, key, program=self.name)
