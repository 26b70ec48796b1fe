"""Broken journals and fences."""

import asyncio
from collections.abc import Sequence
from typing import Any

from datalayer.domains.messages import Delete
from datalayer.domains.record import Key, Record
from datalayer.domains.users import DeleteUser
from datalayer.errors import DatalayerError, Fenced, LostLease, MigrationError, Quarantine, StaleRoute
from datalayer.stores.base import Executed, Token
from datalayer.stores.memory import MemoryServer
from datalayer.testing.contract import GuardSuite
from tests.contract.broken.breakage import BrokenStores, Registry, replace
from tests.contract.broken.port import overwrite

GUARDS = Registry()
breaks = GUARDS.breaks
Place = tuple[str, int]
LATE_S = 0.1


def on_journal(broken: BrokenStores, name: str, make: Any) -> None:
    """Change one method of every journal."""
    broken.each_guard(lambda guard: replace(guard.journal, name, make))


def on_guard(broken: BrokenStores, name: str, make: Any) -> None:
    """Change one method of every guard; ``make`` is given the old one."""
    broken.each_guard(lambda guard: replace(guard, name, make))


def sides(server: MemoryServer, place: Place) -> dict[int, Any]:
    return server._sides.get(place, {})


# --- the journal ---------------------------------------------------------------------------------------------------


@breaks(GuardSuite, "test_journal_sees_every_later_write_and_none_before")
@breaks(GuardSuite, "test_journal_sees_every_later_write_and_none_before", domain="users")
def journal_misses_deletes(broken: BrokenStores) -> None:
    def make(journal: Any) -> Any:
        return lambda place, record: None if record.deleted else journal(place, record)

    replace(broken.server, "_journal", make)


