"""The soft stores in memory keep the promises, and each promise can be seen broken."""

import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.soft import Beat
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.stores.memory.soft import SoftTable
from tests.contract.soft_suite import SoftFixture, SoftSuite


@pytest.fixture
async def fixture(request: pytest.FixtureRequest) -> AsyncIterator[SoftFixture]:
    server = MemoryServer("m", SystemClock())

    async def connect() -> MemoryBackend:
        backend = MemoryBackend(server)
        await backend.open()
        return backend

    made = SoftFixture(connect, zlib.crc32(request.node.name.encode()))
    yield made
    await made.close()


class TestMemory(SoftSuite):
    """Keeps them all."""


def _last_arrival_wins(self: SoftTable, beat: Beat) -> None:
    others = tuple(one for one in self.entries.get(beat.key, ()) if one.item != beat.item)
    self.entries[beat.key] = (beat, *others)


def _always_hint(self: SoftTable, beat: Beat) -> None:
    _put(self, beat)
    for ear in self.ears:
        ear.hint(beat.key)


def _forgets_leaves(self: SoftTable, beat: Beat) -> None:
    if beat.expires_us:
        _put(self, beat)
    else:
        self.entries.pop(beat.key, None)


_put = SoftTable.put


@pytest.mark.parametrize(
    ("broken", "tests"),
    [
        (
            _last_arrival_wins,
            [
                "any_order_any_number_of_times_ends_as_the_rule_says",
                "of_equal_versions_the_later_end_stays",
                "a_late_beat_does_not_bring_back_who_has_left",
                "apply_keeps_what_is_newer",
                "concurrent_beats_of_two_clients_leave_the_newest",
                "items_that_ended_long_ago_are_forgotten_but_the_newest",
                "beyond_a_hundred_items_the_oldest_give_way",
            ],
        ),
        (_forgets_leaves, ["a_late_beat_does_not_bring_back_who_has_left"]),
        (_always_hint, ["who_listens_is_told_where_to_look"]),
    ],
)
async def test_a_broken_store_is_noticed(
    monkeypatch: pytest.MonkeyPatch, fixture: SoftFixture, broken: Any, tests: list[str]
) -> None:
    monkeypatch.setattr(SoftTable, "put", broken)
    for test in tests:
        with pytest.raises((AssertionError, TimeoutError)):
            await getattr(SoftSuite(), f"test_{test}")(fixture)
