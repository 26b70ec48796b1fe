"""A TCP proxy to put network faults between a client and a server.

It runs its own event loop in its own thread, so tests of any kind steer it with plain calls, each of which has
taken effect when it returns. Bytes that were on their way when the proxy began to hang are kept and delivered
in order afterwards, as TCP does when a partition heals; a cut loses them.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from tests.servers.ports import LOOPBACK, lease_port

_T = TypeVar("_T")
_CHUNK_BYTES = 64 * 1024
_CHUNKS_IN_FLIGHT = 64
_CALL_TIMEOUT_S = 30.0
# Closing with this set sends RST at once instead of FIN.
_RESET = struct.pack("ii", 1, 0)


class _Link:
    """One client connection, its counterpart to the server, and the tasks between them."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self.tasks: list[asyncio.Task[None]] = []

    def close(self, *, reset: bool) -> None:
        for task in self.tasks:
            task.cancel()
        for writer in self.writers:
            link = writer.get_extra_info("socket")
            if reset and link is not None and link.fileno() >= 0:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()
            else:
                writer.close()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        message = f"{url!r} names no single host and port"
        raise ValueError(message)
    return parts.hostname, parts.port


class TcpProxy:
    """Forwards a port of 127.0.0.1 to a server; passes everything on until told otherwise."""

    def __init__(self, host: str, port: int, *, listen: str = LOOPBACK) -> None:
        self._target = (host, port)
        self._lease = lease_port((listen,))
        self.host = listen
        self.port = self._lease.port
        self._delay_s = 0.0
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._requests = asyncio.Event()
        self._replies = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self.restore()

    @classmethod
    def before(cls, url: str) -> "TcpProxy":
        """A proxy in front of the server of that URL (which names one host)."""
        return cls(*_address(url))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._links)

    def url(self, url: str) -> str:
        """The same URL, through the proxy."""
        parts = urlsplit(url)
        account, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{account}{at}{self.host}:{self.port}").geturl()

    def lead_to(self, url: str) -> None:
        """New connections go to the server of that URL, as after a change of DNS; the old ones stay."""
        self._target = _address(url)

    def restore(self) -> None:
        """Passes everything on again, without latency; listens again after a cut."""
        self._call(self._restore())

    def hang(self) -> None:
        """A black hole: connections are accepted and stay open, nothing comes through either way."""
        self._call(self._hold(requests=True, replies=True))

    def hang_replies(self) -> None:
        """Requests reach the server, its replies do not come back: nobody knows whether a commit happened."""
        self._call(self._hold(requests=False, replies=True))

    def delay(self, seconds: float) -> None:
        """Adds latency to each direction for what arrives from now on; the throughput stays."""
        self._call(self._set_delay(seconds))

    def drop(self) -> None:
        """Resets all connections; new ones are served."""
        self._call(self._drop())

    def cut(self) -> None:
        """Resets all connections and refuses new ones."""
        self._call(self._cut())

    def close(self) -> None:
        """Ends the proxy; harmless when done twice."""
        if self._loop.is_closed():
            return
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_TIMEOUT_S)
        self._loop.close()
        self._lease.release()

    def _call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_TIMEOUT_S)

    async def _restore(self) -> None:
        self._delay_s = 0.0
        self._requests.set()
        self._replies.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, self.host, self.port)

    async def _hold(self, *, requests: bool, replies: bool) -> None:
        for gate, held in ((self._requests, requests), (self._replies, replies)):
            if held:
                gate.clear()
            else:
                gate.set()

    async def _set_delay(self, seconds: float) -> None:
        self._delay_s = seconds

    async def _drop(self) -> None:
        links, self._links = self._links, set()
        tasks = [task for link in links for task in link.tasks]
        for link in links:
            link.close(reset=True)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cut(self) -> None:
        # The listener first, or a client that is quick to reconnect slips through.
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._drop()

    async def _end(self) -> None:
        await self._cut()
        # A connection that is being accepted is no link yet, and would be left open.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._drop()
        await asyncio.sleep(0)  # what was closed is given back at the loop's next turn

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        link.tasks.append(asyncio.ensure_future(self._serve(link, reader, writer)))
        self._links.add(link)

    async def _serve(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._requests.wait()
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            link.writers.append(server_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, server_writer, self._requests))
                group.create_task(self._pump(server_reader, writer, self._replies))
        except* OSError:
            # Either side refused or reset; the other learns it by the close below.
            pass
        finally:
            self._links.discard(link)
            link.close(reset=False)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        """Carries one direction: one task reads and stamps, one waits for the time and writes.

        The end of the source waits at the gate as data does: in a partition a server does not see its client go.
        """
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_IN_FLIGHT)

        async def read() -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(_CHUNK_BYTES):
                    await queue.put((self._loop.time() + self._delay_s, data))
            await queue.put((self._loop.time() + self._delay_s, b""))

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await gate.wait()
                if not data:
                    break
                sink.write(data)
                await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()
