"""What a server of S3 may answer, or not, and what the library makes of it: a real boto3 asks a scripted server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from datalayer.clock import SystemClock
from datalayer.errors import AlreadyExists, Closed, OutcomeUnknown, PreconditionFailed, Unavailable
from datalayer.settings import BackendUrl
from datalayer.stores.s3.backend import S3Backend, create_backend
from datalayer.stores.threads import Threads

NAME = f"{'a' * 32}/{'b' * 32}"
LOST = b""
DONE = b'HTTP/1.1 200 OK\r\nConnection: close\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n'
PAGE = (
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/html\r\nContent-Length: 19\r\n\r\n<html>hello</html>\n"
)


def xml(status: int, body: str) -> bytes:
    return f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def refusal(status: int, code: str) -> bytes:
    return xml(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>")


BUSY = refusal(409, "ConditionalRequestConflict")


@dataclass
class Script:
    """Answers one after the other, the last for ever; what was asked."""

    answers: list[bytes]
    asked: list[str] = field(default_factory=list)
    links: set[asyncio.Task[None]] = field(default_factory=set)

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.links.add(asyncio.create_task(self._answer(reader, writer)))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = [line.split(":")[1] for line in head.split("\r\n") if line.startswith("content-length:")]
        if "expect: 100-continue" in head:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readexactly(int(length[0]) if length else 0)
        self.asked.append(head.split(" ")[0])
        writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        writer.close()


@contextlib.asynccontextmanager
async def scripted(*answers: bytes) -> AsyncIterator[tuple[S3Backend, Script]]:
    script = Script([xml(200, "<ListBucketResult><Name>bucket</Name></ListBucketResult>")])
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = BackendUrl.parse(f"s3://key:secret@bucket?endpoint=http://127.0.0.1:{port}&region=us-east-1")
    backend = create_backend("s3", url, pool_max=2, clock=SystemClock())
    await backend.open()
    script.answers, script.asked = list(answers), []
    try:
        yield backend, script
    finally:
        await backend.close()
        async with asyncio.timeout(5):
            await asyncio.gather(*script.links)
        server.close()


async def body() -> AsyncIterator[bytes]:
    yield b"bytes"


async def put(backend: S3Backend) -> None:
    await backend.store("media", 0).put(NAME, body(), content_type="a/b", size=5)


async def test_a_put_that_meets_another_is_sent_again_as_s3_asks_for() -> None:
    async with scripted(BUSY, BUSY, DONE) as (backend, script):
        await put(backend)
        assert script.asked == ["put", "put", "put"]


async def test_a_put_that_meets_another_and_comes_second_is_told_so() -> None:
    async with scripted(BUSY, refusal(412, "PreconditionFailed")) as (backend, _):
        with pytest.raises(AlreadyExists):
            await put(backend)


async def test_a_conflict_without_end_is_no_object_that_exists() -> None:
    async with scripted(BUSY) as (backend, script):
        with pytest.raises(Unavailable, match=r"another write of object .* is under way in bucket 'bucket'"):
            await put(backend)
        assert len(script.asked) == 3


@pytest.mark.parametrize("answer", [LOST, refusal(500, "InternalError"), refusal(504, "GatewayTimeout")])
async def test_a_write_whose_answer_is_lost_is_of_unknown_outcome(answer: bytes) -> None:
    async with scripted(answer) as (backend, script):
        with pytest.raises(OutcomeUnknown, match="did not confirm a write"):
            await put(backend)
        with pytest.raises(OutcomeUnknown):
            await backend.store("media", 0).delete([NAME])
        assert script.asked == ["put", "delete"]


async def test_a_read_whose_answer_is_lost_may_be_asked_again() -> None:
    async with scripted(LOST) as (backend, _):
        with pytest.raises(Unavailable, match="does not answer"):
            await backend.store("media", 0).head(NAME)


async def test_a_write_that_an_overloaded_server_refuses_was_not_done() -> None:
    async with scripted(refusal(503, "SlowDown")) as (backend, _):
        with pytest.raises(Unavailable, match="overloaded"):
            await put(backend)


async def test_a_server_that_cannot_do_it_is_not_asked_for_ever() -> None:
    async with scripted(refusal(501, "NotImplemented")) as (backend, _):
        with pytest.raises(PreconditionFailed, match="NotImplemented"):
            await put(backend)


async def test_where_nobody_listens_nothing_was_sent() -> None:
    async with scripted(DONE) as (backend, _):
        url = BackendUrl.parse("s3://key:secret@bucket?endpoint=http://127.0.0.1:1&region=us-east-1")
        other = create_backend("s3", url, pool_max=2, clock=SystemClock())
        with pytest.raises(Unavailable, match="cannot be reached") as told:
            await other.open()
        assert "correct the endpoint" in (told.value.hint or "")
        with pytest.raises(Unavailable):
            await put(other)
        await other.close()
        assert backend.name == "s3"


async def test_what_does_not_speak_s3_is_told() -> None:
    async with scripted(PAGE) as (backend, _):
        with pytest.raises(PreconditionFailed, match="does not speak S3"):
            await backend.open()


async def test_a_caller_that_leaves_waits_for_its_call_and_nobody_hears_of_its_error() -> None:
    threads = Threads("t", 1)
    with pytest.raises(Closed):
        await threads.run(int)
    threads.open()
    began, go = asyncio.Event(), asyncio.Event()
    loop, unheard = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: unheard.append(context))

    def call() -> None:
        loop.call_soon_threadsafe(began.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()
        raise OSError

    task = asyncio.create_task(threads.run(call))
    await began.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    assert unheard == []
    threads.close()
