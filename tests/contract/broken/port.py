"""Broken ports."""

import asyncio
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from datalayer.domains.record import Record
from datalayer.errors import Quarantine
from datalayer.stores.base import ScanPage
from datalayer.stores.memory.table import Table
from datalayer.testing.contract import Maker, MessageExecuteSuite, MessageReadsSuite, PortSuite, StoreFixture
from tests.contract.broken.breakage import BrokenStores, Registry, replace

PORTS = Registry()
breaks = PORTS.breaks


def overwrite(table: Table, record: Record) -> bool:
    """Put without a look at versions."""
    table.remove(record.ident)
    return table.put(record)


def on_put(broken: BrokenStores, change: Any) -> None:
    """Change each record on its way into the tables."""
    replace(broken.server, "put", lambda put: lambda table, record: put(table, change(record)))


def with_texts(record: Record, change: Any) -> Record:
    fields = [change(value) if isinstance(value, str) else value for value in record.fields]
    return record._replace(fields=tuple(fields))


@breaks(
    PortSuite,
    "test_apply_keeps_the_newest_version_whatever_the_order",
    "test_apply_any_number_of_times_in_any_batches_ends_the_same",
    "test_one_batch_may_hold_several_versions_of_a_key",
    "test_tombstone_beats_what_is_older_and_gives_way_to_what_is_newer",
    "test_concurrent_applies_of_one_key_leave_the_newest",
)
def apply_without_a_gate(broken: BrokenStores) -> None:
    replace(broken.server, "put", lambda _: overwrite)


@breaks(
    PortSuite,
    "test_tombstone_beats_what_is_older_and_gives_way_to_what_is_newer",
    "test_tombstone_of_an_unknown_key_is_kept",
    "test_scan_gives_every_kind_and_every_tombstone",
    "test_a_place_is_empty_until_it_holds_a_record_or_a_tombstone",
)
def no_tombstones(broken: BrokenStores) -> None:
    def put(table: Table, record: Record) -> bool:
        if not record.deleted:
            return table.put(record)
        return table.remove(record.ident) is not None

    replace(broken.server, "put", lambda _: put)


@breaks(PortSuite, "test_equal_versions_leave_one_whole_record")
def equal_versions_tear_a_record(broken: BrokenStores) -> None:
    def put(table: Table, record: Record) -> bool:
        stored = table.records.get(record.ident)
        if stored is None or stored.version != record.version:
            return table.put(record)
        return overwrite(table, record._replace(fields=(stored.fields[0], *record.fields[1:])))

    replace(broken.server, "put", lambda _: put)


@breaks(
    PortSuite,
    "test_apply_of_nothing_changes_nothing",
    "test_scan_of_an_empty_place_gives_nothing",
    "test_a_place_is_empty_until_it_holds_a_record_or_a_tombstone",
)
def a_row_of_its_own(broken: BrokenStores) -> None:
    def make(create: Any) -> Any:
        def created(place: tuple[str, int]) -> None:
            create(place)
            broken.server.table(place).put(Maker(StoreFixture(connect=_nobody)).message())

        return created

    replace(broken.server, "create", make)


async def _nobody() -> Any:
    raise NotImplementedError


@breaks(PortSuite, "test_apply_takes_a_thousand_records_at_once")
def batches_are_cut(broken: BrokenStores) -> None:
    replace(broken.server, "apply", lambda apply: lambda place, records: apply(place, records[:500]))


