"""What a store of media promises: an object is there whole or not at all, and its name is never given twice."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from datalayer.clock import Clock, SystemClock
from datalayer.errors import AlreadyExists, Corrupt, InvalidArgument, LostLease, NotFound
from datalayer.ids import uuid7_at
from datalayer.stores.base import MetaRow, Token
from datalayer.testing.contract.fixture import Waiting, outcomes, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from datalayer.stores.base import Backend
    from datalayer.stores.objects import Objects

LARGE: Final = 12 << 20
"""Bytes of what every product stores in more than one piece."""
HOSTILE: Final = (
    "",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "media",
    "x" * 65,
    "." + "0" * 31 + "/" + "0" * 32,
    "0" * 32 + "/" + "G" * 32,
    "0" * 32 + "/" + "0" * 31 + "\n",
    "0" * 32 + "/" + "0" * 32 + "/..",
    "0" * 32 + "\\" + "0" * 32,
    "A" * 32 + "/" + "0" * 32,
    "\x00" * 32 + "/" + "0" * 32,
)
"""What must never become part of a path."""


@dataclass(slots=True)
class ObjectsFixture(Waiting):
    """Clients of one store of media, and places in it that no other test uses."""

    connect: Callable[[], Awaitable[Backend]]
    attempts: Iterator[int]
    seed: int = 0
    clock: Clock = field(default_factory=SystemClock)
    timeout_s: float = 30.0
    random: random.Random = field(init=False)
    _exits: AsyncExitStack = field(init=False, default_factory=AsyncExitStack)
    _backends: list[Backend] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def backend(self) -> Backend:
        """Another client."""
        backend = await self.connect()
        self._exits.push_async_callback(backend.close)
        return backend

    async def fresh(self) -> Objects:
        """A place of this test's own, dropped at its end."""
        return (await self.pair())[0]

    async def pair(self) -> tuple[Objects, Objects]:
        """The same place over two clients."""
        attempt = next(self.attempts)
        first, second = (await self.backend()).store("media", attempt), (await self.backend()).store("media", attempt)
        self._exits.push_async_callback(first.drop)
        await first.create()
        return first, second

    def name(self, owner: int | None = None) -> str:
        """A name of an upload of now."""
        upload = uuid7_at(self.clock.now_us(), self.random.getrandbits(62))
        return f"{self.random.getrandbits(128) if owner is None else owner:032x}/{upload.hex}"

    def bytes(self, size: int) -> bytes:
        """So many bytes."""
        return self.random.randbytes(size)


