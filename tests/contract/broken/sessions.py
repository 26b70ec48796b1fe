"""Broken sessions."""

import dataclasses
from collections.abc import Callable
from typing import Any

from datalayer.clock import Deadline, SystemClock
from datalayer.domains import sessions
from datalayer.domains.record import FINAL_LEAD, Record
from datalayer.domains.sessions import CreateSession, RevokeSession, RevokeSessions, TouchSession
from datalayer.stores.base import Executed
from datalayer.testing.contract import SessionExecuteSuite, SessionReadsSuite
from tests.contract.broken.breakage import BrokenStores, Registry, replace
from tests.contract.broken.execute import on_mutation, on_result
from tests.contract.broken.port import overwrite

SESSIONS = Registry()
Breaker = Callable[[Any], None]
HOURS_US = 3 * 3600 * 1_000_000


def breaks(suite: type, *red: str) -> Callable[[Breaker], Breaker]:
    return SESSIONS.breaks(suite, *red, domain="sessions")


def on_read(broken: BrokenStores, name: str, change: Callable[[Any], Any]) -> None:
    """Change what a typed read gives."""

    def on_store(store: Any) -> None:
        def make(read: Any) -> Any:
            async def changed(*args: Any) -> Any:
                return change(await read(*args))

            return changed

        replace(store, name, make)

    broken.each_store(on_store)


def rewrite(broken: BrokenStores, kind: type, change: Callable[[Record], Record]) -> None:
    """Write something else than a mutation of this kind decided, without a word."""

    def on_done(place: Any, mutation: Any, done: Executed) -> Executed:
        if isinstance(mutation, kind):
            for record in done.records:
                overwrite(broken.server.table(place), change(record))
        return done

    on_result(broken, on_done)


def stored(broken: BrokenStores, place: Any, mutation: Any) -> Record | None:
    found: Record | None = broken.server.table(place).records.get(sessions.keys_of(mutation)[0])
    return found


@breaks(SessionReadsSuite, "test_get_finds_one_session_with_every_value")
def get_hides_revoked_ones(broken: BrokenStores) -> None:
    on_read(broken, "get", lambda found: (None, found[1]) if found[0] is None or found[0].deleted else found)


@breaks(SessionReadsSuite, "test_get_gives_the_cut_of_the_same_user_alone")
def get_forgets_the_cut(broken: BrokenStores) -> None:
    on_read(broken, "get", lambda found: (found[0], None))


@breaks(SessionReadsSuite, "test_of_user_gives_all_that_are_not_revoked")
def one_of_the_users_is_left_out(broken: BrokenStores) -> None:
    on_read(broken, "of_user", lambda found: (found[0][1:], found[1]))


@breaks(SessionReadsSuite, "test_purge_takes_out_what_expired_long_ago_and_nothing_else")
def purge_gives_no_grace(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(purge: Any) -> Any:
            async def eager(before_us: int, limit: int) -> Any:
                return await purge(before_us + HOURS_US, limit)

            return eager

        replace(store, "purge", make)

    broken.each_store(change)


@breaks(SessionReadsSuite, "test_reads_past_their_deadline_say_so")
@breaks(SessionExecuteSuite, "test_write_past_its_deadline_changes_nothing")
def deadlines_are_ignored(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(call: Any) -> Any:
            def patient(name: str, effect: Any, deadline: Any = None, **options: Any) -> Any:
                return call(name, effect, Deadline(SystemClock(), 5.0), **options)

            return patient

        replace(store, "_call", make)

    broken.each_store(change)


@breaks(SessionExecuteSuite, "test_random_mutations_do_what_decide_does")
def answers_hide_a_record(broken: BrokenStores) -> None:
    on_result(broken, lambda _place, _mutation, done: done._replace(records=done.records[:-1]))


@breaks(SessionExecuteSuite, "test_a_revoked_session_never_comes_back")
def tombstones_have_no_lead(broken: BrokenStores) -> None:
    rewrite(broken, RevokeSession, lambda record: record._replace(version=record.version - FINAL_LEAD))


@breaks(SessionExecuteSuite, "test_a_cut_ends_every_session_before_it_and_none_after")
def cuts_have_no_lead(broken: BrokenStores) -> None:
    def now(record: Record) -> Record:
        mark, expires_at = record.fields
        assert isinstance(mark, int), "a mark is a number"
        return record._replace(fields=(mark - sessions.CUT_LEAD_US, expires_at))

    rewrite(broken, RevokeSessions, now)


@breaks(SessionExecuteSuite, "test_racing_creates_and_cuts_leave_what_came_after")
def cuts_cut_nothing(broken: BrokenStores) -> None:
    rewrite(broken, RevokeSessions, lambda record: record._replace(fields=(0, record.fields[1])))


@breaks(SessionExecuteSuite, "test_racing_touches_do_not_undo_a_revoke")
def revokes_are_forgotten(broken: BrokenStores) -> None:
    rewrite(broken, RevokeSession, lambda record: record._replace(deleted=False))


@breaks(SessionExecuteSuite, "test_a_touch_lengthens_and_never_beyond_the_end")
def a_touch_may_shorten(broken: BrokenStores) -> None:
    def change(_place: Any, mutation: Any, done: Executed) -> Executed:
        if not isinstance(mutation, TouchSession) or done.records:
            return done
        return done._replace(entity=dataclasses.replace(done.entity, expires_at_us=done.entity.expires_at_us - 1))

    on_result(broken, change)


@breaks(SessionExecuteSuite, "test_an_expired_session_is_not_touched")
def expired_ones_are_touched(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        record = stored(broken, place, mutation)
        if record is not None and isinstance(mutation, TouchSession):
            fields = (*record.fields[:4], record.fields[3], record.fields[5])
            overwrite(broken.server.table(place), record._replace(fields=fields))
        return mutation

    on_mutation(broken, change)


@breaks(SessionExecuteSuite, "test_a_create_repeated_is_the_same_session")
def creates_overwrite(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        if isinstance(mutation, CreateSession):
            broken.server.table(place).remove(sessions.keys_of(mutation)[0])
        return mutation

    on_mutation(broken, change)


@breaks(SessionExecuteSuite, "test_a_revoke_of_nothing_changes_nothing")
def a_revoke_leaves_a_tombstone_of_nothing(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        if isinstance(mutation, RevokeSession) and stored(broken, place, mutation) is None:
            overwrite(broken.server.table(place), sessions.tombstone(*sessions.keys_of(mutation)[0], 1))
        return mutation

    on_mutation(broken, change)


@breaks(SessionExecuteSuite, "test_write_to_a_dropped_place_says_that_the_route_is_stale")
def a_dropped_place_comes_back(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        broken.server.create(place)
        return mutation

    on_mutation(broken, change)
