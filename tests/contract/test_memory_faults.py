"""The wire of the in-memory product does to a call exactly what its fault says."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.messages import Append, Edit, to_record
from datalayer.domains.record import Record
from datalayer.errors import Closed, DeadlineExceeded, NotFound, Outcome, OutcomeUnknown, Unavailable
from datalayer.ids import uuid7_at
from datalayer.settings import BackendUrl
from datalayer.stores.memory import Call, Fault, Injection, MemoryBackend, MemoryServer, ProcessCrash, create_backend
from datalayer.stores.memory.server import SERVERS
from datalayer.types import Message

CLOCK = SystemClock()
ANN = UUID(int=1)


def message(number: int) -> Record:
    return to_record(Message(uuid7_at(CLOCK.now_us(), number), uuid7_at(1, 1), ANN, f"body {number}", version=5))


class World:
    """A server with one place, a client whose next call meets a fault, and a client that always works."""

    def __init__(self) -> None:
        self.server = MemoryServer("world", CLOCK)
        self.server.create(("messages", 0))
        self.injection = Injection()
        self.calls: list[Call] = []
        self.store = MemoryBackend(self.server, client="faulty", inject=self._inject, timeout_s=0.05).store(
            "messages", 0
        )
        self.witness = MemoryBackend(self.server).store("messages", 0)

    def _inject(self, call: Call) -> Injection:
        self.calls.append(call)
        return self.injection

    async def stored(self, records: list[Record]) -> list[bool]:
        found = await self.witness.fetch([record.ident for record in records])
        return [record.ident in found for record in records]


@pytest.fixture
def world() -> World:
    return World()


@contextmanager
def takes_at_least(seconds: float) -> Iterator[None]:
    start = CLOCK.monotonic()
    yield
    assert CLOCK.monotonic() - start >= seconds * 0.9


WRITES = [
    (Fault.LOST_REQUEST, OutcomeUnknown, [False, False]),
    (Fault.LOST_REPLY, OutcomeUnknown, [True, True]),
    (Fault.ERROR, Unavailable, [False, False]),
    (Fault.HANG, OutcomeUnknown, [False, False]),
    (Fault.HANG_APPLIED, OutcomeUnknown, [True, True]),
    (Fault.PARTIAL, OutcomeUnknown, [True, False]),
    (Fault.CRASH_BEFORE, ProcessCrash, [False, False]),
    (Fault.CRASH_AFTER, ProcessCrash, [True, True]),
]


@pytest.mark.parametrize(("fault", "error", "landed"), WRITES)
async def test_a_faulty_write_lands_as_its_fault_says(
    world: World, fault: Fault, error: type[BaseException], landed: list[bool]
) -> None:
    records = [message(1), message(2)]
    world.injection = Injection(fault)
    with pytest.raises(error):
        await world.store.apply(records)
    assert await world.stored(records) == landed


async def test_every_fault_but_none_is_tried() -> None:
    assert {fault for fault, _, _ in WRITES} == set(Fault) - {Fault.NONE}


async def test_outcome_says_whether_a_write_may_have_landed(world: World) -> None:
    world.injection = Injection(Fault.LOST_REPLY)
    with pytest.raises(OutcomeUnknown) as unknown:
        await world.store.apply([message(1)])
    world.injection = Injection(Fault.ERROR)
    with pytest.raises(Unavailable) as refused:
        await world.store.apply([message(2)])
    assert (unknown.value.outcome, refused.value.outcome) == (Outcome.UNKNOWN, Outcome.NOT_APPLIED)


READS = [
    (Fault.LOST_REQUEST, Unavailable),
    (Fault.LOST_REPLY, Unavailable),
    (Fault.ERROR, Unavailable),
    (Fault.HANG, DeadlineExceeded),
    (Fault.CRASH_BEFORE, ProcessCrash),
]


@pytest.mark.parametrize(("fault", "error"), READS)
async def test_a_faulty_read_is_never_of_unknown_outcome(
    world: World, fault: Fault, error: type[BaseException]
) -> None:
    world.injection = Injection(fault)
    with pytest.raises(error):
        await world.store.fetch([message(1).ident])


async def test_a_hang_ends_with_the_deadline_of_the_call(world: World) -> None:
    world.injection = Injection(Fault.HANG)
    append = Append(ANN, uuid7_at(CLOCK.now_us(), 3), ANN, "hi")
    with takes_at_least(0.1), pytest.raises(OutcomeUnknown):
        await world.store.execute(append, Deadline(CLOCK, 0.1))


async def test_a_request_slower_than_the_deadline_lands_after_the_caller_gave_up(world: World) -> None:
    world.injection = Injection(request_s=0.1)
    records = [message(1)]
    with pytest.raises(OutcomeUnknown):
        await world.store.apply(records)
    assert await world.stored(records) == [False]
    await asyncio.sleep(0.1)
    assert await world.stored(records) == [True]


async def test_a_reply_slower_than_the_deadline_leaves_the_outcome_open(world: World) -> None:
    world.injection = Injection(reply_s=0.1)
    with pytest.raises(OutcomeUnknown):
        await world.store.apply([message(1)])


async def test_a_refusal_whose_reply_is_lost_is_not_heard(world: World) -> None:
    append = Append(ANN, uuid7_at(CLOCK.now_us(), 3), ANN, "hi")
    await world.store.execute(append, Deadline(CLOCK, 1))
    world.injection = Injection(Fault.LOST_REPLY)
    with pytest.raises(OutcomeUnknown):
        await world.store.execute(Append(ANN, append.id, ANN, "ho"), Deadline(CLOCK, 1))
    world.injection = Injection()
    with pytest.raises(NotFound):
        await world.store.execute(Edit(ANN, ANN, "x"), Deadline(CLOCK, 1))


async def test_an_outage_refuses_every_client_and_loses_nothing(world: World) -> None:
    records = [message(1)]
    await world.store.apply(records)
    world.server.up = False
    for store in (world.store, world.witness):
        with pytest.raises(Unavailable):
            await store.fetch([records[0].ident])
    world.server.up = True
    assert await world.stored(records) == [True]


async def test_a_closed_client_refuses_until_it_is_opened_again(world: World) -> None:
    backend = MemoryBackend(world.server)
    await backend.close()
    with pytest.raises(Closed):
        await backend.ping(Deadline(CLOCK, 1))
    await backend.open()
    await backend.ping(Deadline(CLOCK, 1))


async def test_the_injector_sees_what_each_call_is(world: World) -> None:
    await world.store.apply([])
    await world.store.fetch([])
    guard = world.store.guard(1)
    await guard.state()
    assert [(call.client, call.domain, call.name, call.write) for call in world.calls] == [
        ("faulty", "messages", "apply", True),
        ("faulty", "messages", "fetch", False),
        ("faulty", "messages", "guard.state", False),
    ]


async def test_backends_of_one_name_share_a_server() -> None:
    try:
        first, second = (create_backend("shared-name", BackendUrl("memory"), pool_max=1, clock=CLOCK) for _ in range(2))
        await first.ensure_schema(create=True)
        await first.store("messages", 0).apply([message(1)])
        assert not await second.store("messages", 0).empty()
    finally:
        SERVERS.pop("shared-name")


def test_a_last_writer_store_offers_no_transactions_and_takes_no_users() -> None:
    backend = MemoryBackend(MemoryServer("ring", CLOCK, authority_class="last_writer"))
    store = backend.store("messages", 0)
    assert not hasattr(store, "execute")
    assert not hasattr(store, "guard")
    assert backend.refuses("users") == "users needs compare-and-set"
    assert backend.refuses("messages") is None
    assert backend.refuses("orders") is not None
