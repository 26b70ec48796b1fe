"""Each promise over slot groups can fail: a mistake planted in the sharding code turns the tests named beside it red."""

import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from datalayer.clock import SystemClock
from datalayer.control.memory_server import MemoryControlServer
from datalayer.errors import DatalayerError, Unavailable
from datalayer.ids import SLOTS, slot_of
from datalayer.routing import shards
from datalayer.routing.sharded import ShardedUsers
from datalayer.routing.shardguard import ShardedGuard, ShardedJournal
from datalayer.routing.shards import GROUP_TABLES, Group
from datalayer.settings import BackendUrl
from datalayer.stores.base import Backend, GuardState
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.stores.sqlite.backend import create_backend
from datalayer.testing.contract import MessageReadsSuite, PortSuite, StoreFixture
from tests.contract.sharded_place import ShardedClient
from tests.contract.sharded_suites import ShardedMessageGuardSuite, ShardedUserGuardSuite, ShardedUserReadsSuite

Patch = Callable[[pytest.MonkeyPatch], None]


def groups_share_a_guard_number(patch: pytest.MonkeyPatch) -> None:
    own = Group.number.fget  # type: ignore[attr-defined]
    patch.setattr(Group, "numbered", lambda self, attempt: GROUP_TABLES + attempt * SLOTS)
    patch.setattr(Group, "number", property(lambda self: own(self) + self.first))


def groups_share_their_tables(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Group, "number", property(lambda self: GROUP_TABLES + self.attempt * SLOTS))


def pending_is_cut_after_the_first_groups(patch: pytest.MonkeyPatch) -> None:
    async def pending(self: ShardedJournal, limit: int, *, part: tuple[int, int] = (0, 1)) -> Any:
        found = await self._each(self._guard.groups(), lambda _, journal: journal.pending(limit, part=part))
        return [record for records in found for record in records][:limit]

    patch.setattr(ShardedJournal, "pending", pending)


def a_page_ends_with_the_first_group_that_runs_dry(patch: pytest.MonkeyPatch) -> None:
    inner = ShardedUsers._read_all

    async def read_all(self: ShardedUsers, group: Any, call: Any, *rest: Any, **named: Any) -> Any:
        seen: set[Any] = self.__dict__.setdefault("asked", set())
        found = [] if group in seen else await inner(self, group, call, *rest, **named)
        seen.add(group)
        return found

    async def page_of(self: ShardedUsers, *args: Any, **named: Any) -> Any:
        self.__dict__["asked"] = set()
        return await paged(self, *args, **named)

    paged = ShardedUsers.page_of
    patch.setattr(ShardedUsers, "_read_all", read_all)
    patch.setattr(ShardedUsers, "page_of", page_of)


def the_slot_is_of_the_whole_key(patch: pytest.MonkeyPatch) -> None:
    import hashlib  # noqa: PLC0415 - used once

    def slot(key: bytes) -> int:
        digest = hashlib.sha256(key).digest()
        return digest[0] << 4 | digest[1] >> 4

    assert slot(bytes(16)) == slot_of(bytes(16))
    patch.setattr(shards, "slot_of", slot)


def a_missing_journal_of_another_group_is_clean(patch: pytest.MonkeyPatch) -> None:
    async def dirty(self: ShardedJournal, routings: Any, keys: Any = None) -> bool:
        first = self._guard.groups()[:1]
        return any(await self._each(first, lambda _, journal: journal.dirty(routings, keys)))

    patch.setattr(ShardedJournal, "dirty", dirty)


def one_group_is_left_unfenced(patch: pytest.MonkeyPatch) -> None:
    inner = ShardedGuard.groups
    fence = ShardedGuard.fence

    async def fenced(self: ShardedGuard, *args: Any) -> None:
        patch.setattr(ShardedGuard, "groups", lambda self: inner(self)[1:])
        try:
            await fence(self, *args)
        finally:
            patch.setattr(ShardedGuard, "groups", inner)

    patch.setattr(ShardedGuard, "fence", fenced)


def a_refusal_asks_no_fence(patch: pytest.MonkeyPatch) -> None:
    async def silent(_self: ShardedUsers, _user_id: Any, _deadline: Any) -> None:
        """Whatever was read is believed."""

    patch.setattr(ShardedUsers, "_ask_the_fence", silent)


def the_state_is_that_of_one_group(patch: pytest.MonkeyPatch) -> None:
    async def state(self: ShardedGuard) -> GuardState:
        return await (await self.of(self.groups()[0])).state()

    patch.setattr(ShardedGuard, "state", state)


