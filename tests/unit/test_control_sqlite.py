"""What the control store on SQLite, and the factory, promise beyond the contract."""

import asyncio
import builtins
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from datalayer.clock import SystemClock
from datalayer.control.base import Control
from datalayer.control.connect import open_control
from datalayer.control.memory import MemoryControl
from datalayer.control.schema import VERSION
from datalayer.errors import ConfigurationError, MissingDependencyError, SchemaAhead, SchemaBehind
from datalayer.routing.route import Place
from datalayer.settings import BackendUrl
from tests.unit.test_control_contract import gate, record

Connect = Callable[[], Control]


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Connect]:
    clients: list[Control] = []
    url = BackendUrl.parse(f"sqlite:///{tmp_path}/control.sqlite")

    def connect() -> Control:
        clients.append(open_control(url, SystemClock()))
        return clients[-1]

    yield connect
    for client in clients:
        await client.close()


async def test_a_store_of_a_newer_version_is_refused_in_one_sentence(connect: Connect, tmp_path: Path) -> None:
    one = connect()
    await one.open(create=True)
    with sqlite3.connect(tmp_path / "control.sqlite") as file:
        file.execute("UPDATE datalayer_control_state SET version = version + 1")
    file.close()
    for create in (False, True):
        with pytest.raises(SchemaAhead) as refused:
            await connect().open(create=create)
        assert str(refused.value) == (
            f"the control store has schema version {VERSION + 1}, but this datalayer knows only {VERSION}"
            " (upgrade datalayer in this process)"
        )


async def test_an_empty_file_is_no_control_store_unless_it_may_be_made(connect: Connect) -> None:
    with pytest.raises(SchemaBehind, match="no tables"):
        await connect().open(create=False)
    await connect().open(create=True)
    await connect().open(create=False)


async def test_an_older_store_is_brought_up_to_date_only_when_told(connect: Connect, tmp_path: Path) -> None:
    await connect().open(create=True)
    with sqlite3.connect(tmp_path / "control.sqlite") as file:
        file.execute("UPDATE datalayer_control_state SET version = version - 1")
    file.close()
    with pytest.raises(SchemaBehind, match=f"version {VERSION - 1}, this datalayer needs {VERSION}"):
        await connect().open(create=False)
    await connect().open(create=True)
    await connect().open(create=False)


async def test_an_unknown_phase_is_refused_not_guessed(connect: Connect, tmp_path: Path) -> None:
    control = connect()
    await control.open(create=True)
    await control.ensure_routes({"messages": Place("main")})
    with sqlite3.connect(tmp_path / "control.sqlite") as file:
        file.execute("UPDATE datalayer_control_routes SET phase = 'quadruple'")
    file.close()
    with pytest.raises(SchemaAhead, match="'quadruple'"):
        await control.routings()


async def test_many_that_make_the_store_at_once_make_one(connect: Connect) -> None:
    clients = [connect() for _ in range(4)]
    await asyncio.gather(*(client.open(create=True) for client in clients))
    assert len({await client.deployment() for client in clients}) == 1


async def test_what_was_acknowledged_is_there_after_reopening(connect: Connect) -> None:
    one = connect()
    await one.open(create=True)
    token, log = await gate(one)
    written = record()
    await log.admit(written, lead=0, create=False, deadline=None)
    deployment = await one.deployment()
    await one.close()
    two = connect()
    await two.open(create=False)
    assert await two.deployment() == deployment
    assert await two.intents("messages", 1, "target").journal.pending(5) == [written]
    assert await two.take("migrate:messages", "bob", 5) is None
    await two.keep("migrate:messages", token.value, 5)


async def test_waiting_for_news_ends_after_its_timeout(connect: Connect) -> None:
    control = connect()
    await control.open(create=True)
    async with asyncio.timeout(5):
        assert await control.wait_news(0, 0.05, poll_s=0.01) == 0


def test_a_product_that_cannot_be_a_control_store_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cassandra"):
        open_control(BackendUrl("cassandra"), SystemClock())


def test_memory_urls_of_one_name_mean_one_server() -> None:
    one = open_control(BackendUrl("memory", database="here"), SystemClock())
    two = open_control(BackendUrl("memory", database="here"), SystemClock())
    other = open_control(BackendUrl("memory", database="there"), SystemClock())
    assert isinstance(one, MemoryControl)
    assert isinstance(two, MemoryControl)
    assert isinstance(other, MemoryControl)
    assert one.server is two.server is not other.server


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("psycopg", "datalayer.stores.postgres"))]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without_psycopg(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".", maxsplit=1)[0] == "psycopg":
            raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_psycopg)
    with pytest.raises(MissingDependencyError, match=r"\[postgres\]"):
        open_control(BackendUrl("postgresql"), SystemClock())
