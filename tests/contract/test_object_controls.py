"""Each test of the suite of stores of media can fail: a store that breaks one promise turns the tests named red."""

import inspect
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.errors import DatalayerError
from datalayer.stores.base import Backend, MetaRow
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.stores.memory.objects import MemoryObjects
from datalayer.stores.objects import ObjectInfo
from datalayer.testing.contract import ObjectsFixture, ObjectsSuite

_ATTEMPTS = itertools.count(1)


class Cut(MemoryObjects):
    async def put(self, name: str, chunks: AsyncIterator[bytes], **options: Any) -> None:
        async def shorter() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                yield chunk[:-1]

        await super().put(name, shorter(), **options)


class OffByOne(MemoryObjects):
    def read(self, name: str, start: int = 0, stop: int | None = None, **options: Any) -> Any:
        return super().read(name, start, None if stop is None else stop + 1, **options)


class AnySize(MemoryObjects):
    def read(self, name: str, start: int = 0, stop: int | None = None, *, size: int | None = None) -> Any:
        del size
        return super().read(name, start, stop)


class EmptyForAbsent(MemoryObjects):
    async def read(self, name: str, start: int = 0, stop: int | None = None, **options: Any) -> Any:
        if await self.head(name) is not None:
            async for chunk in super().read(name, start, stop, **options):
                yield chunk


class Replacing(MemoryObjects):
    def _land(self, name: str, held: bytes) -> None:
        self._stored.pop(name, None)
        super()._land(name, held)


class Growing(MemoryObjects):
    """An upload is seen while it is written, and stays when it is cut off."""

    async def put(self, name: str, chunks: AsyncIterator[bytes], **options: Any) -> None:
        self._stored[name] = (b"", 0)
        async for chunk in chunks:
            self._stored[name] = (self._stored[name][0] + chunk, 0)


class Undeleted(MemoryObjects):
    async def delete(self, names: Any) -> None:
        """Nothing."""


class Unsorted(MemoryObjects):
    async def page(self, after: str, limit: int) -> list[ObjectInfo]:
        return list(await super().page(after, limit))[::-1]


class Eager(MemoryObjects):
    """What is young is cleared, too."""

    async def clear(self, before_us: int) -> int:
        return await super().clear(1 << 62)


class Shared(MemoryObjects):
    @property
    def _stored(self) -> dict[str, tuple[bytes, int]]:
        return self._backend.server.objects.setdefault(0, {})


class Trusting(MemoryObjects):
    async def head(self, name: str) -> ObjectInfo | None:
        found = self._stored.get(name)
        return None if found is None else ObjectInfo(name, len(found[0]), found[1])


class Leaking(MemoryObjects):
    """Parts of whoever leaves stay."""

    async def put(self, name: str, chunks: AsyncIterator[bytes], **options: Any) -> None:
        try:
            await super().put(name, chunks, **options)
        finally:
            self._stored[f"upload {name}"] = (b"", 0)


class ForgetfulBackend(MemoryBackend):
    async def write_meta(self, row: MetaRow) -> None:
        self.server.meta[row.domain, row.attempt] = row

    async def raise_token(self, token: Any) -> None:
        """Whoever comes is let in."""


BROKEN: list[tuple[type[MemoryObjects], type[MemoryBackend], tuple[str, ...]]] = [
    (Cut, MemoryBackend, ("test_bytes_of_any_size_come_back",)),
    (OffByOne, MemoryBackend, ("test_a_range_gives_these_bytes",)),
    (AnySize, MemoryBackend, ("test_an_object_of_another_size_gives_no_piece",)),
    (EmptyForAbsent, MemoryBackend, ("test_what_is_not_there_is_not_found",)),
    (Replacing, MemoryBackend, ("test_a_name_is_given_once", "test_racing_puts_of_a_name_have_one_winner")),
    (
        Growing,
        MemoryBackend,
        ("test_nothing_is_seen_of_an_upload_that_is_cut_off", "test_a_caller_that_leaves_lets_nothing_be_seen"),
    ),
    (Leaking, MemoryBackend, ("test_a_name_is_given_once", "test_a_caller_that_leaves_lets_nothing_be_seen")),
    (Undeleted, MemoryBackend, ("test_deleted_ones_are_gone_and_may_be_deleted_again",)),
    (Unsorted, MemoryBackend, ("test_pages_walk_every_object_by_name",)),
    (Eager, MemoryBackend, ("test_unfinished_uploads_of_before_are_cleared",)),
    (Shared, MemoryBackend, ("test_places_share_nothing_and_are_dropped_whole",)),
    (Trusting, MemoryBackend, ("test_no_other_name_is_taken",)),
    (
        MemoryObjects,
        ForgetfulBackend,
        ("test_meta_keeps_the_row_of_the_highest_epoch", "test_a_higher_token_locks_a_lower_one_out"),
    ),
]


def connecting(store: type[MemoryObjects], kind: type[MemoryBackend]) -> Callable[[], Any]:
    server = MemoryServer("broken", SystemClock())

    class Broken(kind):  # type: ignore[misc,valid-type]
        def store(self, domain: str, attempt: int) -> Any:
            return store(self, attempt)

    async def connect() -> Backend:
        backend: Backend = Broken(server)
        return backend

    return connect


@pytest.mark.parametrize(("store", "backend", "red"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_broken_store_turns_its_tests_red(
    store: type[MemoryObjects], backend: type[MemoryBackend], red: tuple[str, ...]
) -> None:
    for test in red:
        async with ObjectsFixture(connecting(store, backend), _ATTEMPTS, timeout_s=2.0) as fixture:
            with pytest.raises((AssertionError, DatalayerError)):
                await getattr(ObjectsSuite(), test)(fixture)


def test_every_test_of_the_suite_has_a_broken_store() -> None:
    tests = {name for name, _ in inspect.getmembers(ObjectsSuite, inspect.isfunction) if name.startswith("test_")}
    assert tests == {name for _, _, red in BROKEN for name in red}
