"""What a store promises of the catalogue of media: items, objects and their counts change together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains import catalogue
from datalayer.domains.catalogue import Attach, Describe, Detach, Forget, Hold, Pend, Restore
from datalayer.errors import AlreadyExists, Conflict, DeadlineExceeded, NotFound, PreconditionFailed, StaleRoute
from datalayer.stores.base import Executed
from datalayer.testing.contract.fixture import StoreFixture, outcomes, refused
from datalayer.testing.contract.model import Model
from datalayer.testing.contract.port import by_key, fetched
from datalayer.testing.contract.values import Maker

if TYPE_CHECKING:
    from datalayer.types import Media

PLACE: Final = "catalogue"
_PAGES_MAX: Final = 200
_DAY_US: Final = 24 * 3600 * 1_000_000


class CatalogueReadsSuite:
    """get, of_owner, object, known, due, waiting."""

    async def test_get_finds_one_with_every_value(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        hostile = maker.hostile(PLACE)
        await store.apply(list(hostile.values()))
        for name, record in hostile.items():
            expected = catalogue.to_entity(record)
            found: Any
            if isinstance(expected, catalogue.StoredObject):
                found = await store.object(expected.owner_id, expected.sha256, fixture.deadline())
            else:
                found = await store.get(expected.owner_id, expected.id, fixture.deadline())
            assert found is not None, name
            assert (found.deleted, found.version) == (record.deleted, record.version)
            assert found == expected or record.deleted, name
        assert await store.get(maker.id(), maker.id(), fixture.deadline()) is None
        assert await store.object(maker.id(), maker.sha256(), fixture.deadline()) is None

    async def test_of_owner_walks_what_is_live_and_ready_newest_first(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        owner = maker.id()
        records = [maker.media(owner, deleted=at % 7 == 0) for at in range(40)]
        waiting = [maker.media(owner, upload=maker.id()) for _ in range(5)]
        await store.apply([*records, *waiting, *(maker.media() for _ in range(5))])
        live = sorted((catalogue.to_media(one) for one in records if not one.deleted), key=lambda one: one.id)
        for limit in (1, 7, 1000):
            met: list[Media] = []
            for _ in range(_PAGES_MAX):
                after = met[-1].id if met else None
                page = await store.of_owner(owner, limit, fixture.deadline(), after=after)
                assert len(page) == min(limit, len(live) - len(met)), "filled to the limit"
                met += page
                if len(met) == len(live):
                    break
            assert met == live[::-1]
        assert await store.of_owner(maker.id(), 5, fixture.deadline()) == []

    async def test_known_names_are_those_of_live_objects_and_of_uploads(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        owner = maker.id()
        live, gone, other = maker.object(owner), maker.object(owner, deleted=True), maker.object()
        waiting, ended = (maker.media(owner, upload=maker.id(), deleted=late) for late in (False, True))
        await store.apply([live, gone, other, waiting, ended])
        objects = [catalogue.to_object(one) for one in (live, gone, other)]
        uploads = [catalogue.to_media(one).upload for one in (waiting, ended)]
        asked = [(owner, one.name) for one in objects] + [(owner, name) for name in uploads]
        found = await store.known([*asked, (objects[2].owner_id, objects[2].name)], fixture.deadline())
        assert found == {(owner, objects[0].name), (objects[2].owner_id, objects[2].name), (owner, uploads[0])}
        assert await store.known([], fixture.deadline()) == set()

    async def test_due_objects_come_by_their_time(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(PLACE), Maker(fixture)
        times = [5, 1, 9, 3, 7]
        due = [maker.object(refs=0, delete_after=at) for at in times]
        await store.apply([*due, maker.object(), maker.object(refs=0, delete_after=2, deleted=True)])
        found = await store.due(7, 3, fixture.deadline())
        assert [one.delete_after for one in found] == [1, 3, 5]
        assert [one.delete_after for one in await store.due(7, 10, fixture.deadline())] == [1, 3, 5, 7]
        assert await store.due(0, 10, fixture.deadline()) == []

    async def test_waiting_items_are_those_of_before_whose_bytes_have_not_come(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(PLACE), Maker(fixture)
        ids = maker.ids(6, from_us=maker.now_us - 9_000_000, step_us=1_000_000)
        items = [maker.media(id=one, upload=maker.id()) for one in ids]
        more = [maker.media(id=maker.id(1)), maker.media(id=maker.id(2), upload=maker.id(), deleted=True)]
        await store.apply([*items[::-1], *more])
        before = maker.now_us - 9_000_000 + 3_500_000
        found = await store.waiting(before, 100, fixture.deadline())
        assert [one.id for one in found if not one.deleted] == ids[:4]
        assert [one.id for one in await store.waiting(before, 2, fixture.deadline()) if not one.deleted] == ids[:2]

    async def test_reads_past_their_deadline_say_so(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        late = fixture.deadline(-1.0)
        await refused(DeadlineExceeded, store.get(maker.id(), maker.id(), late))
        await refused(DeadlineExceeded, store.of_owner(maker.id(), 5, late))
        await refused(DeadlineExceeded, store.object(maker.id(), maker.sha256(), late))
        await refused(DeadlineExceeded, store.due(5, 5, late))


class CatalogueExecuteSuite:
    """Pend, Attach, Restore, Describe, Detach, Hold, Forget."""

    async def test_random_mutations_do_what_decide_does(self, fixture: StoreFixture) -> None:
        store, maker, model = await fixture.fresh(PLACE), Maker(fixture), Model(PLACE)
        owner = maker.id()
        items, contents = [maker.id() for _ in range(6)], [maker.sha256() for _ in range(3)]
        for _ in range(150 * fixture.scale):
            await model.step(fixture, store, _mutation(maker, model, owner, items, contents))
        expected = by_key(model.records.values())
        assert await fetched(store, expected) == expected

    async def test_equal_bytes_of_an_owner_are_one_object_with_a_count(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        owner, content = maker.id(), maker.sha256()
        puts = [_attach(maker, owner, content) for _ in range(3)]
        for put in puts:
            await store.execute(put, fixture.deadline())
        other = await store.execute(_attach(maker, maker.id(), content), fixture.deadline())
        assert len(other.records) == 2, "another owner's bytes are an object of that owner"
        found = await store.object(owner, content, fixture.deadline())
        assert (found.refs, found.name, found.held, found.delete_after) == (3, puts[0].upload, ("files:0",), None)
        for put in puts:
            await store.execute(Detach(owner, put.id, 5_000), fixture.deadline())
            await store.execute(Detach(owner, put.id, 5_000), fixture.deadline())
        found = await store.object(owner, content, fixture.deadline())
        assert found.refs == 0
        assert found.delete_after is not None

    async def test_a_retry_changes_nothing_and_other_bytes_are_refused(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        put = _attach(maker, maker.id(), maker.sha256())
        first = await store.execute(put, fixture.deadline())
        again = Attach(put.owner_id, put.id, maker.id(maker.now_us), put.sha256, put.size, "files:0", put.content_type)
        retried = await store.execute(again, fixture.deadline())
        assert (retried.entity, retried.records) == (first.entity, ())
        other = Attach(put.owner_id, put.id, put.upload, maker.sha256(), put.size, "files:0", put.content_type)
        await refused(AlreadyExists, store.execute(other, fixture.deadline()))
        await store.execute(Detach(put.owner_id, put.id, 0), fixture.deadline())
        await refused(AlreadyExists, store.execute(put, fixture.deadline()))
        assert await store.object(put.owner_id, other.sha256, fixture.deadline()) is None

    async def test_a_restored_item_is_what_it_was_and_what_is_known_stays(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        owner, content, old_us = maker.id(), maker.sha256(), maker.now_us - 30 * _DAY_US
        upload = maker.id(maker.now_us)
        without = Restore(owner, maker.id(), old_us, content, 3, "image/png", "ä.png", '{"a":1}')
        await refused(NotFound, store.execute(without, fixture.deadline()))
        assert await store.get(owner, without.id, fixture.deadline()) is None
        first = replace(without, id=maker.id(), upload=upload, held="files:0")
        done = await store.execute(first, fixture.deadline())
        assert (done.entity.version, done.entity.attributes, done.entity.ready) == (old_us, {"a": 1}, True)
        again = replace(first, version=old_us + 5, filename=None, upload=maker.id(maker.now_us))
        assert await store.execute(again, fixture.deadline()) == Executed(done.entity, ())
        assert len((await store.execute(without, fixture.deadline())).records) == 2, "the owner has the object now"
        found = await store.object(owner, content, fixture.deadline())
        assert (found.refs, found.name, found.held) == (2, upload, ("files:0",))
        gone = replace(without, id=maker.id(), sha256="", size=0, content_type="", deleted=True)
        dead = await store.execute(gone, fixture.deadline())
        assert (dead.entity.deleted, dead.entity.version, len(dead.records)) == (True, old_us, 1)
        kept = await store.execute(replace(gone, deleted=False, sha256=content, size=3), fixture.deadline())
        assert kept.entity.deleted, "a tombstone stays"
        assert (await store.object(owner, content, fixture.deadline())).refs == 2
        assert len(await store.of_owner(owner, 5, fixture.deadline())) == 2

    async def test_an_item_is_seen_once_its_upload_was_attached(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        put = _attach(maker, maker.id(), maker.sha256())
        pend = Pend(put.owner_id, put.id, put.upload, put.size, put.content_type)
        for _ in range(2):
            assert not (await store.execute(pend, fixture.deadline())).entity.ready
        assert await store.of_owner(put.owner_id, 5, fixture.deadline()) == []
        foreign = Attach(put.owner_id, put.id, maker.id(maker.now_us), put.sha256, put.size, "files:0", "image/png")
        await refused(AlreadyExists, store.execute(foreign, fixture.deadline()))
        await refused(NotFound, store.execute(Describe(put.owner_id, put.id, ()), fixture.deadline()))
        done = await store.execute(put, fixture.deadline())
        assert (done.entity.ready, done.entity.upload) == (True, None)
        assert await store.of_owner(put.owner_id, 5, fixture.deadline()) == [done.entity]

    async def test_an_upload_of_before_yesterday_is_not_entered(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        put = _attach(maker, maker.id(), maker.sha256())
        old = Attach(
            put.owner_id, put.id, maker.id(maker.now_us - _DAY_US - 5_000_000), put.sha256, 3, "files:0", "a/b"
        )
        await refused(PreconditionFailed, store.execute(old, fixture.deadline()))
        assert await store.get(put.owner_id, put.id, fixture.deadline()) is None

    async def test_the_last_holder_stays(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        put = _attach(maker, maker.id(), maker.sha256())
        await store.execute(put, fixture.deadline())

        def hold(add: str | None = None, drop: str | None = None, name: UUID = put.upload) -> Hold:
            return Hold(put.owner_id, put.sha256, name, add, drop)

        await refused(Conflict, store.execute(hold(drop="files:0"), fixture.deadline()))
        assert (await store.execute(hold("s3:4"), fixture.deadline())).entity.held == ("files:0", "s3:4")
        assert (await store.execute(hold("s3:4"), fixture.deadline())).records == ()
        assert (await store.execute(hold(drop="files:0"), fixture.deadline())).entity.held == ("s3:4",)
        assert (await store.execute(hold(drop="files:0"), fixture.deadline())).records == ()
        await refused(Conflict, store.execute(hold(drop="s3:4"), fixture.deadline()))
        await refused(NotFound, store.execute(hold("x:1", name=maker.id()), fixture.deadline()))

    async def test_what_was_given_up_is_not_referred_to_again(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        put = _attach(maker, maker.id(), maker.sha256())
        forget = Forget(put.owner_id, put.sha256, put.upload)
        await refused(NotFound, store.execute(forget, fixture.deadline()))
        await store.execute(put, fixture.deadline())
        await refused(Conflict, store.execute(forget, fixture.deadline()))
        await store.execute(Detach(put.owner_id, put.id, 0), fixture.deadline())
        assert (await store.execute(forget, fixture.deadline())).entity.deleted
        assert (await store.execute(forget, fixture.deadline())).records == ()
        again = _attach(maker, put.owner_id, put.sha256)
        await store.execute(again, fixture.deadline())
        found = await store.object(put.owner_id, put.sha256, fixture.deadline())
        assert (found.deleted, found.name, found.refs) == (False, again.upload, 1)
        assert (await store.execute(forget, fixture.deadline())).records == (), "those bytes have another name"

    async def test_a_delay_keeps_an_object_for_its_time(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        put = _attach(maker, maker.id(), maker.sha256())
        await store.execute(put, fixture.deadline())
        await store.execute(Detach(put.owner_id, put.id, 3_600_000_000), fixture.deadline())
        await refused(Conflict, store.execute(Forget(put.owner_id, put.sha256, put.upload), fixture.deadline()))
        again = _attach(maker, put.owner_id, put.sha256)
        await store.execute(again, fixture.deadline())
        found = await store.object(put.owner_id, put.sha256, fixture.deadline())
        assert (found.name, found.refs, found.delete_after) == (put.upload, 1, None)

    async def test_racing_references_all_count(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        for _ in range(4):
            owner, content = maker.id(), maker.sha256()
            puts = [_attach(maker, owner, content) for _ in range(6)]
            calls = [clients[at % 2].execute(put, fixture.deadline()) for at, put in enumerate(puts)]
            _, errors = await outcomes(calls)
            assert not errors
            assert (await store.object(owner, content, fixture.deadline())).refs == 6
            drops = [Detach(owner, put.id, 0) for put in puts[:5]]
            calls = [clients[at % 2].execute(drop, fixture.deadline()) for at, drop in enumerate(drops)]
            _, errors = await outcomes(calls)
            assert not errors
            assert (await store.object(owner, content, fixture.deadline())).refs == 1

    async def test_write_past_its_deadline_changes_nothing(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        put = _attach(maker, maker.id(), maker.sha256())
        await refused(DeadlineExceeded, store.execute(put, fixture.deadline(-1.0)))
        assert await store.get(put.owner_id, put.id, fixture.deadline()) is None

    async def test_write_to_a_dropped_place_says_that_the_route_is_stale(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(PLACE), Maker(fixture)
        await store.execute(_attach(maker, maker.id(), maker.sha256()), fixture.deadline())
        await store.drop()
        await refused(StaleRoute, store.execute(_attach(maker, maker.id(), maker.sha256()), fixture.deadline()))


def _attach(maker: Maker, owner: UUID, sha256: str) -> Attach:
    return Attach(owner, maker.id(), maker.id(maker.now_us), sha256, 3, "files:0", "image/png")


def _mutation(maker: Maker, model: Model, owner: UUID, items: list[UUID], contents: list[str]) -> Any:
    random = maker.random
    item, content = random.choice(items), random.choice(contents)
    if random.random() < 0.15:
        items[items.index(item)] = maker.id()  # a deleted id is never used again: others come
    stored = model.records.get(("object", catalogue.object_key(owner, content)))
    name = maker.id() if stored is None or random.random() < 0.1 else catalogue.to_object(stored).name
    upload = maker.id(maker.now_us)
    return random.choice(
        (
            Pend(owner, item, upload, 3, "image/png"),
            *(Attach(owner, item, upload, content, 3, "files:0", "image/png", "a.png") for _ in range(2)),
            Restore(
                owner,
                item,
                maker.now_us - random.randrange(1, _DAY_US),
                content,
                3,
                "image/png",
                upload=upload,
                held="files:0",
            ),
            Restore(
                owner,
                item,
                maker.now_us - random.randrange(1, _DAY_US),
                content,
                3,
                "image/png",
                deleted=random.random() < 0.2,
            ),
            Describe(owner, item, (("filename", f"{random.randrange(3)}"),)),
            Detach(owner, item, random.choice((0, _DAY_US))),
            Hold(owner, content, name, add=random.choice((None, "s3:1", "s3:2"))),
            Hold(owner, content, name, drop=random.choice(("files:0", "s3:1", "s3:2"))),
            Forget(owner, content, name),
        )
    )
