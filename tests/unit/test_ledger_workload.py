"""A workload in one process over the memory store: what it does, that it proves clean, and that a mistake shows."""

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from datalayer.control import memory_server as control
from datalayer.layer import DataLayer
from datalayer.stores.memory import server as stores
from datalayer.testing import oracle
from datalayer.testing.ledger import Board, Kind, Ledger, Op, read_ledgers
from datalayer.testing.probe import read_everything, record_baseline
from datalayer.testing.rooms import Rooms, room_sizes
from datalayer.testing.workload import Pace, Workload, parse_mix, preload
from datalayer.types import Message

MESSAGES = 400


@pytest.fixture(autouse=True)
def no_servers_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory server lives as long as its process, by name: each test gets new ones."""
    monkeypatch.setattr(stores, "SERVERS", {})
    monkeypatch.setattr(control, "SERVERS", {})


def configured(folder: Path) -> Path:
    config = folder / "datalayer.toml"
    config.write_text('[backends.main]\nurl = "memory://"\n[control]\nurl = "memory://"\n')
    return config


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[DataLayer]:
    async with DataLayer.open(configured(folder)) as layer:
        yield layer


async def work(messages: Any, ledgers: Path, seconds: float = 0.6) -> list[Workload]:
    """All roles for so long, and on a slow machine until each has done something (10 s at most)."""
    rooms, stop = Rooms(1, MESSAGES), asyncio.Event()
    processes: list[Workload] = []
    for name in ("writer", "editor", "deleter", "reader"):
        ledger, board = Ledger.create(ledgers, name), Board(ledgers, own=name)
        processes.append(Workload(messages, ledger, board, rooms, mix=parse_mix(name), rng=random.Random(name)))
    ending = asyncio.create_task(_end(stop, processes, seconds))
    await asyncio.gather(*(process.run(stop, Pace(0, 3)) for process in processes))
    await ending
    return processes


async def _end(stop: asyncio.Event, processes: list[Workload], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() - began < 10.0:
        await asyncio.sleep(0.05)
        if loop.time() - began >= seconds and enough(processes):
            break
    stop.set()


def enough(processes: list[Workload]) -> bool:
    counts = sum((process.counts for process in processes), start=type(processes[0].counts)())
    return all(counts[name] > 20 for name in ("append", "edit", "delete", "get", "history"))


async def fill(layer: DataLayer, ledgers: Path) -> int:
    store = layer.router("messages").route.authority
    return await preload(store, Ledger.create(ledgers, "preload"), Rooms(1, MESSAGES), random.Random(1))


async def test_a_workload_over_a_correct_store_is_clean_and_touches_everything(tmp_path: Path) -> None:
    async with opened(tmp_path) as layer:
        preloaded = await fill(layer, tmp_path / "ledger")
        processes = await work(layer.messages, tmp_path / "ledger")
        alive = await read_everything(layer.messages, tmp_path / "ledger")
    findings = oracle.check(read_ledgers(tmp_path / "ledger"))
    assert [str(violation) for violation in findings.violations] == []
    assert (findings.clean, findings.errors) == (True, {})
    counts = sum((process.counts for process in processes), start=type(processes[0].counts)())
    assert enough(processes)
    assert alive == preloaded + counts["append"] - len({e.key for e in deletes(tmp_path)})


def deletes(folder: Path) -> list[Any]:
    return [e for e in read_ledgers(folder / "ledger") if e.kind is Kind.ACK and e.op is Op.DELETE]


class Forgetful:
    """Messages that drop every ninth edit after saying yes, and read from a copy that lags."""

    def __init__(self, layer: DataLayer) -> None:
        self._layer = layer
        self._edits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer.messages, name)

    async def edit(self, conversation_id: UUID, id: UUID, *, body: str, attributes: Any) -> Message:
        self._edits += 1
        if self._edits % 9:
            return await self._layer.messages.edit(conversation_id, id, body=body, attributes=attributes)
        stored = await self._layer.messages.get(conversation_id, id)
        assert stored is not None
        fields = {name: getattr(stored, name) for name in Message.__slots__}
        return Message(**{**fields, "body": body, "attributes": attributes, "version": stored.version + 2})


async def test_a_store_that_forgets_an_acknowledged_edit_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path) as layer:
        await fill(layer, tmp_path / "ledger")
        await work(Forgetful(layer), tmp_path / "ledger")
        await read_everything(layer.messages, tmp_path / "ledger")
    assert oracle.check(read_ledgers(tmp_path / "ledger")).count("lost") > 0


async def test_messages_from_before_the_workload_are_judged_too(tmp_path: Path) -> None:
    room = UUID(int=7)
    async with opened(tmp_path) as layer:
        for number in range(5):
            await layer.messages.append(room, sender_id=UUID(int=1), body=f"old {number}")
        ledger = Ledger.create(tmp_path / "ledger", "baseline")
        assert await record_baseline(layer.messages, ledger, [room]) == 5
        first = (await layer.messages.history(room)).items[0]
        await read_everything(layer.messages, tmp_path / "ledger", name="final-1")
        assert oracle.check(read_ledgers(tmp_path / "ledger")).clean
        await layer.messages.delete(room, first.id)
        await read_everything(layer.messages, tmp_path / "ledger", name="final-2")
    assert oracle.check(read_ledgers(tmp_path / "ledger")).count("lost") == 1


@pytest.mark.parametrize("messages", [2_000, 20_000, 52_000])
def test_rooms_have_the_shape_of_a_real_chat(messages: int) -> None:
    sizes = room_sizes(messages)
    assert messages <= sum(sizes) <= 1.08 * messages
    assert sizes[len(sizes) // 2] <= 8
    assert sizes[0] > (1000 if messages >= 20_000 else 100)


async def test_a_workload_process_says_that_it_serves_and_ends_with_its_input(tmp_path: Path) -> None:
    config = configured(tmp_path)
    words = ["-m", "datalayer.testing.workload", "--config", str(config), "--ledger", str(tmp_path / "ledger")]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, "--name", "w1", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert json.loads(await process.stdout.readline())["ready"] == "w1"
        process.stdin.close()
        assert json.loads(await process.stdout.readline())["counts"].keys() <= {"append", "edit", "delete"}
        assert await process.wait() == 0
