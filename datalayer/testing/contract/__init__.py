"""Contract suites for the ports, one class each, to be run against any store, ours or yours.

    import pytest
    from datalayer.testing.contract import PortSuite, StoreFixture

    pytest.register_assert_rewrite("datalayer.testing.contract")       # in conftest.py, before the import

    class TestMessagesPort(PortSuite):
        @pytest.fixture
        async def fixture(self):
            async with StoreFixture(connect=open_my_backend, seed=1) as fixture:
                yield fixture

Each test is one claim; it makes all its data from ``fixture.seed`` and drops the places that it made. A suite that stays
green on a broken store is worthless, so each check has a control (see tests/contract/test_suite_controls.py here).
"""

from datalayer.testing.contract.catalogue import CatalogueExecuteSuite, CatalogueReadsSuite
from datalayer.testing.contract.control import ControlSuite
from datalayer.testing.contract.control_fixture import ControlFixture
from datalayer.testing.contract.conversations import ConversationExecuteSuite, ConversationReadsSuite
from datalayer.testing.contract.execute import MessageExecuteSuite, UserExecuteSuite
from datalayer.testing.contract.fixture import Foreign, StoreFixture, outcomes, refused
from datalayer.testing.contract.foreign import ForeignWriterSuite
from datalayer.testing.contract.guard import GuardSuite
from datalayer.testing.contract.intents import IntentLogSuite
from datalayer.testing.contract.listings import ListingExecuteSuite, ListingReadsSuite
from datalayer.testing.contract.objects import ObjectsFixture, ObjectsSuite
from datalayer.testing.contract.outbox import OutboxSuite, WrittenOutboxSuite
from datalayer.testing.contract.port import PortSuite
from datalayer.testing.contract.reads import MessageReadsSuite, UserReadsSuite
from datalayer.testing.contract.search import SearchReadsSuite
from datalayer.testing.contract.sessions import SessionExecuteSuite, SessionReadsSuite
from datalayer.testing.contract.values import Maker

__all__ = [
    "CatalogueExecuteSuite",
    "CatalogueReadsSuite",
    "ControlFixture",
    "ControlSuite",
    "ConversationExecuteSuite",
    "ConversationReadsSuite",
    "Foreign",
    "ForeignWriterSuite",
    "GuardSuite",
    "IntentLogSuite",
    "ListingExecuteSuite",
    "ListingReadsSuite",
    "Maker",
    "MessageExecuteSuite",
    "MessageReadsSuite",
    "ObjectsFixture",
    "ObjectsSuite",
    "OutboxSuite",
    "PortSuite",
    "SearchReadsSuite",
    "SessionExecuteSuite",
    "SessionReadsSuite",
    "StoreFixture",
    "UserExecuteSuite",
    "UserReadsSuite",
    "WrittenOutboxSuite",
    "outcomes",
    "refused",
]
