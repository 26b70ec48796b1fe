"""Broken outboxes."""

from typing import Any

from datalayer.domains.record import Record
from datalayer.stores.base import Entry
from datalayer.stores.memory.outbox import Following
from datalayer.testing.contract import OutboxSuite, WrittenOutboxSuite
from tests.contract.broken.breakage import BrokenStores, Registry, replace

OUTBOXES = Registry()
breaks = OUTBOXES.breaks
Place = tuple[str, int]


def on_outbox(broken: BrokenStores, name: str, make: Any) -> None:
    """Change one method of every outbox."""

    def change(store: Any) -> None:
        def changed(outbox: Any) -> Any:
            def given(index: int) -> Any:
                found = outbox(index)
                replace(found, name, make)
                return found

            return given

        replace(store, "outbox", changed)

    broken.each_store(change)


@breaks(OutboxSuite, "test_an_outbox_is_off_until_it_is_installed_and_after_it_was_removed")
def removal_takes_nothing_off(broken: BrokenStores) -> None:
    def make(_: Any) -> Any:
        async def nothing() -> None:
            return

        return nothing

    on_outbox(broken, "remove", make)


@breaks(OutboxSuite, "test_of_two_versions_entered_the_later_stays")
def the_last_entered_stays(broken: BrokenStores) -> None:
    def make(enter: Any) -> Any:
        async def forgetful(entries: list[Entry]) -> None:
            for held in broken.server.following.values():
                for following in held.values():
                    for entry in entries:
                        following.entries.pop(entry.ident, None)
            await enter(entries)

        return forgetful

    on_outbox(broken, "enter", make)


@breaks(OutboxSuite, "test_settling_clears_what_the_index_holds_and_nothing_newer")
def settled_by_the_row_taken(broken: BrokenStores) -> None:
    def make(settle: Any) -> Any:
        async def careless(entries: list[Entry]) -> None:
            await settle([entry._replace(version=1 << 62) for entry in entries])

        return careless

    on_outbox(broken, "settle", make)


@breaks(OutboxSuite, "test_pending_gives_every_key_once_over_any_number_of_parts")
def each_part_gives_all(broken: BrokenStores) -> None:
    def make(pending: Any) -> Any:
        async def whole(limit: int, *, part: tuple[int, int] = (0, 1)) -> Any:
            del part
            return await pending(limit)

        return whole

    on_outbox(broken, "pending", make)


@breaks(OutboxSuite, "test_what_waits_longest_comes_first_and_lag_says_since_when")
def newest_first(broken: BrokenStores) -> None:
    def make(pending: Any) -> Any:
        async def reversed_(limit: int, *, part: tuple[int, int] = (0, 1)) -> Any:
            return (await pending(10_000, part=part))[::-1][:limit]

        return reversed_

    on_outbox(broken, "pending", make)


@breaks(OutboxSuite, "test_an_entry_says_since_when_it_waits_and_takes_that_along")
def what_is_handed_over_waits_anew(broken: BrokenStores) -> None:
    def make(enter: Any) -> Any:
        async def anew(entries: list[Entry]) -> None:
            await enter([entry._replace(since=0) for entry in entries])

        return anew

    on_outbox(broken, "enter", make)


@breaks(WrittenOutboxSuite, "test_each_index_has_an_outbox_of_its_own")
def settling_settles_for_every_index(broken: BrokenStores) -> None:
    def make(settle: Any) -> Any:
        async def everywhere(entries: list[Entry]) -> None:
            await settle(entries)
            for held in broken.server.following.values():
                for following in held.values():
                    for entry in entries:
                        following.settle(entry)

        return everywhere

    on_outbox(broken, "settle", make)


@breaks(WrittenOutboxSuite, "test_every_write_is_entered_and_the_applies_of_a_replayer_are_not")
@breaks(WrittenOutboxSuite, "test_every_write_is_entered_and_the_applies_of_a_replayer_are_not", domain="users")
def applies_of_a_replayer_are_entered(broken: BrokenStores) -> None:
    def make(apply_as: Any) -> Any:
        def entered(place: Place, attempt: int, records: list[Record]) -> None:
            apply_as(place, attempt, records)
            for record in records:
                broken.server.follow(place, Entry(record.kind, record.key, record.version))

        return entered

    replace(broken.server, "apply_as", make)


@breaks(WrittenOutboxSuite, "test_entries_name_versions_that_the_store_holds_while_many_write")
def what_was_asked_is_entered(broken: BrokenStores) -> None:
    def make(apply: Any) -> Any:
        def asked(place: Place, records: list[Record]) -> None:
            apply(place, records)
            for record in records:
                broken.server.follow(place, Entry(record.kind, record.key, record.version + 1))

        return asked

    replace(broken.server, "apply", make)


@breaks(WrittenOutboxSuite, "test_a_key_that_changes_again_has_waited_since_it_was_entered_first")
def every_write_waits_anew(broken: BrokenStores) -> None:
    def make(follow: Any) -> Any:
        def anew(place: Place, entry: Entry) -> None:
            for following in broken.server.following.get(place, {}).values():
                following.since.pop(entry.ident, None)
            follow(place, entry)

        return anew

    replace(broken.server, "follow", make)


@breaks(WrittenOutboxSuite, "test_a_foreign_program_is_followed_too")
def hard_deletes_are_not_entered(broken: BrokenStores) -> None:
    def make(follow: Any) -> Any:
        return lambda place, entry: None if entry.gone else follow(place, entry)

    replace(broken.server, "follow", make)


@breaks(WrittenOutboxSuite, "test_a_place_that_is_dropped_leaves_no_outbox")
def a_dropped_place_keeps_its_outboxes(broken: BrokenStores) -> None:
    def make(drop: Any) -> Any:
        def kept(place: Place) -> None:
            held: dict[int, Following] = dict(broken.server.following.get(place, {}))
            drop(place)
            broken.server.following[place] = held

        return kept

    replace(broken.server, "drop", make)
