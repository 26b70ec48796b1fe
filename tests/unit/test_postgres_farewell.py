"""A server's farewell that arrives in one packet with the last answer: the connection is not used again."""

import asyncio
import struct

import pytest

from datalayer.settings import BackendUrl
from datalayer.stores.postgres.database import PostgresDatabase


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


READY = message(b"Z", b"I")
PARAMETERS = (b"client_encoding\0UTF8\0", b"in_hot_standby\0off\0", b"default_transaction_read_only\0off\0")
GREETING = message(b"R", struct.pack("!i", 0)) + b"".join(message(b"S", one) for one in PARAMETERS) + READY
ANSWER = (
    message(b"1")
    + message(b"2")
    + message(b"T", struct.pack("!h", 1) + b"n\0" + struct.pack("!ihihih", 0, 0, 23, 4, -1, 1))
    + message(b"D", struct.pack("!hii", 1, 4, 7))
    + message(b"C", b"SELECT 1\0")
    + READY
)
WARNING = message(b"N", b"SWARNING\0VWARNING\0C01000\0Mthere is no transaction in progress\0\0")
FAREWELL = message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0")


class Server:
    """Speaks enough of the protocol (version 3) to answer 7 to every statement, and keeps every connection open."""

    def __init__(self, after_answer: bytes) -> None:
        self.connections = 0
        self._after_answer = after_answer
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            while True:
                (size, code) = struct.unpack("!ii", await reader.readexactly(8))
                await reader.readexactly(size - 8)
                if code >> 16 == 3:
                    break
                writer.write(b"N")  # no TLS, no GSSAPI
            writer.write(GREETING)
            while True:
                kind = await reader.readexactly(1)
                (size,) = struct.unpack("!i", await reader.readexactly(4))
                await reader.readexactly(size - 4)
                if kind == b"S":
                    writer.write(ANSWER + self._after_answer)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@pytest.mark.parametrize(("after_answer", "connections"), [(b"", 1), (WARNING, 1), (FAREWELL, 3)])
async def test_a_connection_that_said_farewell_with_its_answer_is_not_used_again(
    after_answer: bytes, connections: int
) -> None:
    server = Server(after_answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    database = PostgresDatabase(BackendUrl.parse(f"postgresql://u@127.0.0.1:{port}/d"), name="main")
    for _ in range(3):
        assert await database.fetch("SELECT %s", (7,)) == [(7,)]
    assert server.connections == connections
    await database.close()
    server.close()
    listener.close()


async def test_a_connection_given_up_while_it_is_being_made_is_closed_at_once() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        asked.set()
        while await reader.read(1024):
            pass
        left.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    database = PostgresDatabase(BackendUrl.parse(f"postgresql://u@127.0.0.1:{port}/d"), name="main")
    call = asyncio.create_task(database.fetch("SELECT 1"))
    await asyncio.wait_for(asked.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError) as kept:
        await call
    await asyncio.wait_for(left.wait(), 10)
    assert kept.value is not None  # whoever keeps the error keeps no socket
    await database.close()
    server.close()
    await server.wait_closed()
