"""What a call of the repository costs beside the same statements through the bare driver, at rest and in a migration."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from benchmarks.figures import Aim
from benchmarks.peers.bare import LIMIT, Bare
from benchmarks.peers.bare_cassandra import BareCassandra
from benchmarks.peers.bare_postgres import BarePostgres
from benchmarks.peers.bare_sqlite import BareSqlite
from benchmarks.slices import Call, beside, interleaved
from benchmarks.stage import PEER_ATTEMPT, Ground, create_schemas, opened, settings_of
from datalayer.clock import SystemClock
from datalayer.domains.record import Record
from datalayer.ids import id_time_us, uuid7_at
from datalayer.layer import DataLayer
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.settings import Settings

CALLS = 200
SLICES_PER_ROUND = 3
CONVERSATIONS = 100
MESSAGES_EACH = 60
BODY = "<p>" + "a word or two of a message " * 6 + "</p>"
TASKS = (1, 8)
AT_REST = Aim(1.15, at_least=False)
SENDER = UUID(int=7, version=4)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rows:
    """What is stored before the calls: conversations and the messages of each, the same on both sides."""

    keys: tuple[tuple[UUID, tuple[UUID, ...]], ...]

    @classmethod
    def made(cls, now_us: int, seed: int = 5) -> "Rows":
        chance = random.Random(seed)
        rooms = []
        for _ in range(CONVERSATIONS):
            times = sorted(chance.randrange(now_us - 3_600_000_000, now_us - 1_000_000) for _ in range(MESSAGES_EACH))
            idents = tuple(uuid7_at(at_us, chance.getrandbits(62)) for at_us in times)
            rooms.append((UUID(int=chance.getrandbits(128), version=4), idents))
        return cls(tuple(rooms))

    def records(self) -> list[Record]:
        fields = (SENDER.bytes, BODY, "text", None, b"", None, "{}")
        return [
            Record("message", room.bytes + ident.bytes, id_time_us(ident), False, fields)
            for room, idents in self.keys
            for ident in idents
        ]

    def pick(self, number: int) -> tuple[UUID, UUID]:
        room, idents = self.keys[number % len(self.keys)]
        return room, idents[number * 7 % len(idents)]


@dataclass(frozen=True, slots=True)
class Setting:
    """A store under test: its settings, what stands beside it, and where it can move to."""

    name: str
    settings: Settings
    source: str
    target: str
    bares: tuple[tuple[str, Bare], ...]


async def measure(ground: Ground, calls: int, rounds: int, say: Say) -> dict[str, Any]:
    """Every store: at rest, in dual and armed."""
    stores = {}
    for make in (postgres, cassandra, sqlite):
        setting = await make(ground)
        stores[setting.name] = await _store(setting, calls, rounds, say)
    return {"calls_a_slice": calls, "slices": rounds * SLICES_PER_ROUND, "tasks": list(TASKS), "stores": stores}


async def postgres(ground: Ground) -> Setting:
    stage = await ground.stage(copy=False)
    bare = BarePostgres(stage.main, PEER_ATTEMPT)
    return Setting("Postgres", stage.settings, "main", "cassandra", (("psycopg", bare),))


async def cassandra(ground: Ground) -> Setting:
    stage = await ground.stage(copy=False)
    settings = settings_of(
        {"main": stage.main, "cassandra": stage.cassandra}, stage.main, messages="cassandra", users="main"
    )
    bare = BareCassandra(stage.cassandra_url, PEER_ATTEMPT)
    return Setting("Cassandra", settings, "cassandra", "main", (("cassandra-driver", bare),))


async def sqlite(ground: Ground) -> Setting:
    path = ground.folder / f"{uuid4().hex[:6]}.sqlite"
    urls = {"main": f"sqlite:///{path}", "copy": f"sqlite:///{path}.copy"}
    settings = settings_of(urls, f"sqlite:///{path}.control")
    await create_schemas(settings)
    bares = (
        ("sqlite3 by to_thread", BareSqlite(path, PEER_ATTEMPT, threads=True)),
        ("sqlite3 on the loop", BareSqlite(path, PEER_ATTEMPT, threads=False)),
    )
    return Setting("SQLite", settings, "main", "copy", bares)


async def _store(setting: Setting, calls: int, rounds: int, say: Say) -> list[dict[str, Any]]:
    rows = Rows.made(SystemClock().now_us())
    told: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_filled(setting, rows))
        for _, bare in setting.bares:
            await bare.open()
            stack.push_async_callback(bare.close)
        layer = await stack.enter_async_context(DataLayer.open(setting.settings))
        for phase in ("rest", "dual", "armed"):
            await _bring_to(setting, phase)
            told += await _phase(setting, layer, rows, phase, calls=calls, slices=rounds * SLICES_PER_ROUND)
            say(f"repository: {setting.name} in {phase} measured")
        await _take_back(setting)
    return told


@asynccontextmanager
async def _filled(setting: Setting, rows: Rows) -> AsyncIterator[None]:
    """The same rows in our table and in the peer's."""
    async with opened(setting.settings, setting.source) as backends:
        peer = backends[setting.source].store("messages", PEER_ATTEMPT)
        await peer.create()
        records = rows.records()
        for store in (backends[setting.source].store("messages", 0), peer):
            for at in range(0, len(records), 1000):
                await store.apply(records[at : at + 1000])
    yield


