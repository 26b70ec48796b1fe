"""The port's promises: a last-writer-wins map, scanned whole in a stable order, every record kept to the bit."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar

from datalayer.domains.registry import DOMAINS
from datalayer.errors import Quarantine, SchemaBehind, StaleRoute
from datalayer.testing.contract.fixture import StoreFixture, outcomes, refused
from datalayer.testing.contract.values import LONE_SURROGATE, Maker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datalayer.domains.record import Key, Record
    from datalayer.stores.base import ScanPage

SCAN_PAGES_MAX = 5000


def seen(record: Record) -> Record:
    """A record as everybody compares it: a tombstone's fields carry nothing."""
    return record._replace(fields=()) if record.deleted else record


def by_key(records: Iterable[Record]) -> dict[Key, Record]:
    """What a store should hold after records of different keys."""
    return {record.ident: seen(record) for record in records}


async def fetched(store: Any, keys: Iterable[Key]) -> dict[Key, Record]:
    """The records of keys, as compared."""
    found = await store.fetch(list(keys))
    return {key: seen(record) for key, record in found.items()}


async def scanned(store: Any, ranges: Sequence[str], limit: int) -> list[Record]:
    """All records of these ranges, page by page."""
    records: list[Record] = []
    for range_ in ranges:
        after, done = None, False
        for _ in range(SCAN_PAGES_MAX):
            page = await store.scan(range_, after, limit)
            assert len(page.records) <= limit, "a page holds at most the limit"
            records += page.records
            after, done = page.after, page.done
            if done:
                break
        assert done, f"the scan of {range_!r} does not end"
    return records


