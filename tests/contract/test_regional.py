"""The users' suites on slot groups whose shards lie in regions, and what only regions promise."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.control.memory_server import MemoryControlServer
from datalayer.domains.record import Key, Record
from datalayer.domains.users import pointer, to_user
from datalayer.errors import Conflict, Fenced
from datalayer.routing.regional import RegionalJournal, RegionalUsers
from datalayer.routing.sharded import ShardedUsers, apply_parts
from datalayer.routing.shardguard import ShardedJournal
from datalayer.stores.base import Backend, Executed
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.testing.contract import PortSuite, StoreFixture, UserExecuteSuite
from tests.contract.regional_suite import RegionSuite
from tests.contract.sharded_place import ShardedClient
from tests.contract.sharded_suites import ShardedUserGuardSuite, ShardedUserReadsSuite

REGIONS = {"s0": "eu", "s1": "us", "s2": "us"}


class _Program:
    """A program that writes the servers' tables without a client, wherever the row lies."""

    name = "psql"

    def __init__(self, servers: dict[str, MemoryServer]) -> None:
        self._servers = servers

    async def upsert(self, store: Any, record: Record) -> None:
        home = store.regions.home(record.key) if record.kind == "user" else store.group_of(record)
        if home != store.group_of(record):
            server, place = self._at(store, home)
            mark = pointer(record.key, store.regions.of_group(store.group_of(record)), record.version)
            server.foreign_write(place, mark, program=self.name)
        server, place = self._at(store, store.group_of(record))
        server.foreign_write(place, record, program=self.name)

    async def delete(self, store: Any, key: Key) -> None:
        for group in store.groups_of(key[1]):
            server, place = self._at(store, group)
            row = server.table(place).records.get(key)
            if row is not None and not store.regions.points(row, group):
                server.foreign_delete(place, key, program=self.name)

    def _at(self, store: Any, group: Any) -> tuple[MemoryServer, tuple[str, int]]:
        place = store.places.routing_of(group.name).authority
        return self._servers[place.backend.partition("/")[2]], (store.domain, place.attempt)


@asynccontextmanager
async def _connected(seed: int) -> AsyncIterator[StoreFixture]:
    clock = SystemClock()
    control = MemoryControlServer("control", clock)
    servers = {name: MemoryServer(name, clock) for name in REGIONS}

    async def connect() -> Backend:
        members = {name: MemoryBackend(server) for name, server in servers.items()}
        client = ShardedClient(members, control, clock, groups=8, regions=REGIONS)
        await client.open()
        return client

    async with StoreFixture(connect, seed=seed, foreign=_Program(servers), regions=("eu", "us")) as fixture:
        yield fixture


class _Regional:
    @pytest.fixture
    async def fixture(self, seed: int) -> AsyncIterator[StoreFixture]:
        async with _connected(seed) as fixture:
            yield fixture


class TestUsersPort(_Regional, PortSuite):
    domain = "users"


class TestUserReads(_Regional, ShardedUserReadsSuite):
    pass


class TestUserExecute(_Regional, UserExecuteSuite):
    pass


class TestUserGuard(_Regional, ShardedUserGuardSuite):
    pass


class TestRegions(_Regional, RegionSuite):
    pass


def nothing_is_looked_for_after_an_apply(patch: pytest.MonkeyPatch) -> None:
    async def left_over(_self: RegionalUsers, _users: Any) -> dict[Any, list[Record]]:
        return {}

    patch.setattr(RegionalUsers, "_left_over", left_over)


def what_is_left_over_is_looked_for_first(patch: pytest.MonkeyPatch) -> None:
    inner, look = RegionalUsers.apply_at, RegionalUsers._left_over

    async def apply_at(self: RegionalUsers, records: Any, side: Any) -> None:
        marks = await look(self, records)
        await apply_parts(marks, side)
        await inner(self, records, side)

    nothing_is_looked_for_after_an_apply(patch)
    patch.setattr(RegionalUsers, "apply_at", apply_at)


def the_scan_gives_pointers_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RegionalUsers, "scan", ShardedUsers.scan)


def the_journal_gives_pointers_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RegionalJournal, "pending", ShardedJournal.pending)


def a_user_is_settled_where_the_id_lies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RegionalUsers, "groups_of", lambda self, routing: (self.regions.home(routing),))


def a_fence_ends_a_move_that_was_begun(patch: pytest.MonkeyPatch) -> None:
    async def arrive(self: RegionalUsers, leaves: Record, deadline: Deadline) -> Executed:
        there = await self.records.settled(leaves.key, deadline)
        assert there is not None
        return Executed(to_user(there.record), ())

    async def again(self: RegionalUsers, mutation: Any, deadline: Deadline) -> Executed:
        try:
            return await execute(self, mutation, deadline)
        except Fenced:  # as the domain's router does
            return await again(self, mutation, deadline)

    execute = RegionalUsers.execute
    patch.setattr(RegionalUsers, "_arrive", arrive)
    patch.setattr(RegionalUsers, "execute", again)


@pytest.mark.parametrize(
    ("mistake", "test"),
    [
        (nothing_is_looked_for_after_an_apply, "test_versions_of_several_regions_end_as_one_row_in_any_order"),
        (what_is_left_over_is_looked_for_first, "test_versions_of_several_regions_end_as_one_row_whoever_is_faster"),
        (the_scan_gives_pointers_out, "test_the_journal_and_the_scan_know_no_pointers"),
        (the_journal_gives_pointers_out, "test_the_journal_and_the_scan_know_no_pointers"),
        (a_user_is_settled_where_the_id_lies, "test_the_journal_and_the_scan_know_no_pointers"),
        (
            a_fence_ends_a_move_that_was_begun,
            "test_a_fence_after_the_first_step_of_a_move_is_no_conflict_with_it",
        ),
    ],
)
async def test_a_planted_mistake_turns_its_test_red(
    mistake: Callable[[pytest.MonkeyPatch], None], test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    async with _connected(3) as fixture:
        with pytest.raises((AssertionError, Conflict)):
            async with asyncio.timeout(5.0):
                await getattr(TestRegions(), test)(fixture)