@breaks(GuardSuite, "test_journal_names_no_key_of_a_write_that_was_refused_or_changed_nothing")
def journal_notes_what_was_asked(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def noted(place: Place, mutation: Any) -> Executed:
            try:
                done: Executed = execute(place, mutation)
            except DatalayerError:
                key = ("message", mutation.conversation_id.bytes + mutation.id.bytes)
                for side in sides(broken.server, place).values():
                    side.journal[key] = 1
                raise
            return done

        return noted

    replace(broken.server, "execute", make)


@breaks(GuardSuite, "test_install_under_writers_misses_no_write_that_began_later")
def journal_is_on_a_little_late(broken: BrokenStores) -> None:
    def make(install: Any) -> Any:
        async def early(token: Any, *, sealed: bool) -> None:
            asyncio.get_running_loop().call_later(LATE_S, lambda: asyncio.ensure_future(install(token, sealed=sealed)))

        return early

    on_guard(broken, "install", make)


@breaks(GuardSuite, "test_journal_holds_one_entry_for_a_key_however_often_it_is_written")
def journal_is_a_log(broken: BrokenStores) -> None:
    writes: list[Record] = []

    def make(journal: Any) -> Any:
        def logged(place: Place, record: Record) -> None:
            writes.append(record)
            journal(place, record)

        return logged

    replace(broken.server, "_journal", make)
    on_journal(broken, "backlog", lambda _: _answer(lambda: len(writes)))


def _answer(value: Any) -> Any:
    async def answer(*_args: Any, **_options: Any) -> Any:
        return value()

    return answer


@breaks(GuardSuite, "test_settle_keeps_a_key_that_was_written_since")
@breaks(GuardSuite, "test_settle_keeps_a_key_that_was_written_since", domain="users")
def settle_does_not_compare(broken: BrokenStores) -> None:
    def settle(place: Place, attempt: int, seen: Sequence[Record]) -> None:
        for record in seen:
            broken.server.live_side(place, attempt).journal.pop(record.ident, None)

    replace(broken.server, "settle", lambda _: settle)


@breaks(GuardSuite, "test_settle_keeps_a_key_that_was_written_since")
def settle_takes_later_versions_for_this_one(broken: BrokenStores) -> None:
    def settle(place: Place, attempt: int, seen: Sequence[Record]) -> None:
        journal = broken.server.live_side(place, attempt).journal
        for record in seen:
            if journal.get(record.ident, record.version) <= record.version:
                journal.pop(record.ident, None)

    replace(broken.server, "settle", lambda _: settle)


@breaks(GuardSuite, "test_settle_keeps_a_key_that_was_written_since")
def settle_compares_the_row_as_it_is_now(broken: BrokenStores) -> None:
    """By the row taken: what is read back when settling is compared, not what was applied."""

    def make(settle: Any) -> Any:
        def rereading(place: Place, attempt: int, seen: Sequence[Record]) -> None:
            records = broken.server.table(place).records
            settle(place, attempt, [records[record.ident] for record in seen if record.ident in records])

        return rereading

    replace(broken.server, "settle", make)


@breaks(GuardSuite, "test_pending_is_bounded_and_its_parts_cover_the_journal")
def pending_has_no_bound(broken: BrokenStores) -> None:
    def make(pending: Any) -> Any:
        async def everything(_limit: int, **options: Any) -> Any:
            return await pending(1_000_000, **options)

        return everything

    on_journal(broken, "pending", make)


@breaks(GuardSuite, "test_pending_is_bounded_and_its_parts_cover_the_journal")
def pending_gives_everybody_the_same(broken: BrokenStores) -> None:
    def make(pending: Any) -> Any:
        async def whole(limit: int, **_options: Any) -> Any:
            return await pending(limit)

        return whole

    on_journal(broken, "pending", make)


@breaks(GuardSuite, "test_pending_reaches_every_key_when_pages_are_settled")
def settle_takes_a_neighbour_with_it(broken: BrokenStores) -> None:
    def make(settle: Any) -> Any:
        def careless(place: Place, attempt: int, seen: Sequence[Record]) -> None:
            settle(place, attempt, seen)
            journal = broken.server.live_side(place, attempt).journal
            for key in list(journal)[:1]:
                del journal[key]

        return careless

    replace(broken.server, "settle", make)


@breaks(GuardSuite, "test_dirty_is_asked_by_routing_key_and_by_key")
def dirty_looks_at_one_routing_key(broken: BrokenStores) -> None:
    def make(dirty: Any) -> Any:
        async def first(routings: Sequence[bytes], keys: Sequence[Key] | None = None) -> Any:
            return await dirty(routings[:1], keys)

        return first

    on_journal(broken, "dirty", make)


@breaks(GuardSuite, "test_dirty_is_asked_by_routing_key_and_by_key")
def dirty_ignores_the_keys(broken: BrokenStores) -> None:
    def make(dirty: Any) -> Any:
        async def by_routing(routings: Sequence[bytes], _keys: Sequence[Key] | None = None) -> Any:
            return await dirty(routings)

        return by_routing

    on_journal(broken, "dirty", make)


@breaks(GuardSuite, "test_a_missing_journal_is_a_stale_route_and_never_clean")
def a_missing_journal_is_clean(broken: BrokenStores) -> None:
    def make(dirty: Any) -> Any:
        async def lenient(*args: Any) -> bool:
            try:
                return bool(await dirty(*args))
            except StaleRoute:
                return False

        return lenient

    on_journal(broken, "dirty", make)


@breaks(GuardSuite, "test_install_again_keeps_journal_and_fence")
def install_begins_again(broken: BrokenStores) -> None:
    def make(install: Any) -> Any:
        def afresh(place: Place, attempt: int, token: Any, *, sealed: bool) -> None:
            broken.server.remove(place, attempt, token, keep_fence=False)
            install(place, attempt, token, sealed=sealed)

        return afresh

    replace(broken.server, "install", make)


@breaks(GuardSuite, "test_two_clients_see_one_journal")
def journals_are_the_clients_own(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        written: list[Record] = []

        def make(execute: Any) -> Any:
            async def remembered(mutation: Any, deadline: Any) -> Any:
                done = await execute(mutation, deadline)
                written.extend(done.records)
                return done

            return remembered

        replace(store, "execute", make)
        broken_guards = store.guard

        def guard(attempt: int) -> Any:
            made = broken_guards(attempt)
            replace(made.journal, "pending", lambda _: _answer(lambda: list(written)))
            return made

        replace(store, "guard", lambda _: guard)

    broken.each_store(change)


# --- the replayer's apply ------------------------------------------------------------------------------------------


@breaks(GuardSuite, "test_apply_of_the_replayer_is_gated_and_not_journalled")
def replayer_is_journalled(broken: BrokenStores) -> None:
    def make(apply_as: Any) -> Any:
        def noted(place: Place, attempt: int, records: Sequence[Record]) -> None:
            apply_as(place, attempt, records)
            for record in records:
                broken.server._journal(place, record)

        return noted

    replace(broken.server, "apply_as", make)


@breaks(GuardSuite, "test_apply_of_the_replayer_is_gated_and_not_journalled")
def replayer_overwrites(broken: BrokenStores) -> None:
    replace(broken.server, "put", lambda _: overwrite)


@breaks(GuardSuite, "test_apply_of_the_replayer_passes_the_fence")
def fence_stops_the_replayer(broken: BrokenStores) -> None:
    def make(apply_as: Any) -> Any:
        def fenced(place: Place, attempt: int, records: Sequence[Record]) -> None:
            broken.server._refuse_fenced(place)
            apply_as(place, attempt, records)

        return fenced

    replace(broken.server, "apply_as", make)


@breaks(GuardSuite, "test_apply_of_the_replayer_quarantines_and_lands_the_rest")
def replayer_lands_all_or_nothing(broken: BrokenStores) -> None:
    def make(apply_as: Any) -> Any:
        def strict(place: Place, attempt: int, records: Sequence[Record]) -> None:
            rejected = {record.ident: reason for record in records if (reason := broken.server.check(record))}
            if rejected:
                raise Quarantine(rejected)
            apply_as(place, attempt, records)

        return strict

    replace(broken.server, "apply_as", make)


@breaks(GuardSuite, "test_apply_of_an_ended_attempt_lands_nowhere")
def an_ended_attempt_still_applies(broken: BrokenStores) -> None:
    replace(broken.server, "apply_as", lambda _: lambda place, attempt, records: broken.server.apply(place, records))


@breaks(
    GuardSuite,
    "test_apply_of_one_attempt_is_a_write_to_the_journal_of_another",
    "test_apply_of_one_attempt_does_not_pass_the_fence_of_another",
)
def an_apply_knows_no_other_attempt(broken: BrokenStores) -> None:
    def make(apply_as: Any) -> Any:
        def alone(place: Place, attempt: int, records: Sequence[Record]) -> None:
            there = sides(broken.server, place)
            others = {number: there.pop(number) for number in list(there) if number != attempt}
            try:
                apply_as(place, attempt, records)
            finally:
                there.update(others)

        return alone

    replace(broken.server, "apply_as", make)


@breaks(GuardSuite, "test_writes_meet_what_the_replayer_applied")
def writes_do_not_look_at_applied_versions(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def blind(place: Place, mutation: Any) -> Executed:
            table = broken.server.table(place)
            for record in list(table.records.values()):
                overwrite(table, record._replace(version=1))
            done: Executed = execute(place, mutation)
            return done

        return blind

    replace(broken.server, "execute", make)


# --- the fence -----------------------------------------------------------------------------------------------------


@breaks(GuardSuite, "test_fence_refuses_every_write_and_leaves_nothing_of_it")
@breaks(GuardSuite, "test_fence_refuses_every_write_and_leaves_nothing_of_it", domain="users")
def fence_leaks_deletes(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def leaking(place: Place, mutation: Any) -> Executed:
            check = broken.server._refuse_fenced
            if isinstance(mutation, Delete | DeleteUser):
                broken.server._refuse_fenced = lambda _place: None
            try:
                done: Executed = execute(place, mutation)
            finally:
                broken.server._refuse_fenced = check
            return done

        return leaking

    replace(broken.server, "execute", make)


@breaks(GuardSuite, "test_fence_refuses_every_write_and_leaves_nothing_of_it")
def fence_refuses_after_the_write(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def leaving(place: Place, mutation: Any) -> Executed:
            check = broken.server._refuse_fenced
            broken.server._refuse_fenced = lambda _place: None
            try:
                done: Executed = execute(place, mutation)
            finally:
                broken.server._refuse_fenced = check
            check(place)
            return done

        return leaving

    replace(broken.server, "execute", make)


@breaks(GuardSuite, "test_fence_refuses_every_write_and_leaves_nothing_of_it")
def fence_is_known_to_one_client(broken: BrokenStores) -> None:
    fencing: set[int] = set()
    replace(broken.server, "_refuse_fenced", lambda _: lambda place: None)

    def change(store: Any) -> None:
        def make_guard(guard: Any) -> Any:
            def guarded(attempt: int) -> Any:
                made = guard(attempt)

                def make_fence(fence: Any) -> Any:
                    async def noted(*args: Any) -> None:
                        fencing.add(id(store))
                        await fence(*args)

                    return noted

                replace(made, "fence", make_fence)
                return made

            return guarded

        def make_execute(execute: Any) -> Any:
            async def checked(mutation: Any, deadline: Any) -> Any:
                if id(store) in fencing:
                    raise Fenced
                return await execute(mutation, deadline)

            return checked

        replace(store, "guard", make_guard)
        replace(store, "execute", make_execute)

    broken.each_store(change)


@breaks(GuardSuite, "test_no_write_is_acknowledged_after_the_fence_under_writers")
def fence_is_up_a_little_late(broken: BrokenStores) -> None:
    def make(fence: Any) -> Any:
        async def early(*args: Any) -> None:
            asyncio.get_running_loop().call_later(LATE_S, lambda: asyncio.ensure_future(fence(*args)))

        return early

    on_guard(broken, "fence", make)


@breaks(GuardSuite, "test_no_write_is_acknowledged_after_the_fence_under_writers")
def journal_row_comes_after_the_write(broken: BrokenStores) -> None:
    """The journal row outside the write's own transaction."""

    def make(journal: Any) -> Any:
        def later(place: Place, record: Record) -> None:
            asyncio.get_running_loop().call_later(LATE_S, journal, place, record)

        return later

    replace(broken.server, "_journal", make)


@breaks(GuardSuite, "test_seal_never_lapses_and_needs_a_live_fence_of_its_flip")
def seal_asks_for_no_fence(broken: BrokenStores) -> None:
    def seal(place: Place, attempt: int, _token: Any, flip: int) -> None:
        side = broken.server.side(place, attempt)
        side.flip, side._fence = flip, "sealed"

    replace(broken.server, "seal", lambda _: seal)


@breaks(GuardSuite, "test_seal_never_lapses_and_needs_a_live_fence_of_its_flip")
def seal_takes_any_flip(broken: BrokenStores) -> None:
    def make(seal: Any) -> Any:
        def lenient(place: Place, attempt: int, token: Any, _flip: int) -> None:
            seal(place, attempt, token, broken.server.side(place, attempt).flip)

        return lenient

    replace(broken.server, "seal", make)


@breaks(GuardSuite, "test_a_lapsing_fence_of_a_sealed_place_does_not_weaken_it")
def seal_is_forgotten(broken: BrokenStores) -> None:
    replace(broken.server, "seal", lambda _: lambda *args: None)


@breaks(
    GuardSuite,
    "test_open_accepts_journalled_writes_and_may_be_repeated",
    "test_open_of_an_earlier_flip_leaves_a_later_fence",
)
def open_may_be_done_once(broken: BrokenStores) -> None:
    opened: list[int] = []

    def make(open_: Any) -> Any:
        def once(place: Place, attempt: int, flip: int) -> None:
            if opened:
                raise MigrationError("open already")
            opened.append(flip)
            open_(place, attempt, flip)

        return once

    replace(broken.server, "open", make)


@breaks(GuardSuite, "test_open_accepts_journalled_writes_and_may_be_repeated")
def install_is_never_sealed(broken: BrokenStores) -> None:
    def make(install: Any) -> Any:
        def unsealed(place: Place, attempt: int, token: Any, *, sealed: bool) -> None:
            install(place, attempt, token, sealed=sealed and False)

        return unsealed

    replace(broken.server, "install", make)


@breaks(GuardSuite, "test_open_of_an_earlier_flip_leaves_a_later_fence")
def open_knows_no_flips(broken: BrokenStores) -> None:
    replace(broken.server, "open", lambda open_: lambda place, attempt, _flip: open_(place, attempt, 1 << 30))


@breaks(GuardSuite, "test_fence_lapses_by_itself")
def fence_stays_until_it_is_opened(broken: BrokenStores) -> None:
    def make(fence: Any) -> Any:
        return lambda place, attempt, token, flip, _lapse_s: fence(place, attempt, token, flip, 1e9)

    replace(broken.server, "fence", make)


@breaks(GuardSuite, "test_remove_ends_the_journal_and_keeps_the_fence_when_asked")
def remove_drops_the_fence(broken: BrokenStores) -> None:
    def make(remove: Any) -> Any:
        return lambda place, attempt, token, *, keep_fence: remove(place, attempt, token, keep_fence=not keep_fence)

    replace(broken.server, "remove", make)


@breaks(GuardSuite, "test_guards_of_two_places_do_not_meet")
def guards_hold_for_a_whole_domain(broken: BrokenStores) -> None:
    def make(refuse: Any) -> Any:
        def everywhere(place: Place) -> None:
            for other in list(broken.server._sides):
                if other[0] == place[0]:
                    refuse(other)

        return everywhere

    replace(broken.server, "_refuse_fenced", make)


@breaks(GuardSuite, "test_an_overtaken_coordinator_is_refused_at_every_step")
def tokens_are_not_compared(broken: BrokenStores) -> None:
    replace(broken.server, "check_token", lambda _: lambda token: None)


@breaks(GuardSuite, "test_a_younger_step_of_an_earlier_attempt_overtakes_a_later_attempt")
def tokens_are_ordered_by_attempt_first(broken: BrokenStores) -> None:
    newest: dict[str, tuple[int, int]] = {}

    def make(_: Any) -> Any:
        def check(token: Token) -> None:
            if newest.get(token.domain, (0, 0)) > (token.attempt, token.value):
                raise LostLease
            newest[token.domain] = (token.attempt, token.value)

        return check

    replace(broken.server, "check_token", make)


@breaks(GuardSuite, "test_an_overtaken_coordinator_is_refused_at_every_step")
def tokens_are_compared_when_raised_alone(broken: BrokenStores) -> None:
    def change(guard: Any) -> None:
        def make(seal: Any) -> Any:
            async def lenient(*args: Any) -> None:
                try:
                    await seal(*args)
                except LostLease:
                    return

            return lenient

        replace(guard, "seal", make)

    broken.each_guard(change)


@breaks(GuardSuite, "test_repair_lifts_what_is_stored_and_marks_it_dirty")
def repair_only_marks(broken: BrokenStores) -> None:
    def repair(place: Place, _attempt: int, keys: Sequence[Key], *_rest: Any) -> None:
        for key in keys:
            broken.server._journal(place, broken.server.table(place).records[key])

    replace(broken.server, "repair", lambda _: repair)


@breaks(GuardSuite, "test_repair_enters_a_ghost_as_a_tombstone_unless_it_exists")
def repair_kills_what_exists(broken: BrokenStores) -> None:
    def repair(place: Place, attempt: int, _keys: Any, ghosts: Sequence[Record], _now: int) -> None:
        for ghost in ghosts:
            overwrite(broken.server.table(place), ghost)
            broken.server.live_side(place, attempt).journal[ghost.ident] = ghost.version

    replace(broken.server, "repair", lambda _: repair)
