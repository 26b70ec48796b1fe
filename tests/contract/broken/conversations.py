"""Broken conversations."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from datalayer.clock import Deadline, SystemClock
from datalayer.domains import conversations
from datalayer.domains.conversations import (
    AddMember,
    CreateConversation,
    MarkRead,
    RemoveMember,
    SetRole,
    Settle,
    UpdateConversation,
)
from datalayer.domains.record import Record
from datalayer.errors import AlreadyExists, Conflict, NotFound
from datalayer.stores.base import Executed
from datalayer.stores.memory import reference
from datalayer.testing.contract import ConversationExecuteSuite, ConversationReadsSuite
from tests.contract.broken.breakage import BrokenStores, Registry, replace
from tests.contract.broken.execute import on_execute, on_mutation, on_result
from tests.contract.broken.port import overwrite

CONVERSATIONS = Registry()
Breaker = Callable[[Any], None]


def breaks(suite: type, *red: str) -> Callable[[Breaker], Breaker]:
    return CONVERSATIONS.breaks(suite, *red, domain="conversations")


def on_read(broken: BrokenStores, name: str, make: Any) -> None:
    """Change one read; ``make`` is given the old one."""
    broken.each_store(lambda store: replace(store, name, make))


def hide_deleted_ones(broken: BrokenStores, name: str) -> None:
    """Let a read give live ones only."""

    def make(read: Any) -> Any:
        async def live(*args: Any) -> Any:
            found = await read(*args)
            return None if found is None or found.deleted else found

        return live

    on_read(broken, name, make)


@breaks(ConversationReadsSuite, "test_get_finds_one_conversation_with_every_value")
def get_hides_deleted_ones(broken: BrokenStores) -> None:
    hide_deleted_ones(broken, "get")


@breaks(ConversationReadsSuite, "test_get_many_finds_those_that_exist_of_a_thousand")
def get_many_is_cut(broken: BrokenStores) -> None:
    def make(get_many: Any) -> Any:
        async def cut(ids: Any, deadline: Any) -> Any:
            return (await get_many(ids, deadline))[:100]

        return cut

    on_read(broken, "get_many", make)


@breaks(ConversationReadsSuite, "test_member_finds_those_who_are_and_were_there")
def member_hides_those_who_left(broken: BrokenStores) -> None:
    hide_deleted_ones(broken, "member")


@breaks(ConversationReadsSuite, "test_members_walks_the_live_ones_by_user")
def members_start_over(broken: BrokenStores) -> None:
    def make(members: Any) -> Any:
        async def first(conversation: Any, limit: int, deadline: Any, *, after: Any = None) -> Any:
            return await members(conversation, limit, deadline)

        return first

    on_read(broken, "members", make)


@breaks(ConversationReadsSuite, "test_unlisted_are_those_whose_lists_are_behind")
def whoever_was_listed_once_stays_so(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def unlisted() -> Any:
            records = broken.server.table(store.place).records.values()
            return [one for one in records if one.kind == "member" and one.fields[3] == 0]

        replace(store, "_unlisted", lambda _: unlisted)

    broken.each_store(change)


@breaks(ConversationReadsSuite, "test_reads_past_their_deadline_say_so")
@breaks(ConversationExecuteSuite, "test_write_past_its_deadline_changes_nothing")
def deadlines_are_ignored(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(call: Any) -> Any:
            def patient(name: str, effect: Any, deadline: Any = None, **options: Any) -> Any:
                return call(name, effect, Deadline(SystemClock(), 5.0), **options)

            return patient

        replace(store, "_call", make)

    broken.each_store(change)


@breaks(ConversationExecuteSuite, "test_random_mutations_do_what_decide_does")
def answers_hide_a_record(broken: BrokenStores) -> None:
    on_result(broken, lambda _place, _mutation, done: done._replace(records=done.records[:-1]))


@breaks(ConversationExecuteSuite, "test_created_conversation_and_its_members_are_what_reads_give")
def only_one_member_is_written(broken: BrokenStores) -> None:
    def change(_place: Any, mutation: Any) -> Any:
        create = isinstance(mutation, CreateConversation)
        return dataclasses.replace(mutation, members=mutation.members[:1]) if create else mutation

    on_mutation(broken, change)


@breaks(ConversationExecuteSuite, "test_create_again_is_the_same_write")
def create_overwrites(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        if isinstance(mutation, CreateConversation):
            for key in conversations.keys_of(mutation):
                broken.server.table(place).remove(key)
        return mutation

    on_mutation(broken, change)


@breaks(ConversationExecuteSuite, "test_update_keeps_what_it_does_not_name")
def update_clears_attributes(broken: BrokenStores) -> None:
    def change(_place: Any, mutation: Any) -> Any:
        if not isinstance(mutation, UpdateConversation) or "attributes" in dict(mutation.changes):
            return mutation
        return dataclasses.replace(mutation, changes=(*mutation.changes, ("attributes", "{}")))

    on_mutation(broken, change)


@breaks(
    ConversationExecuteSuite,
    "test_racing_compare_and_sets_have_one_winner",
    "test_racing_departures_leave_an_owner",
    "test_a_full_conversation_takes_nobody",
    "test_reading_goes_forward_only",
)
def transactions_do_not_lock(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        async def execute(mutation: Any, _deadline: Any) -> Executed:
            table = broken.server.table(store.place)
            read, all_of = dict(table.records), list(table.of_routing("member", mutation.id.bytes))
            # One clock reading for everybody, so that versions do not hide the race.
            now_us = 1_900_000_000_000_000
            done = reference.execute(
                store.place[0], mutation, read.get, now_us, of_routing=lambda _kind, _routing: all_of
            )
            await asyncio.sleep(0)
            for record in done.records:
                overwrite(table, record)
            return done

        replace(store, "execute", lambda _: execute)

    broken.each_store(change)


@breaks(ConversationExecuteSuite, "test_adding_a_member_again_changes_nothing")
def adding_again_sets_the_role(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def lenient(place: Any, mutation: Any) -> Any:
            try:
                return execute(place, mutation)
            except AlreadyExists:
                return execute(place, SetRole(mutation.id, mutation.user_id, mutation.role))

        return lenient

    on_execute(broken, make)


@breaks(ConversationExecuteSuite, "test_a_member_who_left_may_join_again")
def leaving_is_for_good(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        if isinstance(mutation, AddMember):
            key = ("member", conversations.member_key(mutation.id, mutation.user_id))
            before = broken.server.table(place).records.get(key)
            if before is not None and before.deleted:
                raise NotFound
        return mutation

    on_mutation(broken, change)


@breaks(ConversationExecuteSuite, "test_the_last_owner_stays", "test_racing_departures_leave_an_owner")
def anybody_may_leave(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def lenient(place: Any, mutation: Any) -> Any:
            try:
                return execute(place, mutation)
            except Conflict:
                if not isinstance(mutation, RemoveMember | SetRole):
                    raise
                return Executed(None, ())

        return lenient

    on_execute(broken, make)


@breaks(ConversationExecuteSuite, "test_a_full_conversation_takes_nobody")
def there_is_no_limit(broken: BrokenStores) -> None:
    def change(_place: Any, mutation: Any) -> Any:
        return dataclasses.replace(mutation, most=1000) if isinstance(mutation, AddMember) else mutation

    on_mutation(broken, change)


@breaks(ConversationExecuteSuite, "test_reading_goes_forward_only")
def the_last_read_wins(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        if isinstance(mutation, MarkRead):
            table = broken.server.table(place)
            key = ("member", conversations.member_key(mutation.id, mutation.user_id))
            record = table.records[key]
            overwrite(table, record._replace(fields=(*record.fields[:2], None, record.fields[3])))
        return mutation

    on_mutation(broken, change)


@breaks(ConversationExecuteSuite, "test_delete_is_final_and_ends_every_membership")
def members_outlive_the_conversation(broken: BrokenStores) -> None:
    def make(put: Any) -> Any:
        def kept(table: Any, record: Record) -> bool:
            gone = table.records.get(("conversation", record.key[:16]))
            orphaned = record.kind == "member" and gone is not None and gone.deleted
            return True if orphaned else bool(put(table, record))

        return kept

    replace(broken.server, "put", make)


@breaks(ConversationExecuteSuite, "test_what_is_not_there_is_refused")
def nobody_is_no_error(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def silent(place: Any, mutation: Any) -> Any:
            try:
                return execute(place, mutation)
            except NotFound:
                return Executed(None, ())

        return silent

    on_execute(broken, make)


@breaks(ConversationExecuteSuite, "test_settle_takes_what_was_seen_and_no_later_version")
def settle_does_not_compare(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        if not isinstance(mutation, Settle):
            return mutation
        records = broken.server.table(place).records
        found = [
            (user, records.get(("member", conversations.member_key(mutation.id, user)))) for user, _ in mutation.seen
        ]
        return Settle(mutation.id, tuple((user, one.version) for user, one in found if one is not None))

    on_mutation(broken, change)


@breaks(ConversationExecuteSuite, "test_write_to_a_dropped_place_says_that_the_route_is_stale")
def a_dropped_place_comes_back(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        broken.server.create(place)
        return mutation

    on_mutation(broken, change)