class PortSuite:
    """Subclass it with a fixture ``fixture`` that gives a StoreFixture; ``domain`` may be set to another."""

    domain: ClassVar[str] = "messages"

    # apply
    async def test_apply_keeps_the_newest_version_whatever_the_order(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        orders = list(itertools.permutations(range(4)))
        first = [maker.of(self.domain) for _ in orders]
        versions = [[record, *maker.next_versions(record, 3)] for record in first]
        for step in range(4):
            await store.apply([of_key[order[step]] for of_key, order in zip(versions, orders, strict=True)])
        expected = by_key(of_key[3] for of_key in versions)
        assert await fetched(store, expected) == expected

    async def test_apply_any_number_of_times_in_any_batches_ends_the_same(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        records = [maker.of(self.domain) for _ in range(8)]
        every = [one for record in records for one in (record, *maker.next_versions(record, 4)[:3])]
        again = every * 3
        fixture.random.shuffle(again)
        for at in range(0, len(again), 13):
            await store.apply(again[at : at + 13])
        expected = by_key(every[3::4])
        assert await fetched(store, expected) == expected

    async def test_one_batch_may_hold_several_versions_of_a_key(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        rising, falling = maker.of(self.domain), maker.of(self.domain)
        up, down = maker.next_versions(rising, 3), maker.next_versions(falling, 3)
        await store.apply([rising, *up, up[1], *reversed(down), falling, falling])
        expected = by_key([up[-1], down[-1]])
        assert await fetched(store, expected) == expected

    async def test_tombstone_beats_what_is_older_and_gives_way_to_what_is_newer(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        stays, returns = maker.of(self.domain), maker.of(self.domain)
        tombs = [maker.next_versions(record, 2)[-1] for record in (stays, returns)]
        assert all(tomb.deleted for tomb in tombs)
        newer = returns._replace(version=tombs[1].version + 2)
        await store.apply([stays, returns])
        await store.apply(tombs)
        await store.apply([stays, stays._replace(version=tombs[0].version - 1), newer])
        expected = by_key([tombs[0], newer])
        assert await fetched(store, expected) == expected

    async def test_tombstone_of_an_unknown_key_is_kept(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        record = maker.of(self.domain)
        tomb = maker.next_versions(record, 1)[0]
        await store.apply([tomb])
        await store.apply([record])
        assert await fetched(store, [record.ident]) == by_key([tomb])

    async def test_equal_versions_leave_one_whole_record(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        firsts = [maker.of(self.domain) for _ in range(8)]
        others = [maker.next_versions(one, 2)[0]._replace(version=one.version) for one in firsts]
        for batch in (firsts, others, firsts):
            await store.apply(batch)
            found = await fetched(store, by_key(firsts))
            for one, other in zip(firsts, others, strict=True):
                assert found[one.ident] in (seen(one), seen(other)), "fields of two records in one"

    async def test_apply_of_nothing_changes_nothing(self, fixture: StoreFixture) -> None:
        store = await fixture.fresh(self.domain)
        await store.apply([])
        assert await store.empty()

    async def test_apply_takes_a_thousand_records_at_once(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        records = maker.many(self.domain, 1000)
        await store.apply(records)
        expected = by_key(records)
        assert await fetched(store, expected) == expected

    async def test_concurrent_applies_of_one_key_leave_the_newest(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        peer = await fixture.peer(store)
        record = maker.of(self.domain)
        versions = maker.next_versions(record, 12)
        fixture.random.shuffle(versions)
        halves = [(store, versions[::2]), (peer, versions[1::2])]
        _, errors = await outcomes([client.apply([one]) for client, half in halves for one in half])
        assert not errors
        assert await fetched(store, [record.ident]) == by_key([max(versions, key=lambda one: one.version)])

    async def test_applied_records_are_seen_by_every_other_client(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        peer = await fixture.peer(store)
        records = [maker.of(self.domain) for _ in range(20)]
        for record in records:
            await store.apply([record])
            assert await fetched(peer, [record.ident]) == by_key([record])

    # quarantine
    async def test_a_record_that_cannot_be_stored_is_named_and_the_others_land(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        good = [maker.of(self.domain) for _ in range(6)]
        bad = [self._surrogate(maker), self._too_new(maker)]
        error = await refused(Quarantine, store.apply([good[0], bad[0], *good[1:5], bad[1], good[5]]))
        assert set(error.rejected) == {record.ident for record in bad}
        assert all(error.rejected.values()), "each with its reason"
        assert await fetched(store, [record.ident for record in (*good, *bad)]) == by_key(good)

    async def test_check_names_exactly_what_apply_refuses(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        doubtful = [self._surrogate(maker), self._too_new(maker), self._with_text(maker, "a\x00b"), *self._large(maker)]
        doubtful += maker.hostile(self.domain).values()
        for record in doubtful:
            reason = store.check(record)
            if reason is None:
                await store.apply([record])
                assert await fetched(store, [record.ident]) == by_key([record])
            else:
                error = await refused(Quarantine, store.apply([record]))
                assert set(error.rejected) == {record.ident}

    # values
    async def test_every_value_comes_back_to_the_bit(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        hostile = maker.hostile(self.domain)
        await store.apply(list(hostile.values()))
        found = await store.fetch([record.ident for record in hostile.values()])
        for name, record in hostile.items():
            assert repr(seen(found[record.ident])) == repr(seen(record)), name

    async def test_texts_of_zero_one_and_a_million_bytes_come_back(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        sizes = [0, 1, 255, 256, 65_535, 65_536, (1 << 20) - 1, 1 << 20]
        records = [self._with_text(maker, "x" * size) for size in sizes]
        await store.apply(records)
        expected = by_key(records)
        assert await fetched(store, expected) == expected

    async def test_versions_keep_all_their_bits(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        versions = [1, (1 << 53) + 1, (1 << 53) + 3, (1 << 62) + 1]
        records = [maker.of(self.domain)._replace(version=version) for version in versions]
        await store.apply(records)
        await store.apply([record._replace(version=record.version - 1, deleted=True) for record in records])
        expected = by_key(records)
        assert await fetched(store, expected) == expected

    async def test_keys_that_share_a_half_are_different(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        record = maker.main(self.domain)
        left, right = maker.id().bytes, maker.id().bytes
        keys = [left + right, right + left, left + left] if len(record.key) > len(left) else [left, right]
        records = [record._replace(key=key, version=record.version + at) for at, key in enumerate(keys)]
        await store.apply(records)
        expected = by_key(records)
        assert await fetched(store, expected) == expected

    # fetch
    async def test_fetch_leaves_out_what_does_not_exist(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(self.domain), Maker(fixture)
        records, absent = maker.many(self.domain, 30), maker.many(self.domain, 30)
        await store.apply(records)
        asked = [record.ident for record in (*records, *absent, *records)]
        fixture.random.shuffle(asked)
        assert await fetched(store, asked) == by_key(records)
        assert await store.fetch([]) == {}

    # scan
    async def test_scan_gives_each_record_once_for_any_ranges_and_limits(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(self.domain), Maker(fixture)
        records = maker.many(self.domain, 60)
        await store.apply(records)
        for ranges in (1, 4, 100):
            planned = await store.plan_scan(ranges)
            for limit in (1, 7, 1000):
                found = await scanned(store, planned, limit)
                assert len(found) == len(records), f"{ranges} ranges, pages of {limit}"
                assert by_key(found) == by_key(records)

    async def test_scan_gives_every_kind_and_every_tombstone(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(self.domain), Maker(fixture)
        kinds = [kind.name for kind in DOMAINS[self.domain].kinds]
        live = [maker.of(self.domain, kind) for kind in kinds for _ in range(5)]
        dead = [maker.of(self.domain, kind)._replace(deleted=True) for kind in kinds for _ in range(5)]
        await store.apply([*live, *dead])
        assert by_key(await scanned(store, await store.plan_scan(2), 7)) == by_key([*live, *dead])

    async def test_scan_order_is_stable(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(self.domain), Maker(fixture)
        await store.apply(maker.many(self.domain, 40))
        peer = await fixture.peer(store)
        planned = await store.plan_scan(3)
        whole = [record.ident for record in await scanned(store, planned, 1000)]
        for client, limit in ((store, 1), (store, 7), (peer, 3), (peer, 1000)):
            assert [record.ident for record in await scanned(client, planned, limit)] == whole

    async def test_scan_goes_on_after_any_page_over_another_client(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(self.domain), Maker(fixture)
        records = maker.many(self.domain, 25)
        await store.apply(records)
        peer = await fixture.peer(store)
        pages: list[tuple[str, str | None, ScanPage]] = []
        for range_ in await store.plan_scan(2):
            assert isinstance(range_, str)
            after, done = None, False
            for turn in range(SCAN_PAGES_MAX):
                page = await (store, peer)[turn % 2].scan(range_, after, 2)
                assert page.after is None or isinstance(page.after, str)
                pages.append((range_, after, page))
                after, done = page.after, page.done
                if done:
                    break
            assert done
        found = [record for _, _, page in pages for record in page.records]
        assert len(found) == len(records)
        assert by_key(found) == by_key(records)
        for range_, after, page in reversed(pages):
            assert await peer.scan(range_, after, 2) == page, "a page asked for again is the same page"

    async def test_scan_under_inserts_ends_and_misses_nothing_that_was_there(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(self.domain), Maker(fixture)
        records = maker.many(self.domain, 60)
        await store.apply(records)
        found: list[Record] = []
        pages = 0
        for range_ in await store.plan_scan(3):
            after, done = None, False
            while not done:
                await store.apply([maker.of(self.domain), *(maker.late(self.domain) for _ in range(7))])
                page = await store.scan(range_, after, 7)
                found += page.records
                after, done = page.after, page.done
                pages += 1
                assert pages < 300, "the scan does not end under inserts"
        assert len({record.ident for record in found}) == len(found), "a record came twice"
        assert by_key(records).items() <= by_key(found).items()

    async def test_scan_under_updates_gives_each_key_once(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(self.domain), Maker(fixture)
        records = [maker.of(self.domain) for _ in range(40)]
        await store.apply(records)
        newer = {record.ident: maker.next_versions(record, 2)[-1] for record in records}
        found: list[Record] = []
        for range_ in await store.plan_scan(2):
            after, done = None, False
            while not done:
                await store.apply(fixture.random.sample(list(newer.values()), 10))
                page = await store.scan(range_, after, 7)
                found += page.records
                after, done = page.after, page.done
        assert sorted(record.ident for record in found) == sorted(newer)
        for record in found:
            assert seen(record) in (seen(newer[record.ident]), *(seen(r) for r in records if r.ident == record.ident))

    async def test_scan_of_an_empty_place_gives_nothing(self, fixture: StoreFixture) -> None:
        store = await fixture.fresh(self.domain)
        assert await scanned(store, await store.plan_scan(4), 10) == []
        assert await store.estimate() == 0

    # places
    async def test_a_place_is_empty_until_it_holds_a_record_or_a_tombstone(self, fixture: StoreFixture) -> None:
        maker = Maker(fixture)
        for kind in DOMAINS[self.domain].kinds:
            for deleted in (False, True):
                store = await fixture.fresh(self.domain)
                assert await store.empty()
                await store.apply([maker.of(self.domain, kind.name)._replace(deleted=deleted)])
                assert not await store.empty(), f"{kind.name}, deleted: {deleted}"

    async def test_create_again_keeps_what_is_stored(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(self.domain), Maker(fixture)
        record = maker.of(self.domain)
        await store.apply([record])
        await store.create()
        assert await fetched(store, [record.ident]) == by_key([record])

    async def test_places_of_two_attempts_share_nothing(self, fixture: StoreFixture) -> None:
        first, second = await fixture.fresh(self.domain), await fixture.fresh(self.domain)
        record = Maker(fixture).of(self.domain)
        await first.apply([record])
        assert await second.empty()
        await second.drop()
        assert await fetched(first, [record.ident]) == by_key([record])

    async def test_a_dropped_place_takes_and_gives_nothing(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(self.domain), Maker(fixture)
        peer = await fixture.peer(store)
        record = maker.of(self.domain)
        await store.apply([record])
        await store.drop()
        await store.drop()
        for client in (store, peer):
            await refused(StaleRoute, client.apply([record]))
            await refused(StaleRoute, client.fetch([record.ident]))
            await refused(SchemaBehind, client.empty())
        await store.create()
        assert await store.empty()

    # values of this domain that one store or another cannot take
    def _with_text(self, maker: Maker, text: str) -> Record:
        return maker.with_text(self.domain, text)

    def _surrogate(self, maker: Maker) -> Record:
        return self._with_text(maker, LONE_SURROGATE)

    def _too_new(self, maker: Maker) -> Record:
        return maker.of(self.domain)._replace(version=1 << 63)

    def _large(self, maker: Maker) -> list[Record]:
        return [self._with_text(maker, "\U0001f469" * 100_000), maker.of(self.domain)._replace(version=(1 << 63) - 1)]
