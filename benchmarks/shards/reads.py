"""A slot looked up, and one user read: through the shard layer, by the bare driver, by ShardedSession, and unsharded."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from secrets import token_bytes
from typing import Any
from uuid import UUID

from benchmarks.figures import Aim, Figure
from benchmarks.peers.bare_users import BareUsers
from benchmarks.peers.greenlets import install_greenlet
from benchmarks.shards.place import Sharded, ids_of
from benchmarks.slices import Call, Slice, beside, interleaved, timed
from datalayer.layer import DataLayer
from datalayer.routing.shards import ShardMap, cut
from datalayer.settings import Settings
from datalayer.types import User

TASKS = (1, 8)
LOOK_UPS = 100_000
LOOK_UP_AIM = Aim(1.0, at_least=False)
GET_AIM = Aim(1.15, at_least=False)
WARM_UP, ORM_WARM_UP = 3000, 300
"""Calls before the clock starts: every connection has prepared the statement of every group of its shard; the ORM has
one statement.
"""
STRIDE = 7919
BARE, ORM, PLAIN = "psycopg, shard by hand", "SQLAlchemy ShardedSession", "datalayer, one database"


def look_ups(groups: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """``ShardMap.group_of`` of a user's id; the loop around it is counted, too."""
    keys = [token_bytes(16) for _ in range(LOOK_UPS)]
    maps = {number: ShardMap(cut("users", 0, number)) for number in groups}
    times: dict[int, list[float]] = {number: [] for number in groups}
    for _ in range(rounds):
        for number, one in maps.items():
            group_of = one.group_of
            began = time.perf_counter()
            for key in keys:
                group_of(key)
            times[number].append(1e6 * (time.perf_counter() - began) / LOOK_UPS)
    told = []
    for number, found in times.items():
        figure = Figure.of(found)
        verdict = {"aim": f"{LOOK_UP_AIM} us", "met": LOOK_UP_AIM.met(figure.median)}
        told.append({"groups": number, "us": figure.document(), **verdict})
    return told


async def gets(
    place: Sharded, plain: Settings, users: Sequence[User], *, calls: int, slices: int
) -> list[dict[str, Any]]:
    """``users.get`` by each of them, in turn."""
    await asyncio.to_thread(install_greenlet)
    from benchmarks.peers.orm_users import OrmUsers  # noqa: PLC0415 - only now can it be imported

    groups = await place.lies()
    async with AsyncExitStack() as stack:
        bare, orm = BareUsers(place.shards, groups, prepare_after=0), OrmUsers(place.shards, groups)
        for peer in (bare, orm):
            stack.push_async_callback(peer.close)
            await peer.open()
        await orm.fill(users)
        ours = await stack.enter_async_context(DataLayer.open(place.settings))
        one = await stack.enter_async_context(DataLayer.open(plain))
        await same_answers(users[3], ours, one, bare, orm)
        sides = [_call(get, ids_of(users)) for get in (ours.users.get, bare.get, orm.get, one.users.get)]
        for side in sides:
            await timed(side, ORM_WARM_UP if side is sides[2] else WARM_UP, max(TASKS))
        told = []
        for tasks in TASKS:
            told += compared(await interleaved(sides, calls, tasks, slices), (BARE, ORM, PLAIN), tasks)
    return told


def compared(found: Sequence[list[Slice]], peers: Sequence[str], tasks: int) -> list[dict[str, Any]]:
    """Ours, the first one, beside each of the others; the bare driver has an aim."""
    told = []
    for name, theirs in zip(peers, found[1:], strict=True):
        entry: dict[str, Any] = beside(found[0], theirs) | {"call": "get", "tasks": tasks, "bare": name}
        if name == BARE:
            entry |= {"aim": str(GET_AIM), "met": GET_AIM.met(entry["ratio"]["median"])}
        told.append(entry)
    return told


async def same_answers(user: User, ours: DataLayer, one: DataLayer, bare: BareUsers, orm: Any) -> None:
    """All sides find the same user, or the comparison means nothing."""
    fields = ("id", "username", "email", "display_name", "status", "deleted", "version", "attributes")
    expected = [getattr(user, field) for field in fields]
    for layer in (ours, one):
        found = await layer.users.get(user.id)
        assert [getattr(found, field) for field in fields] == expected, f"the data layer finds {found}, not {user}"
    row = await orm.get(user.id)
    assert [getattr(row, field) for field in fields] == expected, f"ShardedSession finds {row}, not {user}"
    bare_row = await bare.get(user.id)
    assert (*bare_row[:5], *bare_row[6:]) == tuple(expected), f"psycopg finds {bare_row}, not {user}"


def _call(get: Callable[[UUID], Awaitable[object]], ids: Sequence[UUID]) -> Call:
    async def call(number: int) -> object:
        found = await get(ids[number * STRIDE % len(ids)])
        assert found is not None, "every user that is looked up exists"
        return found

    return call
