"""Broken lists of conversations."""

import asyncio
from collections.abc import Callable
from typing import Any

from datalayer.clock import Deadline, SystemClock
from datalayer.domains import listings
from datalayer.stores.base import Executed
from datalayer.stores.memory import reference
from datalayer.testing.contract import ListingExecuteSuite, ListingReadsSuite
from tests.contract.broken.breakage import BrokenStores, Registry, replace
from tests.contract.broken.execute import on_mutation, on_result
from tests.contract.broken.port import overwrite

LISTINGS = Registry()
Breaker = Callable[[Any], None]


def breaks(suite: type, *red: str) -> Callable[[Breaker], Breaker]:
    return LISTINGS.breaks(suite, *red, domain="listings")


@breaks(ListingReadsSuite, "test_get_finds_one_entry_with_every_value")
def get_hides_ended_ones(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(get: Any) -> Any:
            async def live(*args: Any) -> Any:
                found = await get(*args)
                return None if found is None or found.deleted else found

            return live

        replace(store, "get", make)

    broken.each_store(change)


@breaks(ListingReadsSuite, "test_of_user_walks_the_live_ones_by_activity")
def the_oldest_come_first(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(of_user: Any) -> Any:
            async def reversed_(*args: Any, **options: Any) -> Any:
                return (await of_user(*args, **options))[::-1]

            return reversed_

        replace(store, "of_user", make)

    broken.each_store(change)


@breaks(ListingReadsSuite, "test_reads_past_their_deadline_say_so")
@breaks(ListingExecuteSuite, "test_write_past_its_deadline_changes_nothing")
def deadlines_are_ignored(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(call: Any) -> Any:
            def patient(name: str, effect: Any, deadline: Any = None, **options: Any) -> Any:
                return call(name, effect, Deadline(SystemClock(), 5.0), **options)

            return patient

        replace(store, "_call", make)

    broken.each_store(change)


@breaks(ListingExecuteSuite, "test_random_mutations_do_what_decide_does")
def answers_hide_a_record(broken: BrokenStores) -> None:
    on_result(broken, lambda _place, _mutation, done: done._replace(records=done.records[:-1]))


@breaks(
    ListingExecuteSuite,
    "test_what_comes_in_any_order_ends_the_same",
    "test_an_older_membership_brings_nothing_back",
)
def the_last_membership_wins(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        table = broken.server.table(place)
        record = table.records.get(listings.keys_of(mutation)[0])
        if record is not None:
            overwrite(table, record._replace(fields=(*record.fields[:5], 0)))
        return mutation

    on_mutation(broken, change)


@breaks(ListingExecuteSuite, "test_activity_moves_forward_only")
def the_last_message_wins(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        table = broken.server.table(place)
        record = table.records.get(listings.keys_of(mutation)[0])
        if record is not None:
            overwrite(table, record._replace(fields=(*record.fields[:3], None, 0, record.fields[5])))
        return mutation

    on_mutation(broken, change)


@breaks(ListingExecuteSuite, "test_racing_mutations_of_one_entry_all_count")
def writes_do_not_compare(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        async def execute(mutation: Any, _deadline: Any) -> Executed:
            table = broken.server.table(store.place)
            done = reference.execute("listings", mutation, dict(table.records).get, 1_900_000_000_000_000)
            await asyncio.sleep(0)
            for record in done.records:
                overwrite(table, record)
            return done

        replace(store, "execute", lambda _: execute)

    broken.each_store(change)


@breaks(ListingExecuteSuite, "test_write_to_a_dropped_place_says_that_the_route_is_stale")
def a_dropped_place_comes_back(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        broken.server.create(place)
        return mutation

    on_mutation(broken, change)
