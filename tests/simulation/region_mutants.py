"""Mistakes in how a user moves between regions. Each must be found by the runs of test_regions."""

from collections.abc import Callable
from typing import Any

import pytest

from datalayer.domains.record import Record
from datalayer.domains.users import Swap, next_version, to_record
from datalayer.errors import Conflict
from datalayer.routing import regional
from datalayer.routing.regional import RegionalRecords, RegionalUsers
from datalayer.routing.regions import Regions

Patch = Callable[[pytest.MonkeyPatch], None]


def a_reader_believes_a_row_that_is_about_to_leave(patch: pytest.MonkeyPatch) -> None:
    async def get(self: RegionalUsers, user_id: Any, deadline: Any) -> Any:
        user = await inner(self, user_id, deadline)
        return user if user is None or not user.deleted else await looked(self, user_id, deadline)

    inner, looked = super(RegionalUsers, RegionalUsers).get, RegionalUsers.get
    patch.setattr(RegionalUsers, "get", get)


def an_update_asks_nobody_where_the_user_lies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(regional, "replace", lambda mutation, **_: mutation)


def a_copy_is_written_over_whatever_is_there(patch: pytest.MonkeyPatch) -> None:
    inner = RegionalRecords.swap_at

    async def swap_at(self: RegionalRecords, group: Any, swap: Swap, deadline: Any) -> Record:
        while True:
            try:
                return await inner(self, group, swap, deadline)
            except Conflict as error:
                record = swap.record
                if record.kind != "user" or record.deleted:
                    raise
                seen = error.current_version or None
                swap = Swap(record._replace(version=max(record.version, (seen or 0) + 2)), seen)

    patch.setattr(RegionalRecords, "swap_at", swap_at)


def _finishing(*, again: bool) -> Callable[..., Any]:
    """A finisher that looks at nothing twice; ``again``: nor whether the user has arrived."""

    async def finish(self: RegionalRecords, leaving: Any, deadline: Any) -> None:
        regions, now = self._users.regions, self._users.places.clock.now_us()
        group, row = leaving
        there, home = self._users.group_of(row), regions.home(row.key)
        seen = (await self.read_at(there, [row.ident], deadline)).get(row.ident)
        if again or seen is None or not regions.lies(seen, there):
            older = row if seen is None or seen.version < row.version else seen
            copy = row._replace(version=next_version(older, now))
            await self.swap_at(there, Swap(copy, None if seen is None else seen.version), deadline)
        if home not in {group, there}:
            mark = (await self.read_at(home, [row.ident], deadline)).get(row.ident)
            if mark is not None and not regions.lies(mark, home):
                await self._point(home, mark, there, now, deadline)
        await self._point(group, row, there, now, deadline)

    return finish


def a_copy_is_made_again_where_the_user_has_arrived(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RegionalRecords, "_finish", _finishing(again=True))


def a_move_is_finished_without_a_second_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RegionalRecords, "_finish", _finishing(again=False))


def a_page_leaves_pointers_out(patch: pytest.MonkeyPatch) -> None:
    inner = RegionalUsers.merged

    def merged(self: RegionalUsers, *args: Any, **options: Any) -> Any:
        return inner(self, *args, **{**options, "pointers": False})

    patch.setattr(RegionalUsers, "merged", merged)


def a_page_believes_a_row_that_is_about_to_leave(patch: pytest.MonkeyPatch) -> None:
    def at_home_among(self: RegionalUsers, met: Any) -> Any:
        lies = [u for g, u in met if not u.deleted and self.regions.lies(to_record(u), g)]
        return next(iter(lies or [u for _, u in met if not u.deleted]), met[0][1].id)

    patch.setattr(RegionalUsers, "_at_home_among", at_home_among)


def a_page_shows_every_live_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RegionalUsers, "page_of", super(RegionalUsers, RegionalUsers).page_of)


def nothing_is_cleared_before_a_user_leaves(patch: pytest.MonkeyPatch) -> None:
    async def clear(_self: RegionalRecords, _lies: Any, _deadline: Any) -> None:
        """What is left over stays."""

    patch.setattr(RegionalRecords, "clear", clear)


def what_lies_elsewhere_is_cleared_without_a_second_look(patch: pytest.MonkeyPatch) -> None:
    async def clear(self: RegionalRecords, lies: Any, deadline: Any) -> None:
        key = lies.record.ident
        for group in self._users.regions.spots(key[1]):
            row = (await self.read_at(group, [key], deadline)).get(key)
            if group != lies.group and row is not None and not row.deleted:
                await self._point(group, row, lies.group, self._users.places.clock.now_us(), deadline)

    patch.setattr(RegionalRecords, "clear", clear)


def a_row_that_leaves_is_the_user_without_a_look_at_the_copy(patch: pytest.MonkeyPatch) -> None:
    inner = Regions.lies
    patch.setattr(Regions, "lies", lambda self, record, group: inner(self, record, group) or not record.deleted)


def a_writer_does_not_finish_moves(patch: pytest.MonkeyPatch) -> None:
    async def settled(self: RegionalRecords, user_id: bytes, deadline: Any) -> Any:
        return (await self.located([("user", user_id)], deadline)).get(("user", user_id))

    patch.setattr(RegionalRecords, "settled", settled)


def the_old_row_is_turned_into_a_pointer_before_there_is_a_copy(patch: pytest.MonkeyPatch) -> None:
    async def finish(self: RegionalRecords, leaving: Any, deadline: Any) -> None:
        now = self._users.places.clock.now_us()
        group, row = leaving
        there = self._users.group_of(row)
        seen = (await self.read_at(there, [row.ident], deadline)).get(row.ident)
        await self._point(group, row, there, now, deadline)
        copy = row._replace(version=next_version(row, now))
        await self.swap_at(there, Swap(copy, None if seen is None else seen.version), deadline)

    patch.setattr(RegionalRecords, "_finish", finish)


MUTANTS: tuple[Patch, ...] = tuple(
    value
    for name, value in dict(globals()).items()
    if callable(value) and getattr(value, "__module__", "") == __name__ and not name.startswith("_")
)
