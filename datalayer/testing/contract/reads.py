"""The typed reads' promises: orders, pages filled to their limit, and the same values as the records hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from datalayer.domains import messages, users
from datalayer.domains.record import FINAL_LEAD
from datalayer.errors import DeadlineExceeded, StaleRoute
from datalayer.ids import id_time_us
from datalayer.testing.contract.fixture import StoreFixture, refused
from datalayer.testing.contract.values import Maker

if TYPE_CHECKING:
    from uuid import UUID

    from datalayer.domains.record import Record
    from datalayer.types import Message, User

_DAY_US: Final = 86_400_000_000
_WALK_PAGES_MAX: Final = 1000


def tombstone_of(record: Record) -> Record:
    """The final tombstone of a record."""
    return record._replace(version=record.version + 2 + FINAL_LEAD, deleted=True)


class MessageReadsSuite:
    """Messages: get, get_many, history."""

    async def test_get_finds_one_message_with_every_value(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        hostile = maker.hostile("messages")
        await store.apply(list(hostile.values()))
        for name, record in hostile.items():
            expected = messages.to_message(record)
            found = await store.get(expected.conversation_id, expected.id, fixture.deadline())
            assert found is not None, name
            if record.deleted:
                assert (found.deleted, found.version) == (True, record.version)
            else:
                assert repr(found) == repr(expected), name

    async def test_get_gives_deleted_ones_and_none_for_absent_ones(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        dead = maker.message(deleted=True)
        await store.apply([dead])
        message = messages.to_message(dead)
        found = await store.get(message.conversation_id, message.id, fixture.deadline())
        assert found is not None
        assert found.deleted
        assert found.version == dead.version
        assert await store.get(message.conversation_id, maker.id(), fixture.deadline()) is None
        assert await store.get(maker.id(), message.id, fixture.deadline()) is None, "an id of another conversation"

    async def test_get_many_finds_those_that_exist_of_a_thousand(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        records = maker.many("messages", 500)
        absent = [maker.message() for _ in range(500)]
        await store.apply(records)
        asked = [_pair(record) for record in (*records, *absent)]
        fixture.random.shuffle(asked)
        found = await store.get_many(asked, fixture.deadline())
        assert len(found) == len(records)
        assert {(m.conversation_id, m.id, m.version, m.deleted) for m in found} == {
            (*_pair(record), record.version, record.deleted) for record in records
        }
        assert list(await store.get_many([], fixture.deadline())) == []

    async def test_get_many_gives_a_message_asked_for_twice_once(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        record = maker.message()
        await store.apply([record])
        found = await store.get_many([_pair(record)] * 3, fixture.deadline())
        assert [message.id for message in found] == [_pair(record)[1]]

    async def test_history_is_newest_first_and_oldest_first_when_asked(self, fixture: StoreFixture) -> None:
        store, maker, conversation, records = await _conversation(fixture, dense=30, sparse=20)
        expected = [_pair(record)[1] for record in records]
        newest = await store.history(conversation, 1000, fixture.deadline())
        oldest = await store.history(conversation, 1000, fixture.deadline(), oldest_first=True)
        assert [message.id for message in oldest] == expected
        assert [message.id for message in newest] == expected[::-1]
        assert [messages.to_record(message) for message in oldest] == records
        assert await store.history(maker.id(), 10, fixture.deadline()) == []

    async def test_history_goes_on_after_any_message_in_either_order(self, fixture: StoreFixture) -> None:
        store, maker, conversation, records = await _conversation(fixture, dense=12, sparse=12)
        ids = [_pair(record)[1] for record in records]
        between = maker.id(id_time_us(ids[15]) + 500)
        for oldest_first in (True, False):
            order = ids if oldest_first else ids[::-1]
            for at, after in enumerate(order):
                for limit in (1, 5):
                    found = await store.history(
                        conversation, limit, fixture.deadline(), after=after, oldest_first=oldest_first
                    )
                    assert [message.id for message in found] == order[at + 1 : at + 1 + limit]
            found = await store.history(conversation, 100, fixture.deadline(), after=between, oldest_first=oldest_first)
            assert [m.id for m in found] == [one for one in order if (one > between) == oldest_first]

    async def test_history_is_filled_to_the_limit_though_deleted_ones_are_left_out(self, fixture: StoreFixture) -> None:
        store, _, conversation, records = await _conversation(fixture, dense=120, sparse=10)
        dead = fixture.random.sample(range(len(records)), 90)
        await store.apply([tombstone_of(records[at]) for at in dead])
        live = [_pair(record)[1] for at, record in enumerate(records) if at not in dead]
        for limit in (1, 7, 30, 1000):
            found = await store.history(conversation, limit, fixture.deadline())
            assert [message.id for message in found] == live[::-1][:limit]
            found = await store.history(conversation, limit, fixture.deadline(), oldest_first=True, after=live[3])
            assert [message.id for message in found] == live[4 : 4 + limit]

    async def test_history_gives_deleted_ones_when_asked(self, fixture: StoreFixture) -> None:
        store, _, conversation, records = await _conversation(fixture, dense=12, sparse=0)
        await store.apply([tombstone_of(record) for record in records[::3]])
        found = await store.history(conversation, 100, fixture.deadline(), include_deleted=True)
        assert [message.id for message in found] == [_pair(record)[1] for record in records[::-1]]
        assert [message.deleted for message in found][::-1] == [at % 3 == 0 for at in range(12)]

    async def test_history_of_a_conversation_of_deleted_ones_is_empty(self, fixture: StoreFixture) -> None:
        store, _, conversation, records = await _conversation(fixture, dense=60, sparse=3)
        await store.apply([tombstone_of(record) for record in records])
        assert await store.history(conversation, 5, fixture.deadline()) == []

    async def test_history_keeps_conversations_apart(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        conversations = [maker.id() for _ in range(5)]
        ids = maker.ids(10, from_us=maker.now_us - _DAY_US, step_us=1000)
        await store.apply([maker.message(one, id_) for one in conversations for id_ in ids])
        for one in conversations:
            found = await store.history(one, 100, fixture.deadline(), oldest_first=True)
            assert [(m.conversation_id, m.id) for m in found] == [(one, id_) for id_ in ids]

    async def test_history_orders_by_id_whatever_was_edited_later(self, fixture: StoreFixture) -> None:
        store, _, conversation, records = await _conversation(fixture, dense=10, sparse=4)
        edited = [record._replace(version=record.version + 1_000_000_000 * at) for at, record in enumerate(records)]
        await store.apply(edited[::-1])
        found = await store.history(conversation, 100, fixture.deadline(), oldest_first=True)
        assert [message.id for message in found] == [_pair(record)[1] for record in records]

    async def test_walk_under_change_gives_every_staying_message_once(self, fixture: StoreFixture) -> None:
        for oldest_first in (False, True):
            store, maker, conversation, records = await _conversation(fixture, dense=40, sparse=20)
            doomed = records[::4]
            met: list[UUID] = []
            after = None
            for turn in range(_WALK_PAGES_MAX):
                page = await store.history(conversation, 7, fixture.deadline(), after=after, oldest_first=oldest_first)
                met += [message.id for message in page]
                if turn < len(doomed):
                    await store.apply([tombstone_of(doomed[turn]), maker.message(conversation)])
                if not page:
                    break
                after = page[-1].id
            assert met == sorted(set(met), reverse=not oldest_first), "in order, none twice"
            assert {_pair(record)[1] for record in records if record not in doomed} <= set(met)

    async def test_reads_past_their_deadline_say_so(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        await refused(DeadlineExceeded, store.get(maker.id(), maker.id(), fixture.deadline(-1.0)))
        await refused(DeadlineExceeded, store.get_many([(maker.id(), maker.id())], fixture.deadline(-1.0)))
        await refused(DeadlineExceeded, store.history(maker.id(), 5, fixture.deadline(-1.0)))

    async def test_reads_of_a_dropped_place_say_that_the_route_is_stale(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("messages"), Maker(fixture)
        await store.drop()
        await refused(StaleRoute, store.get(maker.id(), maker.id(), fixture.deadline()))
        await refused(StaleRoute, store.get_many([(maker.id(), maker.id())], fixture.deadline()))
        await refused(StaleRoute, store.history(maker.id(), 5, fixture.deadline()))


class UserReadsSuite:
    """Users: get, get_many, claim_owner, page."""

    async def test_get_finds_one_user_with_every_value(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        hostile = {name: record for name, record in maker.hostile("users").items() if record.kind == "user"}
        await store.apply(list(hostile.values()))
        for name, record in hostile.items():
            expected = users.to_user(record)
            found = await store.get(expected.id, fixture.deadline())
            assert found is not None, name
            if record.deleted:
                assert (found.deleted, found.version) == (True, record.version)
            else:
                assert repr(found) == repr(expected), name
        assert await store.get(maker.id(), fixture.deadline()) is None

    async def test_get_many_finds_those_that_exist_of_a_thousand(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        records = [maker.user(deleted=at % 9 == 0) for at in range(500)]
        await store.apply(records)
        ids = [users.to_user(record).id for record in records]
        asked = [*ids, *(maker.id() for _ in range(500))]
        fixture.random.shuffle(asked)
        found = await store.get_many(asked, fixture.deadline())
        assert len(found) == len(records)
        assert {(user.id, user.version, user.deleted) for user in found} == {
            (id_, record.version, record.deleted) for id_, record in zip(ids, records, strict=True)
        }
        assert list(await store.get_many([], fixture.deadline())) == []

    async def test_claim_owner_knows_live_claims_only(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        live, released, absent = maker.claim(), maker.claim(deleted=True), maker.claim()
        await store.apply([live, released])
        owner = await store.claim_owner(live.key, fixture.deadline())
        assert owner is not None
        assert owner.bytes == live.fields[0]
        assert await store.claim_owner(released.key, fixture.deadline()) is None
        assert await store.claim_owner(absent.key, fixture.deadline()) is None

    async def test_claim_owner_tells_usernames_from_addresses(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        value = f"{maker.id().hex}@example.org"
        owner = maker.id()
        await store.apply([users.claim_record(users.claim_key("username", value), owner, maker.now_us)])
        assert await store.claim_owner(users.claim_key("username", value), fixture.deadline()) == owner
        assert await store.claim_owner(users.claim_key("email", value), fixture.deadline()) is None

    async def test_page_walks_all_live_users_by_id(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("users"), Maker(fixture)
        records = [maker.user(deleted=at % 3 == 0) for at in range(45)]
        await store.apply([*records, *(maker.claim() for _ in range(10))])
        live = sorted(users.to_user(record).id for record in records if not record.deleted)
        for limit in (1, 7, 1000):
            met: list[User] = []
            for _ in range(_WALK_PAGES_MAX):
                after = met[-1].id if met else None
                page = await store.page(limit, fixture.deadline(), after=after)
                assert len(page) == min(limit, len(live) - len(met)), "filled to the limit"
                met += page
                if len(met) == len(live):
                    break
            assert [user.id for user in met] == live
            assert await store.page(limit, fixture.deadline(), after=live[-1]) == []
        assert await store.count(fixture.deadline()) == len(live)

    async def test_reads_past_their_deadline_say_so(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        await refused(DeadlineExceeded, store.get(maker.id(), fixture.deadline(-1.0)))
        await refused(DeadlineExceeded, store.page(5, fixture.deadline(-1.0)))
        await refused(DeadlineExceeded, store.claim_owner(maker.claim().key, fixture.deadline(-1.0)))


def _pair(record: Record) -> tuple[UUID, UUID]:
    message: Message = messages.to_message(record)
    return message.conversation_id, message.id


async def _conversation(fixture: StoreFixture, *, dense: int, sparse: int) -> tuple[Any, Maker, UUID, list[Record]]:
    """A conversation of messages, by id: ``sparse`` ones over five years, then ``dense`` ones within a second."""
    store, maker = await fixture.place("messages"), Maker(fixture)
    conversation = maker.id()
    years = maker.ids(sparse, from_us=maker.now_us - 5 * 365 * _DAY_US, step_us=90 * _DAY_US)
    second = maker.ids(dense, from_us=maker.now_us - 3_600_000_000, step_us=1000)
    records = [maker.message(conversation, id_, body=f"number {at}") for at, id_ in enumerate([*years, *second])]
    shuffled = list(records)
    fixture.random.shuffle(shuffled)
    await store.apply(shuffled)
    return store, maker, conversation, sorted(records, key=lambda record: record.key)
