"""Broken catalogues of media."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from datalayer.clock import Deadline, SystemClock
from datalayer.domains import catalogue
from datalayer.domains.catalogue import Attach, Forget, Hold, Restore
from datalayer.errors import Conflict, NotFound, PreconditionFailed
from datalayer.stores.base import Executed
from datalayer.stores.memory import reference
from datalayer.testing.contract import CatalogueExecuteSuite, CatalogueReadsSuite
from tests.contract.broken.breakage import BrokenStores, Registry, replace
from tests.contract.broken.conversations import hide_deleted_ones, on_read
from tests.contract.broken.execute import on_execute, on_mutation, on_result
from tests.contract.broken.port import overwrite

CATALOGUES = Registry()
Breaker = Callable[[Any], None]


def breaks(suite: type, *red: str) -> Callable[[Breaker], Breaker]:
    return CATALOGUES.breaks(suite, *red, domain="catalogue")


def on_list(broken: BrokenStores, name: str, change: Callable[[Any], Any]) -> None:
    """Change the answer of one read."""

    def make(read: Any) -> Any:
        async def changed(*args: Any, **options: Any) -> Any:
            return change(await read(*args, **options))

        return changed

    on_read(broken, name, make)


@breaks(CatalogueReadsSuite, "test_get_finds_one_with_every_value")
def get_hides_deleted_items(broken: BrokenStores) -> None:
    hide_deleted_ones(broken, "get")


@breaks(CatalogueReadsSuite, "test_get_finds_one_with_every_value")
def object_hides_deleted_ones(broken: BrokenStores) -> None:
    hide_deleted_ones(broken, "object")


@breaks(CatalogueReadsSuite, "test_of_owner_walks_what_is_live_and_ready_newest_first")
def the_oldest_come_first(broken: BrokenStores) -> None:
    on_list(broken, "of_owner", lambda found: found[::-1])


@breaks(CatalogueReadsSuite, "test_known_names_are_those_of_live_objects_and_of_uploads")
def every_name_is_known(broken: BrokenStores) -> None:
    def make(_known: Any) -> Any:
        async def known(names: Any, _deadline: Any) -> Any:
            return set(names)

        return known

    on_read(broken, "known", make)


@breaks(CatalogueReadsSuite, "test_due_objects_come_by_their_time")
def the_last_are_due_first(broken: BrokenStores) -> None:
    on_list(broken, "due", lambda found: found[::-1])


@breaks(CatalogueReadsSuite, "test_waiting_items_are_those_of_before_whose_bytes_have_not_come")
def the_young_wait_too(broken: BrokenStores) -> None:
    def make(waiting: Any) -> Any:
        return lambda _before, limit, deadline: waiting(1 << 53, limit, deadline)

    on_read(broken, "waiting", make)


@breaks(CatalogueReadsSuite, "test_reads_past_their_deadline_say_so")
@breaks(CatalogueExecuteSuite, "test_write_past_its_deadline_changes_nothing")
def deadlines_are_ignored(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(call: Any) -> Any:
            def patient(name: str, effect: Any, deadline: Any = None, **options: Any) -> Any:
                return call(name, effect, Deadline(SystemClock(), 5.0), **options)

            return patient

        replace(store, "_call", make)

    broken.each_store(change)


@breaks(CatalogueExecuteSuite, "test_random_mutations_do_what_decide_does")
def answers_hide_a_record(broken: BrokenStores) -> None:
    on_result(broken, lambda _place, _mutation, done: done._replace(records=done.records[:-1]))


@breaks(
    CatalogueExecuteSuite,
    "test_equal_bytes_of_an_owner_are_one_object_with_a_count",
    "test_a_delay_keeps_an_object_for_its_time",
)
def each_put_replaces_the_object(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        table = broken.server.table(place)
        if isinstance(mutation, Attach):
            table.remove(catalogue.keys_of(mutation)[1])
        return mutation

    on_mutation(broken, change)


@breaks(
    CatalogueExecuteSuite,
    "test_a_retry_changes_nothing_and_other_bytes_are_refused",
    "test_a_restored_item_is_what_it_was_and_what_is_known_stays",
)
def a_known_id_is_overwritten(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        table = broken.server.table(place)
        if isinstance(mutation, Attach | Restore):
            table.remove(catalogue.keys_of(mutation)[0])
        return mutation

    on_mutation(broken, change)


@breaks(CatalogueExecuteSuite, "test_an_item_is_seen_once_its_upload_was_attached")
def items_are_seen_before_their_bytes(broken: BrokenStores) -> None:
    def change(place: Any, _mutation: Any, done: Executed) -> Executed:
        for record in done.records:
            if record.kind == "media" and record.fields[0] == catalogue.PENDING:
                shown = record._replace(fields=(catalogue.READY, None, *record.fields[2:]))
                overwrite(broken.server.table(place), shown)
        return done

    on_result(broken, change)


@breaks(CatalogueExecuteSuite, "test_an_upload_of_before_yesterday_is_not_entered")
def old_uploads_are_entered(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def changed(place: Any, mutation: Any) -> Any:
            try:
                return execute(place, mutation)
            except PreconditionFailed:
                return execute(place, dataclasses.replace(mutation, upload=mutation.id.__class__(int=(1 << 127) - 1)))

        return changed

    on_execute(broken, make)


@breaks(CatalogueExecuteSuite, "test_the_last_holder_stays")
def the_last_holder_is_dropped(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def changed(place: Any, mutation: Any) -> Any:
            try:
                return execute(place, mutation)
            except Conflict:
                if not isinstance(mutation, Hold):
                    raise
                return Executed(None, ())

        return changed

    on_execute(broken, make)


@breaks(CatalogueExecuteSuite, "test_what_was_given_up_is_not_referred_to_again")
def what_was_given_up_comes_back(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any, done: Executed) -> Executed:
        if isinstance(mutation, Forget):
            for record in done.records:
                overwrite(broken.server.table(place), record._replace(deleted=False))
        return done

    on_result(broken, change)


@breaks(CatalogueExecuteSuite, "test_a_delay_keeps_an_object_for_its_time")
def delays_are_ignored(broken: BrokenStores) -> None:
    on_mutation(
        broken,
        lambda _place, mutation: (
            dataclasses.replace(mutation, delay_us=0) if isinstance(mutation, catalogue.Detach) else mutation
        ),
    )


@breaks(CatalogueExecuteSuite, "test_racing_references_all_count")
def writes_do_not_compare(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        async def execute(mutation: Any, _deadline: Any) -> Executed:
            table = broken.server.table(store.place)
            now = broken.server.clock.now_us()
            done = reference.execute("catalogue", mutation, dict(table.records).get, now)
            await asyncio.sleep(0)
            for record in done.records:
                overwrite(table, record)
            return done

        replace(store, "execute", lambda _: execute)

    broken.each_store(change)


@breaks(CatalogueExecuteSuite, "test_write_to_a_dropped_place_says_that_the_route_is_stale")
def a_dropped_place_comes_back(broken: BrokenStores) -> None:
    def change(place: Any, mutation: Any) -> Any:
        broken.server.create(place)
        return mutation

    on_mutation(broken, change)


@breaks(CatalogueExecuteSuite, "test_what_was_given_up_is_not_referred_to_again")
def nothing_is_given_up(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def changed(place: Any, mutation: Any) -> Any:
            if isinstance(mutation, Forget):
                raise NotFound
            return execute(place, mutation)

        return changed

    on_execute(broken, make)