@breaks(PortSuite, "test_concurrent_applies_of_one_key_leave_the_newest")
def gate_looks_before_it_leaps(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        async def apply(records: Sequence[Record]) -> None:
            found = await store.fetch([record.ident for record in records])
            await asyncio.sleep(0)
            table = broken.server.table(store.place)
            for record in records:
                if record.ident not in found or found[record.ident].version < record.version:
                    overwrite(table, record)

        replace(store, "apply", lambda _: apply)

    broken.each_store(change)


@breaks(PortSuite, "test_applied_records_are_seen_by_every_other_client")
def writes_wait_in_the_client(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        waiting: list[Record] = []

        def make_apply(apply: Any) -> Any:
            async def late(records: Sequence[Record]) -> None:
                await apply(waiting)
                waiting[:] = records

            return late

        replace(store, "apply", make_apply)

    broken.each_store(change)


@breaks(PortSuite, "test_a_record_that_cannot_be_stored_is_named_and_the_others_land")
def quarantine_of_all_or_nothing(broken: BrokenStores) -> None:
    def make(apply: Any) -> Any:
        def strict(place: tuple[str, int], records: Sequence[Record]) -> None:
            rejected = {r.ident: reason for r in records if (reason := broken.server.check(r))}
            if rejected:
                raise Quarantine(rejected)
            apply(place, records)

        return strict

    replace(broken.server, "apply", make)


@breaks(PortSuite, "test_check_names_exactly_what_apply_refuses")
def check_knows_nothing(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        replace(store, "check", lambda _: lambda record: None)

    broken.each_store(change)


@breaks(PortSuite, "test_check_names_exactly_what_apply_refuses")
def nul_ends_a_text(broken: BrokenStores) -> None:
    on_put(broken, lambda record: with_texts(record, lambda text: text.split("\x00")[0]))


@breaks(PortSuite, "test_every_value_comes_back_to_the_bit")
@breaks(PortSuite, "test_every_value_comes_back_to_the_bit", domain="users")
@breaks(MessageReadsSuite, "test_get_finds_one_message_with_every_value")
@breaks(MessageExecuteSuite, "test_appended_message_is_what_get_and_history_give")
def json_is_parsed_on_the_way(broken: BrokenStores) -> None:
    def sorted_again(text: str) -> str:
        if not text.startswith("{"):
            return text
        return json.dumps(json.loads(text, parse_float=lambda number: int(float(number))), separators=(",", ":"))

    on_put(broken, lambda record: with_texts(record, sorted_again))


@breaks(PortSuite, "test_every_value_comes_back_to_the_bit")
def text_is_normalised(broken: BrokenStores) -> None:
    on_put(broken, lambda record: with_texts(record, lambda text: unicodedata.normalize("NFC", text)))


@breaks(PortSuite, "test_every_value_comes_back_to_the_bit")
def trailing_spaces_are_lost(broken: BrokenStores) -> None:
    on_put(broken, lambda record: with_texts(record, lambda text: text.rstrip(" ")))


@breaks(PortSuite, "test_every_value_comes_back_to_the_bit", domain="users")
def empty_text_is_null(broken: BrokenStores) -> None:
    on_put(broken, lambda record: with_texts(record, lambda text: text or None))


@breaks(PortSuite, "test_every_value_comes_back_to_the_bit")
def times_are_milliseconds(broken: BrokenStores) -> None:
    def cut(record: Record) -> Record:
        fields = [value // 1000 * 1000 if isinstance(value, int) else value for value in record.fields]
        return record._replace(fields=tuple(fields))

    on_put(broken, cut)


@breaks(PortSuite, "test_texts_of_zero_one_and_a_million_bytes_come_back")
def texts_are_cut(broken: BrokenStores) -> None:
    on_put(broken, lambda record: with_texts(record, lambda text: text[:65_535]))


@breaks(PortSuite, "test_versions_keep_all_their_bits")
def versions_are_floats(broken: BrokenStores) -> None:
    on_put(broken, lambda record: record._replace(version=int(float(record.version))))


@breaks(PortSuite, "test_keys_that_share_a_half_are_different")
def keys_are_their_last_half(broken: BrokenStores) -> None:
    def put(table: Table, record: Record) -> bool:
        others = (key for kind, key in table.records if key[16:] == record.key[16:])
        return next(others, record.key) == record.key and table.put(record)

    replace(broken.server, "put", lambda _: put)


@breaks(PortSuite, "test_fetch_leaves_out_what_does_not_exist")
def fetch_makes_records_up(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(fetch: Any) -> Any:
            async def all_of_them(keys: Sequence[tuple[str, bytes]]) -> dict[tuple[str, bytes], Record]:
                made_up = {key: Record(*key, 0, True, ()) for key in keys}
                return {**made_up, **await fetch(keys)}

            return all_of_them

        replace(store, "fetch", make)

    broken.each_store(change)


def _on_scan(broken: BrokenStores, make: Any) -> None:
    broken.each_store(lambda store: replace(store, "scan", lambda scan: make(store, scan)))


@breaks(
    PortSuite,
    "test_scan_gives_each_record_once_for_any_ranges_and_limits",
    "test_scan_goes_on_after_any_page_over_another_client",
)
def scan_skips_a_record_between_pages(broken: BrokenStores) -> None:
    def make(_store: Any, scan: Any) -> Any:
        async def skipping(range_: str, after: str | None, limit: int) -> ScanPage:
            page: ScanPage = await scan(range_, after, limit + 1)
            return ScanPage(page.records[:limit], page.after, page.done)

        return skipping

    _on_scan(broken, make)


@breaks(PortSuite, "test_scan_gives_every_kind_and_every_tombstone")
def scan_leaves_tombstones_out(broken: BrokenStores) -> None:
    def make(_store: Any, scan: Any) -> Any:
        async def live(range_: str, after: str | None, limit: int) -> ScanPage:
            page: ScanPage = await scan(range_, after, limit)
            return page._replace(records=[record for record in page.records if not record.deleted])

        return live

    _on_scan(broken, make)


@breaks(PortSuite, "test_scan_gives_every_kind_and_every_tombstone", domain="users")
def scan_forgets_a_kind(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(plan: Any) -> Any:
            async def users_only(n: int) -> list[str]:
                return [range_ for range_ in await plan(n) if range_.startswith("user")]

            return users_only

        replace(store, "plan_scan", make)

    broken.each_store(change)


@breaks(PortSuite, "test_scan_order_is_stable")
def scan_order_is_not_stable(broken: BrokenStores) -> None:
    def make(_store: Any, scan: Any) -> Any:
        turns = iter(range(1_000_000))

        async def shuffled(range_: str, after: str | None, limit: int) -> ScanPage:
            page: ScanPage = await scan(range_, after, limit)
            return page._replace(records=page.records[:: -1 if next(turns) % 2 else 1])

        return shuffled

    _on_scan(broken, make)


@breaks(PortSuite, "test_scan_goes_on_after_any_page_over_another_client")
def scan_keeps_its_place_in_the_client(broken: BrokenStores) -> None:
    def make(_store: Any, scan: Any) -> Any:
        last: dict[str, str | None] = {}

        async def remembered(range_: str, after: str | None, limit: int) -> ScanPage:
            page: ScanPage = await scan(range_, None if after is None else last.get(range_), limit)
            last[range_] = page.after
            return page

        return remembered

    _on_scan(broken, make)


@breaks(PortSuite, "test_scan_under_inserts_ends_and_misses_nothing_that_was_there")
def scan_pages_by_offset(broken: BrokenStores) -> None:
    def make(_store: Any, scan: Any) -> Any:
        async def offset(range_: str, after: str | None, limit: int) -> ScanPage:
            start = int(after or 0)
            page: ScanPage = await scan(range_, None, start + limit)
            return ScanPage(page.records[start:], str(start + limit), page.done)

        return offset

    _on_scan(broken, make)


@breaks(PortSuite, "test_scan_under_inserts_ends_and_misses_nothing_that_was_there")
def scan_has_no_end(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(plan: Any) -> Any:
            async def endless(n: int) -> list[str]:
                kind, low, _ = (await plan(1))[0].split(":")
                return [f"{kind}:{low}:{'ff' * 40}"]

            return endless

        replace(store, "plan_scan", make)

    broken.each_store(change)


@breaks(PortSuite, "test_scan_under_updates_gives_each_key_once")
def scan_follows_the_version(broken: BrokenStores) -> None:
    def make(store: Any, _scan: Any) -> Any:
        async def by_version(range_: str, after: str | None, limit: int) -> ScanPage:
            table = broken.server.table(store.place)
            later = sorted(r for r in table.records.values() if r.version > int(after or 0))
            later.sort(key=lambda record: record.version)
            page = later[:limit]
            return ScanPage(page, str(page[-1].version) if page else after, len(later) <= limit)

        return by_version

    _on_scan(broken, make)


@breaks(PortSuite, "test_a_place_is_empty_until_it_holds_a_record_or_a_tombstone")
def empty_does_not_count_tombstones(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        async def empty() -> bool:
            return all(record.deleted for record in broken.server.table(store.place).records.values())

        replace(store, "empty", lambda _: empty)

    broken.each_store(change)


@breaks(PortSuite, "test_create_again_keeps_what_is_stored")
def create_wipes(broken: BrokenStores) -> None:
    def make(create: Any) -> Any:
        def afresh(place: tuple[str, int]) -> None:
            broken.server.drop(place)
            create(place)

        return afresh

    replace(broken.server, "create", make)


@breaks(PortSuite, "test_places_of_two_attempts_share_nothing")
def attempts_share_a_table(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        store.place = (store.place[0], 0)

    broken.each_store(change)


@breaks(PortSuite, "test_a_dropped_place_takes_and_gives_nothing")
@breaks(MessageReadsSuite, "test_reads_of_a_dropped_place_say_that_the_route_is_stale")
@breaks(MessageExecuteSuite, "test_write_to_a_dropped_place_says_that_the_route_is_stale")
def drop_only_empties(broken: BrokenStores) -> None:
    def make(drop: Any) -> Any:
        def emptied(place: tuple[str, int]) -> None:
            drop(place)
            broken.server.create(place)

        return emptied

    replace(broken.server, "drop", make)
