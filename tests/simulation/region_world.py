"""One user on shards in two regions, in memory, with calls that yield, fail, or die at any step of their way."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from datalayer.clock import Deadline
from datalayer.control.memory_server import MemoryControlServer
from datalayer.domains.record import Record
from datalayer.domains.users import CreateUser, DeleteUser, UpdateUser
from datalayer.errors import DatalayerError, NotFound, OutcomeUnknown, Unavailable
from datalayer.ids import uuid7_at
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.types import User
from tests.contract.sharded_place import ShardedClient

REGIONS = {"s0": "eu", "s1": "us", "s2": "ap"}
NAMES = ("eu", "us", "ap")
DELAYS = (*(0,) * 30, *(1,) * 20, *(2, 4) * 10, *(10, 40, 120) * 9, 600, 2000, 2000)


class Steps:
    """A clock that goes on with every look at it: the same seed is the same run."""

    def __init__(self) -> None:
        self._us = 1_800_000_000_000_000

    def now_us(self) -> int:
        """Microseconds since 1970."""
        self._us += 3
        return self._us

    def monotonic(self) -> float:
        """Seconds."""
        return self.now_us() / 1e6

    def boottime(self) -> float:
        """Seconds."""
        return self.monotonic()


class Died(BaseException):
    """The process is gone: nothing more of this call happens."""


@dataclass
class World:
    """A user, clients, and what they were told."""

    random: random.Random
    faults: float = 0.0
    """How likely a step dies, or its answer is lost."""
    acked: list[tuple[int, str]] = field(default_factory=list)
    """(version, name) of each update that was answered."""
    asked: set[str] = field(default_factory=set)
    """Names that somebody tried to write."""
    deleted: bool = False
    broken: list[str] = field(default_factory=list)
    _servers: dict[str, MemoryServer] = field(default_factory=dict)
    _control: MemoryControlServer = field(init=False)

    def __post_init__(self) -> None:
        self.clock = Steps()
        self._control = MemoryControlServer("control", self.clock)
        self._servers = {name: MemoryServer(name, self.clock) for name in REGIONS}
        self.id = uuid7_at(self.clock.now_us() - 10_000_000, self.random.getrandbits(62))

    async def client(self, *, careful: bool = False) -> Any:
        """The users of a process of its own; ``careful``: nothing of it fails."""
        members = {name: MemoryBackend(server) for name, server in self._servers.items()}
        client = ShardedClient(members, self._control, self.clock, groups=16, regions=REGIONS)
        await client.open()
        store = client.store("users", 1)
        await store.create()
        if not careful:
            for router in client.places.group_routers.values():
                for name in ("execute", "read"):
                    setattr(router, name, self._torn(getattr(router, name)))
        return store

    def _torn(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def torn(*args: Any, **named: Any) -> Any:
            await self._later()
            lot = self.random.random()
            if lot < self.faults / 3:
                raise Died
            if lot < self.faults / 2:
                raise Unavailable("the shard does not answer")
            answer = await call(*args, **named)
            await self._later()
            if lot > 1 - self.faults / 3:
                raise Died
            if lot > 1 - self.faults / 2:
                raise OutcomeUnknown("no answer came")
            return answer

        return torn

    def _deadline(self) -> Deadline:
        return Deadline(self.clock, 30.0)

    async def _later(self) -> None:
        """Most steps are short; some last as long as all that the others do."""
        for _ in range(self.random.choice(DELAYS)):
            await asyncio.sleep(0)

    async def create(self) -> None:
        """The user, wherever its id lies."""
        store = await self.client(careful=True)
        user = (await store.execute(CreateUser(self.id, "ann", "ann@example.org"), self._deadline())).entity
        self.acked.append((user.version, ""))

    async def rename(self, store: Any, name: str, *, claims: bool) -> None:
        """Change the display name, and with ``claims`` the username, too."""
        self.asked.add(name)
        changes: tuple[tuple[str, str | None], ...] = (("display_name", name),)
        changes += (("username", name),) if claims else ()
        with suppress(NotFound):
            user: User = (await store.execute(UpdateUser(self.id, changes), self._deadline())).entity
            if user.display_name != name:
                self.broken.append(f"was told {user.display_name!r} for {name!r}")
            self.acked.append((user.version, name))

    async def move(self, store: Any, region: str) -> None:
        """To another region."""
        with suppress(NotFound):
            await store.execute(UpdateUser(self.id, (("region", region),)), self._deadline())

    async def delete(self, store: Any) -> None:
        """For good."""
        await store.execute(DeleteUser(self.id), self._deadline())
        self.deleted = True

    async def look(self, store: Any) -> None:
        """Read the user: nothing older than what was answered before."""
        gone, newest = self.deleted, max(version for version, _ in self.acked)
        user = await store.get(self.id, self._deadline())
        self._judge(user, gone, newest, "get")

    async def look_at_all(self, store: Any) -> None:
        """Read the page of all users."""
        gone, newest = self.deleted, max(version for version, _ in self.acked)
        users = await store.page(10, self._deadline())
        if len(users) > 1:
            self.broken.append(f"a page with the user {len(users)} times")
        if users or not self.asked_to_delete:
            self._judge(users[0] if users else None, gone, newest, "page")

    asked_to_delete = False

    def _judge(self, user: User | None, gone: bool, newest: int, how: str) -> None:
        if user is None:
            self.broken.append(f"{how}: the user was not found")
        elif gone and not user.deleted:
            self.broken.append(f"{how}: the user was deleted before")
        elif user.version < newest:
            self.broken.append(f"{how}: {user.display_name!r} is stale")

    async def act(self, call: Awaitable[None]) -> None:
        """Run one call to its end, whatever that is."""
        try:
            await call
        except Died:
            return
        except DatalayerError as error:
            if not self.faults:
                self.broken.append(f"nothing fails, but {error!r}")

    async def end(self) -> list[Record]:
        """Let a writer finish what was begun; the rows that are left, pointers left out. Judges them."""
        store = await self.client(careful=True)
        await self.look(store)
        await self.look_at_all(store)
        found = await store.records.settled(self.id.bytes, self._deadline())
        if found is None:
            self.broken.append("the user is lost")
            return []
        if not found.record.deleted:
            self._judge_content(found.record)
        elif not self.asked_to_delete:
            self.broken.append("nobody deleted the user")
        rows = []
        for group in store.regions.spots(self.id.bytes):
            row = (await (await store.store(group)).fetch([("user", self.id.bytes)])).get(("user", self.id.bytes))
            if row is not None and not store.regions.points(row, group):
                rows.append(row)
        return rows

    def _judge_content(self, row: Record) -> None:
        name = str(row.fields[2])
        newest, expected = max(self.acked)
        if row.version < newest:
            self.broken.append(f"{expected!r} was answered and is lost")
        if name != expected and name not in self.asked:
            self.broken.append(f"{name!r} was never written")
        older = {n for version, n in self.acked if version < newest}
        if name in older:
            self.broken.append(f"{name!r} is back, after {expected!r}")


async def play(seed: int, *, faults: float, deletes: bool = True) -> World:
    """Some processes at once, each with a few calls; all of it drawn from the seed."""
    world = World(random.Random(seed), faults)
    await world.create()
    stores = [await world.client() for _ in range(3)]
    numbers = iter(range(1000))

    async def process(store: Any, calls: list[str]) -> None:
        for call in calls:
            if call == "move":
                await world.act(world.move(store, world.random.choice(NAMES)))
            elif call == "delete":
                world.asked_to_delete = True
                await world.act(world.delete(store))
            elif call == "page":
                await world.act(world.look_at_all(store))
            elif call == "get":
                await world.act(world.look(store))
            else:
                await world.act(world.rename(store, f"name {next(numbers)}", claims=call == "claim"))

    kinds = ["move"] * 4 + ["update"] * 3 + ["claim", "get", "get", "page"] + ["delete"] * (deletes and seed % 2 == 0)
    await asyncio.gather(*(process(store, world.random.choices(kinds, k=4)) for store in stores))
    return world
