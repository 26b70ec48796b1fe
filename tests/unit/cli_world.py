"""A command line of its own for each test: three memory backends, one control store, all in this process."""

import asyncio
from collections.abc import Awaitable, Callable
from json import loads
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid5

import pytest
from click.testing import CliRunner, Result

from datalayer.cli.app import app
from datalayer.clock import SystemClock
from datalayer.control import memory_server
from datalayer.ids import NAMESPACE
from datalayer.layer import DataLayer
from datalayer.migrators.opening import open_places
from datalayer.routing.places import Places
from datalayer.settings import load_settings
from datalayer.stores.memory import SERVERS, MemoryServer
from datalayer.stores.memory.server import server_named

R = TypeVar("R")
ROOM = uuid5(NAMESPACE, "a room")
SECRET = "hunter2"
CONFIG = "".join(f'[backends.{name}]\nurl = "memory://"\n' for name in ("main", "other", "third"))


class World:
    """What a test of a command needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "datalayer.toml"
        self.config.write_text(CONFIG)

    def run(self, *args: object, exit_code: int | None = 0) -> Result:
        """Run a command; its exit code must be this one (None: any). No traceback, whatever happens."""
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert exit_code is None or result.exit_code == exit_code, (args, result.exit_code, result.output)
        assert "Traceback" not in result.output
        assert "unexpected" not in result.stderr, result.stderr
        assert SECRET not in result.output
        return result

    def json(self, *args: object, exit_code: int | None = 0) -> dict[str, Any]:
        """The last object that a command with --json prints."""
        found: dict[str, Any] = self.lines(*args, exit_code=exit_code)[-1]
        return found

    def lines(self, *args: object, exit_code: int | None = 0) -> list[dict[str, Any]]:
        """Every object that a command with --json prints."""
        lines = self.run(*args, "--json", exit_code=exit_code).stdout.splitlines()
        return [loads(line) for line in lines]

    def server(self, name: str) -> MemoryServer:
        """The server of a backend."""
        return server_named(name, SystemClock(), "transactional")

    def with_layer(self, use: Callable[[DataLayer], Awaitable[R]]) -> R:
        """What an application does."""

        async def work() -> R:
            async with DataLayer.open(self.config) as layer:
                return await use(layer)

        return asyncio.run(work())

    def with_places(self, use: Callable[[Places], Awaitable[R]]) -> R:
        """What the engine sees."""

        async def work() -> R:
            async with open_places(load_settings(self.config), SystemClock()) as places:
                return await use(places)

        return asyncio.run(work())

    def fill(self, rows: int) -> list[UUID]:
        """Messages in one conversation."""

        async def use(layer: DataLayer) -> list[UUID]:
            sent = [await layer.messages.append(ROOM, sender_id=ROOM, body=f"m{n}") for n in range(rows)]
            return [message.id for message in sent]

        return self.with_layer(use)

    def bodies(self) -> list[str]:
        """The bodies an application reads, oldest first."""

        async def use(layer: DataLayer) -> list[str]:
            page = await layer.messages.history(ROOM, limit=1000, oldest_first=True)
            return [message.body for message in page.items]

        return self.with_layer(use)

    def phase(self) -> str:
        """The phase of the messages domain."""
        routes: list[dict[str, Any]] = self.json("routes")["routes"]
        return str(next(route["phase"] for route in routes if route["domain"] == "messages"))


def fresh_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose servers nobody has used, and that nobody finds afterwards."""
    monkeypatch.chdir(folder)
    for name in ("DATALAYER_CONFIG", "DATALAYER_EMBEDDED", "DATALAYER_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    SERVERS.clear()
    memory_server.SERVERS.clear()
    return World(folder)
