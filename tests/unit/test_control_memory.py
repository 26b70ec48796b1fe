"""Faults between a client and the control store in memory, and the pure rules both stores share."""

import asyncio
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalayer.clock import SystemClock
from datalayer.control.memory import MemoryControl, MemoryControlServer
from datalayer.control.rules import decode_payload, encode_payload, merged, spread_of
from datalayer.domains.record import Record
from datalayer.errors import OutcomeUnknown, Unavailable
from datalayer.routing.route import Place
from datalayer.stores.memory.faults import Call, Fault, Injection, ProcessCrash
from tests.unit.test_control_contract import gate, record


class OneFault:
    """Lets one call by its name meet a fault."""

    def __init__(self, name: str, fault: Fault) -> None:
        self.name = name
        self.fault = fault
        self.seen: list[str] = []

    def __call__(self, call: Call) -> Injection:
        self.seen.append(call.name)
        if call.name != self.name:
            return Injection()
        self.name = ""
        return Injection(self.fault)


@pytest.fixture
def server() -> MemoryControlServer:
    return MemoryControlServer("control", SystemClock())


async def test_a_take_whose_reply_was_lost_may_be_repeated(server: MemoryControlServer) -> None:
    control = MemoryControl(server, inject=OneFault("control.take", Fault.LOST_REPLY))
    with pytest.raises(OutcomeUnknown):
        await control.take("x", "ann", 60)
    assert await MemoryControl(server).take("x", "bob", 60) is None
    assert await control.take("x", "ann", 60) == 1


async def test_a_lost_request_has_no_effect(server: MemoryControlServer) -> None:
    control = MemoryControl(server, inject=OneFault("control.take", Fault.LOST_REQUEST))
    with pytest.raises(OutcomeUnknown):
        await control.take("x", "ann", 60)
    assert await MemoryControl(server).take("x", "bob", 60) == 1


async def test_an_intent_survives_the_crash_of_its_writer(server: MemoryControlServer) -> None:
    _, log = await gate(MemoryControl(server))
    inject = OneFault("intents.admit", Fault.CRASH_AFTER)
    dying = MemoryControl(server, client="dying", inject=inject).intents("messages", 1, "target")
    written = record()
    with pytest.raises(ProcessCrash):
        await dying.admit(written, lead=0, create=False, deadline=None)
    assert await log.journal.pending(5) == [written]
    assert inject.seen == ["intents.admit"]


async def test_an_outage_refuses_and_loses_nothing(server: MemoryControlServer) -> None:
    control = MemoryControl(server)
    await control.ensure_routes({"messages": Place("main")})
    server.machine.up = False
    with pytest.raises(Unavailable):
        await control.routings()
    server.machine.up = True
    assert (await control.routings())[1]["messages"].epoch == 1


@pytest.mark.parametrize("pushes", [False, True])
async def test_news_are_found_with_and_without_notifications(server: MemoryControlServer, pushes: bool) -> None:
    server.pushes = pushes
    one, two = MemoryControl(server), MemoryControl(server)
    waiting = asyncio.create_task(one.wait_news(0, 30.0, poll_s=0.005))
    await asyncio.sleep(0)
    await two.ensure_routes({"messages": Place("main")})
    async with asyncio.timeout(5):
        assert await waiting == 1
    assert not server.waiting


FIELDS = st.lists(
    st.one_of(
        st.none(), st.binary(max_size=40), st.integers(-(1 << 63), (1 << 63) - 1), st.text(string.printable + "☃𝄞\x00é")
    ),
    max_size=8,
).map(tuple)


@given(FIELDS, st.booleans(), st.integers(0, (1 << 63) - 1), st.binary(min_size=16, max_size=64))
def test_a_payload_gives_the_record_back(
    fields: tuple[bytes | str | int | None, ...], deleted: bool, version: int, key: bytes
) -> None:
    written = Record("kind", key, version, deleted, fields)
    assert decode_payload("kind", key, version, int(deleted), encode_payload(written)) == written


@given(st.binary(min_size=16, max_size=16))
def test_a_spread_fits_a_signed_number_and_depends_on_the_routing_alone(routing: bytes) -> None:
    assert 0 <= spread_of(routing) < 1 << 31
    assert spread_of(routing) == spread_of(bytes(routing))


def test_none_takes_an_option_away() -> None:
    assert merged({"a": 1, "b": 2}, {"b": None, "c": 3, "d": None}) == {"a": 1, "c": 3}
