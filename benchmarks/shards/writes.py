"""Users created and renamed: by claims over shards, in one database's transaction, and by three statements of the driver.

For information: over shards a name is unique at the price of reading and swapping each record where it lies; the bare
driver's statements see only whether the name is taken in its own slot group, and leave a half-made user behind when
their program dies between them.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

from benchmarks.peers.bare_users import BareUsers
from benchmarks.shards.place import Sharded
from benchmarks.shards.reads import TASKS
from benchmarks.slices import Call, beside, interleaved
from datalayer.clock import SystemClock
from datalayer.ids import IdSource, id_time_us
from datalayer.layer import DataLayer
from datalayer.settings import Settings
from datalayer.types import User

NAIVE, PLAIN = "psycopg, three statements", "datalayer, one database"
PSYCOPG_DEFAULT = 5
PLAN = {"locale": "en", "plan": "free"}


@dataclass(slots=True)
class Names:
    """Names that nobody has, and who is renamed next: every call is about a user of its own."""

    prefix: str
    users: Sequence[User]
    numbers: Any = field(default_factory=count)
    now: dict[UUID, str] = field(default_factory=dict)

    def new(self) -> str:
        return f"{self.prefix}-{next(self.numbers)}"

    def next(self, number: int) -> tuple[UUID, str, str]:
        """A user, the name it has, and the one it shall have."""
        user = self.users[number % len(self.users)]
        old, new = self.now.get(user.id, user.username), self.new()
        self.now[user.id] = new
        return user.id, old, new


async def writes(
    place: Sharded, plain: Settings, users: Sequence[User], *, calls: int, slices: int
) -> list[dict[str, Any]]:
    """Both calls by each of them, in turn. Each side of the shards renames users of its own."""
    half = len(users) // 2
    async with AsyncExitStack() as stack:
        bare = BareUsers(place.shards, await place.lies(), prepare_after=PSYCOPG_DEFAULT)
        stack.push_async_callback(bare.close)
        await bare.open()
        ours = await stack.enter_async_context(DataLayer.open(place.settings))
        one = await stack.enter_async_context(DataLayer.open(plain))
        names = (Names("claimed", users[:half]), Names("naive", users[half:]), Names("plain", users[:half]))
        sides = {
            "create": [_create(ours, names[0]), _bare_create(bare, names[1]), _create(one, names[2])],
            "rename": [_rename(ours, names[0]), _bare_rename(bare, names[1]), _rename(one, names[2])],
        }
        told = []
        for name, calls_of in sides.items():
            for tasks in TASKS:
                found = await interleaved(calls_of, calls, tasks, slices)
                for peer, theirs in zip((NAIVE, PLAIN), found[1:], strict=True):
                    told.append(beside(found[0], theirs) | {"call": name, "tasks": tasks, "bare": peer})
    return told


def _create(layer: DataLayer, names: Names) -> Call:
    async def create(_: int) -> object:
        name = names.new()
        return await layer.users.create(username=name, email=f"{name}@example.org", attributes=PLAN)

    return create


def _rename(layer: DataLayer, names: Names) -> Call:
    async def rename(number: int) -> object:
        ident, _, new = names.next(number)
        return await layer.users.update(ident, username=new)

    return rename


def _bare_create(bare: BareUsers, names: Names) -> Call:
    ids = IdSource(SystemClock())

    async def create(_: int) -> None:
        ident, name = ids.uuid7(), names.new()
        made = id_time_us(ident)
        await bare.create(User(ident, name, f"{name}@example.org", "", "active", made, False, made, PLAN))

    return create


def _bare_rename(bare: BareUsers, names: Names) -> Call:
    clock = SystemClock()

    async def rename(number: int) -> None:
        ident, old, new = names.next(number)
        await bare.rename(ident, old, new, clock.now_us())

    return rename
