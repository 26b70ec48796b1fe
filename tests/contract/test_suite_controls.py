"""Each check of each suite can fail: a product that breaks one promise turns the tests named beside it red."""

import inspect
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.control.memory import MemoryControl, MemoryControlServer
from datalayer.errors import DatalayerError
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.testing.contract import (
    CatalogueExecuteSuite,
    CatalogueReadsSuite,
    ControlFixture,
    ControlSuite,
    ConversationExecuteSuite,
    ConversationReadsSuite,
    ForeignWriterSuite,
    IntentLogSuite,
    ListingExecuteSuite,
    ListingReadsSuite,
    MessageExecuteSuite,
    MessageReadsSuite,
    OutboxSuite,
    PortSuite,
    SearchReadsSuite,
    SessionExecuteSuite,
    SessionReadsSuite,
    StoreFixture,
    UserExecuteSuite,
    UserReadsSuite,
    WrittenOutboxSuite,
)
from tests.contract.broken.breakage import Breakage, BrokenStores
from tests.contract.broken.catalogue import CATALOGUES
from tests.contract.broken.control import CONTROLS
from tests.contract.broken.conversations import CONVERSATIONS
from tests.contract.broken.execute import MUTATIONS
from tests.contract.broken.foreign import FOREIGN
from tests.contract.broken.guard import GUARDS
from tests.contract.broken.intents import INTENTS, BrokenControls
from tests.contract.broken.listings import LISTINGS
from tests.contract.broken.outbox import OUTBOXES
from tests.contract.broken.port import PORTS
from tests.contract.broken.reads import READS
from tests.contract.broken.search import SEARCH
from tests.contract.broken.sessions import SESSIONS
from tests.contract.memory_program import Program

STORES = [
    *PORTS.all,
    *READS.all,
    *MUTATIONS.all,
    *GUARDS.all,
    *FOREIGN.all,
    *CONVERSATIONS.all,
    *LISTINGS.all,
    *OUTBOXES.all,
    *SEARCH.all,
    *CATALOGUES.all,
    *SESSIONS.all,
]
CONTROL_STORES = [*CONTROLS.all, *INTENTS.all]


class BrokenBackend(MemoryBackend):
    """A client whose stores are broken."""

    def __init__(self, server: MemoryServer, broken: BrokenStores) -> None:
        super().__init__(server)
        self._broken = broken

    def store(self, domain: str, attempt: int) -> Any:
        return self._broken.opened(super().store(domain, attempt))


@contextmanager
def red(what: str) -> Iterator[None]:
    """The block must fail the way a test fails; a mistake in the breakage itself is none of these."""
    try:
        yield
    except (AssertionError, DatalayerError):
        return
    pytest.fail(f"{what} stayed green")


def store_fixture(breakage: Breakage, test: str) -> StoreFixture:
    server = MemoryServer("broken", SystemClock(), authority_class=breakage.authority)  # type: ignore[arg-type]
    broken = BrokenStores(server)
    breakage.apply(broken)

    async def connect() -> MemoryBackend:
        return BrokenBackend(server, broken)

    return StoreFixture(connect, seed=zlib.crc32(test.encode()), foreign=Program(server), timeout_s=1.0)


@pytest.mark.parametrize("breakage", STORES, ids=str)
async def test_a_broken_store_turns_its_tests_red(breakage: Breakage) -> None:
    for test in breakage.red:
        suite = breakage.suite()
        suite.domain = breakage.domain
        with red(f"{breakage.suite.__name__}.{test} on {breakage.name}"):
            async with store_fixture(breakage, test) as fixture:
                await getattr(suite, test)(fixture)


def control_fixture(breakage: Breakage, test: str) -> ControlFixture:
    broken = BrokenControls(MemoryControlServer("broken", SystemClock()))
    breakage.apply(broken)

    async def connect() -> MemoryControl:
        control: MemoryControl = broken.opened(MemoryControl(broken.server))
        await control.open(create=True)
        return control

    return ControlFixture(connect, seed=zlib.crc32(test.encode()), timeout_s=1.0)


@pytest.mark.parametrize("breakage", CONTROL_STORES, ids=str)
async def test_a_broken_control_store_turns_its_tests_red(breakage: Breakage) -> None:
    for test in breakage.red:
        with red(f"{breakage.suite.__name__}.{test} on {breakage.name}"):
            async with control_fixture(breakage, test) as fixture:
                await getattr(breakage.suite(), test)(fixture)


SUITES = [
    CatalogueExecuteSuite,
    CatalogueReadsSuite,
    ControlSuite,
    ConversationExecuteSuite,
    ConversationReadsSuite,
    ForeignWriterSuite,
    IntentLogSuite,
    ListingExecuteSuite,
    ListingReadsSuite,
    MessageExecuteSuite,
    MessageReadsSuite,
    OutboxSuite,
    PortSuite,
    SearchReadsSuite,
    SessionExecuteSuite,
    SessionReadsSuite,
    UserExecuteSuite,
    UserReadsSuite,
    WrittenOutboxSuite,
]


@pytest.mark.parametrize("suite", SUITES)
def test_every_test_of_a_suite_has_a_breakage(suite: type) -> None:
    tests = {name for name, _ in inspect.getmembers(suite, inspect.isfunction) if name.startswith("test_")}
    breakages = [*STORES, *CONTROL_STORES]
    covered = {name for breakage in breakages if issubclass(suite, breakage.suite) for name in breakage.red}
    assert tests - covered == set()
    assert tests, "a suite has tests"