class ObjectsSuite:
    """put, read, head, delete, page, clear; meta and tokens of the backend."""

    async def test_bytes_of_any_size_come_back(self, fixture: ObjectsFixture) -> None:
        store, peer = await fixture.pair()
        for size in (0, 1, 255, 256 << 10, (5 << 20) - 1, 5 << 20, LARGE):
            name, data = fixture.name(), fixture.bytes(size)
            for_size = fixture.random.choice((None, size))
            await store.put(name, pieces(data, fixture.random), content_type="a/b", size=for_size)
            assert hashlib.sha256(await whole(peer.read(name))).digest() == hashlib.sha256(data).digest(), size
            found = await peer.head(name)
            assert found is not None
            assert (found.name, found.size) == (name, size)
            assert abs(found.modified_us - fixture.clock.now_us()) < 60_000_000

    async def test_a_range_gives_these_bytes(self, fixture: ObjectsFixture) -> None:
        store = await fixture.fresh()
        name, data = fixture.name(), fixture.bytes(700_000)
        await store.put(name, pieces(data, fixture.random), content_type="a/b")
        for start, stop in ((0, 1), (699_999, None), (5, 5), (300_000, 600_001), (0, 700_000), (17, None)):
            assert await whole(store.read(name, start, stop)) == data[start:stop], (start, stop)

    async def test_an_object_of_another_size_gives_no_piece(self, fixture: ObjectsFixture) -> None:
        store = await fixture.fresh()
        name, data = fixture.name(), fixture.bytes(300_000)
        await store.put(name, pieces(data, fixture.random), content_type="a/b")
        for start, stop in ((0, None), (5, None), (7, 299_999)):
            assert await whole(store.read(name, start, stop, size=300_000)) == data[start:stop], (start, stop)
            for size in (0, 299_999, 300_001):
                await refused(Corrupt, whole(store.read(name, start, stop, size=size)))
        await refused(Corrupt, whole(store.read(name, 300_007, None, size=300_010)))
        await refused(NotFound, whole(store.read(fixture.name(), size=5)))

    async def test_what_is_not_there_is_not_found(self, fixture: ObjectsFixture) -> None:
        store = await fixture.fresh()
        assert await store.head(fixture.name()) is None
        await refused(NotFound, whole(store.read(fixture.name())))
        await store.delete([fixture.name()])

    async def test_a_name_is_given_once(self, fixture: ObjectsFixture) -> None:
        store, peer = await fixture.pair()
        for size in (10, LARGE):
            name, data = fixture.name(), fixture.bytes(size)
            await store.put(name, pieces(data, fixture.random), content_type="a/b")
            await refused(AlreadyExists, peer.put(name, pieces(data[::-1], fixture.random), content_type="a/b"))
            assert await whole(peer.read(name)) == data
            assert await store.clear(1 << 62) == 0, "what was refused leaves nothing unfinished"

    async def test_racing_puts_of_a_name_have_one_winner(self, fixture: ObjectsFixture) -> None:
        store, peer = await fixture.pair()
        for _ in range(5):
            name, texts = fixture.name(), [fixture.bytes(1000) for _ in range(4)]
            calls: list[Awaitable[Any]] = [
                (store, peer)[at % 2].put(name, pieces(data, fixture.random), content_type="a/b")
                for at, data in enumerate(texts)
            ]
            results, errors = await outcomes(calls)
            assert (len(results), {type(error) for error in errors}) == (1, {AlreadyExists})
            assert await whole(store.read(name)) in texts

    async def test_nothing_is_seen_of_an_upload_that_is_cut_off(self, fixture: ObjectsFixture) -> None:
        store, peer = await fixture.pair()
        for size in (0, 1000, LARGE):
            name = fixture.name()
            seen: list[Any] = []

            async def cut(data: bytes, name: str = name, seen: list[Any] = seen) -> AsyncIterator[bytes]:
                for at in range(0, len(data), 1 << 20):
                    yield data[at : at + (1 << 20)]
                seen += [await peer.head(name), list(await peer.page("", 1000))]
                raise _Cut

            await refused(_Cut, store.put(name, cut(fixture.bytes(size)), content_type="a/b"))
            assert seen == [None, []], "before its end"
            assert await peer.head(name) is None
            assert list(await peer.page("", 1000)) == []
            await store.put(name, pieces(b"whole", fixture.random), content_type="a/b")
            assert await whole(peer.read(name)) == b"whole"
            await store.delete([name])

    async def test_a_caller_that_leaves_lets_nothing_be_seen(self, fixture: ObjectsFixture) -> None:
        store, peer = await fixture.pair()
        name, waiting = fixture.name(), asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield fixture.bytes(6 << 20)
            waiting.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(store.put(name, endless(), content_type="a/b"))
        await waiting.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert await peer.head(name) is None
        assert await store.clear(1 << 62) == 0, "its parts are given up"

    async def test_deleted_ones_are_gone_and_may_be_deleted_again(self, fixture: ObjectsFixture) -> None:
        store, peer = await fixture.pair()
        names = [fixture.name(7), fixture.name(7), fixture.name()]
        for name in names:
            await store.put(name, pieces(b"x", fixture.random), content_type="a/b")
        await peer.delete(names[:2])
        await store.delete([*names[:2], fixture.name()])
        assert [await store.head(name) is None for name in names] == [True, True, False]
        assert [info.name for info in await store.page("", 10)] == names[2:]

    async def test_pages_walk_every_object_by_name(self, fixture: ObjectsFixture) -> None:
        store = await fixture.fresh()
        names = [fixture.name(fixture.random.randrange(5)) for _ in range(37)]
        await asyncio.gather(
            *(store.put(name, pieces(b"abc", fixture.random), content_type="a/b") for name in dict.fromkeys(names))
        )
        for limit in (1, 10, 1000):
            met: list[str] = []
            while True:
                page = await store.page(met[-1] if met else "", limit)
                met += [info.name for info in page]
                assert all(info.size == 3 for info in page)
                if len(page) < limit:
                    break
            assert met == sorted(set(names))

    async def test_unfinished_uploads_of_before_are_cleared(self, fixture: ObjectsFixture) -> None:
        store, peer = await fixture.pair()
        found: list[int] = []

        async def watched() -> AsyncIterator[bytes]:
            yield fixture.bytes(6 << 20)
            found.append(await peer.clear(fixture.clock.now_us() - 3_600_000_000))
            found.append(await peer.clear(fixture.clock.now_us() + 3_600_000_000))
            yield b"more"
            raise _Cut

        await outcomes([store.put(fixture.name(), watched(), content_type="a/b")])
        assert found == [0, 1]

    async def test_places_share_nothing_and_are_dropped_whole(self, fixture: ObjectsFixture) -> None:
        first, second = await fixture.fresh(), await fixture.fresh()
        name = fixture.name()
        await first.put(name, pieces(b"first", fixture.random), content_type="a/b")
        await second.put(name, pieces(b"second", fixture.random), content_type="a/b")
        await first.drop()
        await first.drop()
        assert await first.head(name) is None
        assert list(await first.page("", 10)) == []
        assert await whole(second.read(name)) == b"second"
        await first.put(name, pieces(b"again", fixture.random), content_type="a/b")

    async def test_no_other_name_is_taken(self, fixture: ObjectsFixture) -> None:
        store = await fixture.fresh()
        for name in HOSTILE:
            await refused(InvalidArgument, store.put(name, pieces(b"x", fixture.random), content_type="a/b"))
            await refused(InvalidArgument, whole(store.read(name)))
            await refused(InvalidArgument, store.head(name))
            await refused(InvalidArgument, store.delete([name]))

    async def test_meta_keeps_the_row_of_the_highest_epoch(self, fixture: ObjectsFixture) -> None:
        backend, peer = await fixture.backend(), await fixture.backend()
        attempt = next(fixture.attempts)

        def row(epoch: int, role: Any) -> MetaRow:
            return MetaRow("media", attempt, "deployment-1", role, epoch)

        for written, kept in (
            (row(3, "copy"), row(3, "copy")),
            (row(5, "authority"), row(5, "authority")),
            (row(4, "copy"), row(5, "authority")),
            (row(5, "retired"), row(5, "retired")),
        ):
            await backend.write_meta(written)
            assert (await peer.read_meta())["media", attempt] == kept

    async def test_a_higher_token_locks_a_lower_one_out(self, fixture: ObjectsFixture) -> None:
        backend, peer = await fixture.backend(), await fixture.backend()
        base = next(fixture.attempts) * 100

        def token(value: int) -> Token:
            return Token(f"media-{value}", "media", value, base + value)

        await backend.raise_token(token(3))
        await peer.raise_token(token(3))
        await peer.raise_token(token(20))
        await refused(LostLease, backend.raise_token(token(3)))
        await backend.raise_token(token(20))


class _Cut(Exception):
    """Ends an upload."""


async def pieces(data: bytes, random_: random.Random) -> AsyncIterator[bytes]:
    """Some bytes in pieces of any size."""
    at = 0
    while at < len(data):
        size = random_.choice((1, 1000, 300_000, 1 << 20, 7 << 20))
        yield data[at : at + size]
        at += size


async def whole(chunks: AsyncIterator[bytes]) -> bytes:
    """All bytes."""
    parts: Sequence[bytes] = [chunk async for chunk in chunks]
    return b"".join(parts)
