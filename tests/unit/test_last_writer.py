"""Writes and repairs of an authority without transactions, where two of them meet or the gate is shut."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.control.base import IntentLog, coordinator_lease
from datalayer.control.memory import MemoryControl
from datalayer.control.memory_server import MemoryControlServer
from datalayer.domains.messages import Append, Delete, Edit, message_key
from datalayer.domains.record import Key, Record
from datalayer.domains.registry import DOMAINS
from datalayer.errors import DatalayerError, Fenced, NotFound, OutcomeUnknown, StaleRoute
from datalayer.ids import IdSource
from datalayer.routing.lastwriter import IntentGuard, LastWriterAuthority
from datalayer.routing.lease import Lease
from datalayer.routing.places import Route
from datalayer.routing.route import Phase, Place, Routing
from datalayer.routing.router import Router
from datalayer.stores.base import Token
from datalayer.stores.memory.backend import MemoryBackend
from datalayer.stores.memory.server import MemoryServer

CLOCK = SystemClock()
IDS = IdSource(CLOCK)
ROOM, ANN = uuid4(), uuid4()


class Slow:
    """A store between whose calls a test may do something, and whose writes may wait for it."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.after_fetch: Any = None
        self.answer = asyncio.Event()
        self.answer.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        found: dict[Key, Record] = await self._store.fetch(keys)
        after, self.after_fetch = self.after_fetch, None
        if after is not None:
            await after()
        return found

    async def apply(self, records: Sequence[Record]) -> None:
        await self.answer.wait()
        await self._store.apply(records)


class Side:
    """One last-writer side with its gate, and what works on it."""

    def __init__(self, store: Slow, intents: IntentLog, token: Token) -> None:
        self.store = store
        self.intents = intents
        self.token = token
        self.guard = IntentGuard(store, intents)
        self.writer = self._authority(intents)
        self.at_rest = self._authority(None)

    def _authority(self, intents: IntentLog | None) -> LastWriterAuthority:
        return LastWriterAuthority(
            self.store, DOMAINS["messages"], CLOCK, process_number=1, intents=intents, check=None
        )

    async def append(self) -> UUID:
        mutation = Append(ROOM, IDS.uuid7(), ANN, "hello")
        await self.writer.execute(mutation, soon())
        return mutation.id

    async def body(self, message: UUID) -> str | None:
        found = await self.store.get(ROOM, message, soon())
        return None if found is None else found.body

    async def replay(self) -> None:
        found = await self.intents.journal.pending(100)
        await self.guard.apply(found)
        await self.intents.journal.settle(found)


def soon(seconds: float = 5.0) -> Deadline:
    return Deadline(CLOCK, seconds)


@pytest.fixture
async def side() -> Side:
    control = MemoryControl(MemoryControlServer("c", CLOCK), client="test")
    await control.open(create=True)
    backend = MemoryBackend(MemoryServer("t", CLOCK, authority_class="last_writer"), name="t", client="test")
    await backend.open()
    store = backend.store("messages", 1)
    await store.create()
    value = await control.take(coordinator_lease("messages"), "test", 100)
    assert value is not None
    token = Token("m", "messages", 1, value)
    intents = control.intents("messages", 1, "target")
    await intents.install(token, sealed=False)
    return Side(Slow(store), intents, token)


async def test_a_repair_never_overwrites_an_edit_that_came_between_its_read_and_its_intent(side: Side) -> None:
    message = await side.append()
    await side.replay()
    side.store.after_fetch = lambda: side.writer.execute(Edit(ROOM, message, "edited"), soon())
    await side.guard.repair([("message", message_key(ROOM, message))], [], CLOCK.now_us())
    await side.replay()
    assert await side.body(message) == "edited"


async def test_a_ghost_is_not_buried_over_an_append_that_is_pending_or_stored(side: Side) -> None:
    message = await side.append()
    ghost = DOMAINS["messages"].tombstone("message", message_key(ROOM, message), CLOCK.now_us() + 10**9)
    await side.guard.repair([], [ghost], CLOCK.now_us())
    await side.replay()
    await side.guard.repair([], [ghost], CLOCK.now_us())
    await side.replay()
    assert await side.body(message) == "hello"


async def test_a_repair_behind_a_shut_gate_says_so(side: Side) -> None:
    message = await side.append()
    await side.replay()
    await side.intents.fence(side.token, 1, 60.0, 1.0)
    with pytest.raises(Fenced):
        await side.guard.repair([("message", message_key(ROOM, message))], [], CLOCK.now_us())


@pytest.mark.parametrize("gone", [False, True])
async def test_a_side_that_is_shut_answers_nothing_from_what_it_once_held(side: Side, gone: bool) -> None:
    message = await side.append()
    deleted = await side.append()
    await side.writer.execute(Delete(ROOM, deleted), soon())
    refused: list[type[DatalayerError]] = []
    if gone:
        await side.intents.remove(side.token, keep_fence=True)
    else:
        await side.intents.fence(side.token, 1, 60.0, 1.0)
        await side.intents.seal(side.token, 1)
    for mutation in (
        Edit(ROOM, IDS.uuid7(), "it was appended at the other side"),
        Delete(ROOM, IDS.uuid7()),
        Edit(ROOM, deleted, "no"),
        Delete(ROOM, deleted),
        Append(ROOM, message, ANN, "hello"),
        Append(ROOM, message, uuid4(), "another sender"),
    ):
        with pytest.raises(DatalayerError) as caught:
            await side.writer.execute(mutation, soon())
        refused.append(caught.type)
    assert set(refused) == {StaleRoute if gone else Fenced}


async def test_an_open_side_still_refuses_what_is_not_there(side: Side) -> None:
    with pytest.raises(NotFound):
        await side.writer.execute(Edit(ROOM, IDS.uuid7(), "x"), soon())


@pytest.mark.parametrize("way", ["deadline", "cancelled"])
async def test_a_process_does_not_leave_rest_while_a_write_is_on_its_way_to_the_store(side: Side, way: str) -> None:
    rest = Routing("messages", 1, Phase.SOURCE, Place("t"))
    dual = Routing("messages", 2, Phase.DUAL, Place("t"), Place("s", 1), 1)
    writer = side.at_rest
    router = Router("messages", Lease(CLOCK), lambda: None, lambda: 0.5)
    router.adopt(Route(rest, side.store, writer.execute, last_writer=True, under_way=writer.under_way))
    side.store.answer.clear()
    write = asyncio.ensure_future(
        router.write(Append(ROOM, IDS.uuid7(), ANN, "late", fresh=True), soon(0.02 if way == "deadline" else 5.0))
    )
    while not writer.under_way:
        await asyncio.sleep(0)
    if way == "deadline":
        with pytest.raises(OutcomeUnknown):
            await write
    else:
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
    router.adopt(Route(dual, side.store, side.writer.execute, last_writer=True))
    assert router.acknowledged() == 1
    side.store.answer.set()
    await asyncio.gather(*writer.under_way)
    await asyncio.sleep(0)
    assert router.acknowledged() == 2
