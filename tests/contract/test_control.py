"""The suites of control stores: in memory and in a SQLite file."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from datalayer.clock import SystemClock
from datalayer.control.base import Control
from datalayer.control.memory import MemoryControl, MemoryControlServer
from datalayer.control.store import SqlControl
from datalayer.stores.sqlite.database import SqliteDatabase
from datalayer.testing.contract import ControlFixture, ControlSuite, IntentLogSuite


class _Memory:
    @pytest.fixture
    async def fixture(self, seed: int) -> AsyncIterator[ControlFixture]:
        server = MemoryControlServer("control", SystemClock())

        async def connect() -> Control:
            control = MemoryControl(server)
            await control.open(create=True)
            return control

        async with ControlFixture(connect, seed=seed) as fixture:
            yield fixture


class _Sqlite:
    @pytest.fixture
    async def fixture(self, seed: int, memory_path: Path) -> AsyncIterator[ControlFixture]:
        async def connect() -> Control:
            control = SqlControl(SqliteDatabase(memory_path / "control.db", SystemClock()), SystemClock())
            await control.open(create=True)
            return control

        async with ControlFixture(connect, seed=seed) as fixture:
            yield fixture


class TestMemoryControl(_Memory, ControlSuite):
    pass


class TestMemoryIntents(_Memory, IntentLogSuite):
    pass


class TestSqliteControl(_Sqlite, ControlSuite):
    pass


class TestSqliteIntents(_Sqlite, IntentLogSuite):
    pass