class _Suite(ShardedMessageGuardSuite):
    """Only for its half-open guard: no store of one piece can have one."""

    async def half_open(self, fixture: StoreFixture) -> None:
        store, made, maker = await self._guarded(fixture)
        guard = cast("ShardedGuard", made)
        token = self._token(fixture, store)
        await guard.fence(token, 1, 60.0, 5.0)
        first, *others = store.map.groups
        for group in (first, *others[1:]):
            await (await guard.of(group)).seal(token, 1)
        assert (await guard.state()).fence == "lapsing"
        assert {(await (await guard.of(group)).state()).fence for group in others[1:]} == {"sealed"}
        await (await guard.of(others[0])).open(1)
        assert (await guard.state()).fence == "open"
        states = [(await (await guard.of(group)).state()).fence for group in store.map.groups]
        assert set(states) == {"open"}, "the others stay sealed though the flip can no longer be finished"
        await store.execute(self._new(maker), fixture.deadline())


CONTROLS: list[tuple[Patch, type, tuple[str, ...]]] = [
    (groups_share_a_guard_number, ShardedUserGuardSuite, ("test_journal_sees_every_later_write_and_none_before",)),
    (groups_share_their_tables, PortSuite, ("test_scan_gives_each_record_once_for_any_ranges_and_limits",)),
    (
        pending_is_cut_after_the_first_groups,
        ShardedUserGuardSuite,
        ("test_a_busy_group_keeps_no_other_from_being_replayed",),
    ),
    (
        a_page_ends_with_the_first_group_that_runs_dry,
        ShardedUserReadsSuite,
        ("test_a_page_is_filled_though_most_users_lie_in_one_group",),
    ),
    (the_slot_is_of_the_whole_key, MessageReadsSuite, ("test_history_is_newest_first_and_oldest_first_when_asked",)),
    (
        a_missing_journal_of_another_group_is_clean,
        ShardedMessageGuardSuite,
        ("test_the_journal_of_a_keys_own_group_is_asked",),
    ),
    (
        one_group_is_left_unfenced,
        ShardedMessageGuardSuite,
        ("test_every_group_is_fenced_sealed_and_opened",),
    ),
    (
        a_refusal_asks_no_fence,
        ShardedUserGuardSuite,
        ("test_what_is_refused_by_rows_of_a_fenced_place_is_refused_by_its_fence",),
    ),
    (the_state_is_that_of_one_group, _Suite, ("half_open",)),
]


@asynccontextmanager
async def sharded_fixture(test: str, folder: Path | None) -> AsyncIterator[StoreFixture]:
    """Two members in memory, or in files where the mistake shows in what the members' tables are called."""
    clock = SystemClock()
    control = MemoryControlServer("control", clock)
    servers = {name: MemoryServer(name, clock) for name in ("s0", "s1")}

    async def connect() -> Backend:
        members: dict[str, Any] = {name: MemoryBackend(server) for name, server in servers.items()}
        if folder is not None:
            urls = {name: BackendUrl.parse(f"sqlite:///{folder}/{name}.db") for name in servers}
            members = {n: create_backend(f"shards/{n}", url, pool_max=2, clock=clock) for n, url in urls.items()}
        client = ShardedClient(members, control, clock, groups=4)
        await client.open()
        return client

    async with StoreFixture(connect, seed=zlib.crc32(test.encode()), timeout_s=2.0) as fixture:
        yield fixture


@pytest.mark.parametrize(("patch", "suite", "tests"), CONTROLS, ids=lambda one: getattr(one, "__name__", ""))
async def test_a_mistake_in_the_sharding_turns_its_tests_red(
    patch: Patch, suite: Any, tests: tuple[str, ...], memory_path: Path
) -> None:
    in_files = patch is groups_share_a_guard_number
    for test in tests:
        for name in ("green", "red"):
            (memory_path / name).mkdir()
        async with sharded_fixture(test, memory_path / "green" if in_files else None) as fixture:
            await getattr(suite(), test)(fixture)
        with pytest.MonkeyPatch.context() as planted:
            patch(planted)
            with pytest.raises((AssertionError, DatalayerError)) as red:
                async with sharded_fixture(test, memory_path / "red" if in_files else None) as fixture:
                    await getattr(suite(), test)(fixture)
            assert not isinstance(red.value, Unavailable), "the fixture failed, not the test"


async def test_a_flip_with_an_open_group_leaves_no_other_sealed() -> None:
    async with sharded_fixture("half open", None) as fixture:
        await _Suite().half_open(fixture)
