"""What a suite needs from the product under test, and the few words its tests are written in."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from datalayer.clock import Clock, Deadline, SystemClock
from datalayer.ids import IdSource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from datalayer.domains.record import Key, Record
    from datalayer.stores.base import Backend

E = TypeVar("E", bound=BaseException)
TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.01


class Foreign(Protocol):
    """A program that writes the tables of a place (its store is given) without knowing the library."""

    name: str

    async def upsert(self, store: Any, record: Record) -> None:
        """Insert the row, or update its fields and leave the version column as it was."""
        ...

    async def delete(self, store: Any, key: Key) -> None:
        """Remove the row."""
        ...


class Waiting:
    """Deadlines, and waiting for a condition without sleeping longer than it takes."""

    __slots__ = ()
    clock: Clock
    timeout_s: float

    def deadline(self, timeout_s: float | None = None) -> Deadline:
        """A deadline that only a hang would meet."""
        return Deadline(self.clock, self.timeout_s if timeout_s is None else timeout_s)

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait until a condition holds; an assertion naming it after ``timeout_s``."""
        deadline = self.deadline()
        while not await condition():
            assert not deadline.passed, f"waited {self.timeout_s} s for: {what}"
            await asyncio.sleep(POLL_S)


@dataclass(slots=True)
class StoreFixture(Waiting):
    """Clients of one server, places in it, and the random source of a test.

    ``connect`` opens another client each time. ``attempts`` gives numbers that no other test of this server uses.
    ``shared_attempt`` is the place of tests that need no place of their own: tables cost seconds on some products.
    """

    connect: Callable[[], Awaitable[Backend]]
    attempts: Iterator[int] = field(default_factory=lambda: count(2))
    shared_attempt: int = 1
    clock: Clock = field(default_factory=SystemClock)
    seed: int = 0
    foreign: Foreign | None = None
    timeout_s: float = TIMEOUT_S
    scale: int = 1
    """Multiplies how much the seeded programmes do."""
    regions: Sequence[str] = ()
    """The regions of the shards, if they have any: made-up users are spread over them."""
    random: random.Random = field(init=False)
    ids: IdSource = field(init=False)
    _exits: AsyncExitStack = field(init=False, default_factory=AsyncExitStack)
    _places: dict[int, tuple[str, int]] = field(init=False, default_factory=dict)
    _backend: Backend | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.ids = IdSource(self.clock, self.random.getrandbits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def backend(self) -> Backend:
        """The first client."""
        if self._backend is None:
            self._backend = await self._connected()
        return self._backend

    async def fresh(self, domain: str) -> Any:
        """A place of this test's own, made now and dropped at its end."""
        attempt = next(self.attempts)
        store = self._store(await self.backend(), domain, attempt)
        self._exits.push_async_callback(store.drop)
        await store.create()
        return store

    async def place(self, domain: str) -> Any:
        """A place that other tests use too: only keys that this test made up are its own."""
        store = self._store(await self.backend(), domain, self.shared_attempt)
        await store.create()
        return store

    async def peer(self, store: Any) -> Any:
        """The same place over a client of its own."""
        domain, attempt = self._places[id(store)]
        return self._store(await self._connected(), domain, attempt)

    def attempt_of(self, store: Any) -> int:
        """The attempt whose number the place's tables carry."""
        return self._places[id(store)][1]

    async def _connected(self) -> Backend:
        backend = await self.connect()
        self._exits.push_async_callback(backend.close)
        return backend

    def _store(self, backend: Backend, domain: str, attempt: int) -> Any:
        store = backend.store(domain, attempt)
        self._places[id(store)] = (domain, attempt)
        # The numbers of dead objects are given out again: keep it alive as long as the fixture.
        self._exits.callback(lambda: store)
        return store


async def refused(kind: type[E] | tuple[type[E], ...], call: Awaitable[object]) -> E:
    """The error that a call must raise."""
    try:
        result = await call
    except kind as error:
        return error
    message = f"expected {kind}, but the call returned {result!r}"
    raise AssertionError(message)


async def outcomes(calls: list[Awaitable[Any]]) -> tuple[list[Any], list[BaseException]]:
    """(results, errors) of calls run at once."""
    done = await asyncio.gather(*calls, return_exceptions=True)
    results = [one for one in done if not isinstance(one, BaseException)]
    return results, [one for one in done if isinstance(one, BaseException)]