async def _bring_to(setting: Setting, phase: str) -> None:
    if phase == "rest":
        return
    until = Until.DUAL if phase == "dual" else Until.ARMED
    async with open_places(setting.settings, SystemClock()) as places:
        options = MigrateOptions(until=until, yes=True)
        await Coordinator(places, "messages", holder="benchmark", options=options).migrate(setting.target)


async def _take_back(setting: Setting) -> None:
    async with open_places(setting.settings, SystemClock()) as places:
        await Coordinator(places, "messages", holder="benchmark").cancel()


# --- one phase -----------------------------------------------------------------------------------------------------


def calls_of(layer: DataLayer, rows: Rows) -> dict[str, Call]:
    """Ours, by name."""

    async def append(number: int) -> object:
        return await layer.messages.append(rows.pick(number)[0], sender_id=SENDER, body=BODY)

    async def get(number: int) -> object:
        return await layer.messages.get(*rows.pick(number))

    async def history(number: int) -> object:
        return (await layer.messages.history(rows.pick(number)[0], limit=LIMIT)).items

    return {"append": append, "get": get, f"history({LIMIT})": history}


def bare_calls_of(bare: Bare, rows: Rows) -> dict[str, Call]:
    """The driver's, by name."""
    return {
        "append": lambda number: bare.append(rows.pick(number)[0], SENDER, BODY),
        "get": lambda number: bare.get(*rows.pick(number)),
        f"history({LIMIT})": lambda number: bare.history(rows.pick(number)[0]),
    }


async def _phase(
    setting: Setting, layer: DataLayer, rows: Rows, phase: str, *, calls: int, slices: int
) -> list[dict[str, Any]]:
    ours = calls_of(layer, rows)
    bares = {name: bare_calls_of(bare, rows) for name, bare in setting.bares}
    await _same_answers(ours, bares)
    told = []
    for name, call in ours.items():
        for tasks in TASKS:
            sides: list[Call] = [call, *(bare[name] for bare in bares.values())]
            found = await interleaved(sides, calls, tasks, slices)
            for bare_name, theirs in zip(bares, found[1:], strict=True):
                told.append(
                    beside(found[0], theirs) | {"call": name, "tasks": tasks, "phase": phase, "bare": bare_name}
                )
                if phase == "rest":
                    told[-1] |= {"aim": str(AT_REST), "met": AT_REST.met(told[-1]["ratio"]["median"])}
    return told


async def _same_answers(ours: dict[str, Call], bares: dict[str, dict[str, Call]]) -> None:
    """Both sides build equal messages, or the comparison means nothing."""
    expected = await ours["get"](3)
    for name, calls in bares.items():
        found = await calls["get"](3)
        assert found == expected, f"{name} builds {found}, the data layer {expected}"
        history = await calls[f"history({LIMIT})"](3)
        assert isinstance(history, list), "a history is a list"
        assert len(history) == LIMIT, f"{name} finds {len(history)} of {LIMIT} messages"
