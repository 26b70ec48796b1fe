"""What a store promises of conversations and their members: typed reads, and decide() also when many run at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains import conversations
from datalayer.domains.conversations import (
    ROLES,
    AddMember,
    CreateConversation,
    DeleteConversation,
    MarkRead,
    RemoveMember,
    SetRole,
    Settle,
    UpdateConversation,
)
from datalayer.errors import AlreadyExists, Conflict, DeadlineExceeded, NotFound, StaleRoute
from datalayer.testing.contract.fixture import StoreFixture, outcomes, refused
from datalayer.testing.contract.model import Model
from datalayer.testing.contract.port import by_key, fetched
from datalayer.testing.contract.values import JSON_TEXTS, TEXTS, Maker

if TYPE_CHECKING:
    from datalayer.domains.conversations import ConversationMutation
    from datalayer.types import Conversation, Member

TASKS: Final = 12
_PAGES_MAX: Final = 500
PLACE: Final = "conversations"


class ConversationReadsSuite:
    """get, get_many, member, members, unlisted, lag."""

    async def test_get_finds_one_conversation_with_every_value(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        hostile = {name: one for name, one in maker.hostile(PLACE).items() if one.kind == "conversation"}
        await store.apply(list(hostile.values()))
        for name, record in hostile.items():
            expected = conversations.to_conversation(record)
            found = await store.get(expected.id, fixture.deadline())
            assert found is not None, name
            if record.deleted:
                assert (found.deleted, found.version) == (True, record.version)
            else:
                assert repr(found) == repr(expected), name
        assert await store.get(maker.id(), fixture.deadline()) is None

    async def test_get_many_finds_those_that_exist_of_a_thousand(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        records = [maker.conversation(deleted=at % 9 == 0) for at in range(500)]
        await store.apply(records)
        ids = [UUID(bytes=record.key) for record in records]
        asked = [*ids, *(maker.id() for _ in range(500))]
        fixture.random.shuffle(asked)
        found: list[Conversation] = await store.get_many(asked, fixture.deadline())
        assert len(found) == len(records)
        assert {(one.id, one.version, one.deleted) for one in found} == {
            (id_, record.version, record.deleted) for id_, record in zip(ids, records, strict=True)
        }
        assert list(await store.get_many([], fixture.deadline())) == []

    async def test_member_finds_those_who_are_and_were_there(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        records = [record for record in maker.hostile(PLACE).values() if record.kind == "member"]
        await store.apply(records)
        for record in records:
            expected = conversations.to_member(record)
            found = await store.member(expected.conversation_id, expected.user_id, fixture.deadline())
            assert found is not None
            assert (found.deleted, found.version) == (record.deleted, record.version)
            assert found == expected or record.deleted
            assert await store.member(expected.user_id, expected.conversation_id, fixture.deadline()) is None

    async def test_members_walks_the_live_ones_by_user(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        conversation, other = maker.id(), maker.id()
        records = [maker.member(conversation, deleted=at % 3 == 0) for at in range(45)]
        await store.apply([*records, *(maker.member(other, UUID(bytes=one.key[16:])) for one in records)])
        live = sorted(UUID(bytes=record.key[16:]) for record in records if not record.deleted)
        for limit in (1, 7, 1000):
            met: list[Member] = []
            for _ in range(_PAGES_MAX):
                after = met[-1].user_id if met else None
                page = await store.members(conversation, limit, fixture.deadline(), after=after)
                assert len(page) == min(limit, len(live) - len(met)), "filled to the limit"
                met += page
                if len(met) == len(live):
                    break
            assert [member.user_id for member in met] == live
            assert {member.conversation_id for member in met} == {conversation}
            assert await store.members(conversation, limit, fixture.deadline(), after=live[-1]) == []

    async def test_unlisted_are_those_whose_lists_are_behind(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(PLACE), Maker(fixture)
        now = maker.now_us
        shown = [maker.member(listed=now, deleted=at % 4 == 0) for at in range(20)]
        behind = [maker.member(listed=now - 1 - at, version=now + at, deleted=at % 4 == 0) for at in range(20)]
        assert await store.lag(100, fixture.deadline()) == (0, None)
        await store.apply([*shown, *behind, *(maker.conversation() for _ in range(5))])
        keys = sorted(record.key for record in behind)
        for limit in (1, 7, 1000):
            met: list[bytes] = []
            while page := await store.unlisted(limit, fixture.deadline(), after=met[-1] if met else b""):
                assert len(page) <= limit
                assert by_key(page).items() <= by_key(behind).items()
                met += [record.key for record in page]
            assert met == keys
        assert await store.lag(100, fixture.deadline()) == (20, now)
        assert (await store.lag(5, fixture.deadline()))[0] == 5

    async def test_reads_past_their_deadline_say_so(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        late = fixture.deadline(-1.0)
        await refused(DeadlineExceeded, store.get(maker.id(), late))
        await refused(DeadlineExceeded, store.get_many([maker.id()], late))
        await refused(DeadlineExceeded, store.member(maker.id(), maker.id(), late))
        await refused(DeadlineExceeded, store.members(maker.id(), 5, late))
        await refused(DeadlineExceeded, store.unlisted(5, late))
        await refused(DeadlineExceeded, store.lag(5, late))


class ConversationExecuteSuite:
    """Conversations and their members: every mutation of the domain."""

    async def test_random_mutations_do_what_decide_does(self, fixture: StoreFixture) -> None:
        store, maker, model = await fixture.fresh(PLACE), Maker(fixture), Model(PLACE)
        known, users = [maker.id() for _ in range(4)], [maker.id() for _ in range(5)]
        for _ in range(200 * fixture.scale):
            await model.step(fixture, store, _mutation(maker, known, users, model))
        expected = by_key(model.records.values())
        assert await fetched(store, expected) == expected

    async def test_created_conversation_and_its_members_are_what_reads_give(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        for text in TEXTS.values():
            create = _create(maker, 3, title=text, attributes='{"x":-0.0}')
            done = await store.execute(create, fixture.deadline())
            assert repr(done.entity) == repr(conversations.created(create))
            assert repr(await store.get(create.id, fixture.deadline())) == repr(done.entity)
            members = await store.members(create.id, 10, fixture.deadline())
            assert {(one.user_id, one.role) for one in members} == set(create.members)
            assert {one.joined_at for one in members} == {done.entity.created_at}

    async def test_create_again_is_the_same_write(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        create = _create(maker, 2)
        first = await store.execute(create, fixture.deadline())
        await store.execute(RemoveMember(create.id, create.members[1][0]), fixture.deadline())
        again = await store.execute(create, fixture.deadline())
        assert (again.records, again.entity) == ((), first.entity)
        assert len(await store.members(create.id, 10, fixture.deadline())) == 1, "a late retry brings a member back"
        other = CreateConversation(create.id, "another", create.kind, create.members)
        error = await refused(AlreadyExists, store.execute(other, fixture.deadline()))
        assert error.field == "id"

    async def test_update_keeps_what_it_does_not_name(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        stored = (await store.execute(_create(maker, 1, attributes='{"a":1}'), fixture.deadline())).entity
        done = await store.execute(UpdateConversation(stored.id, (("title", "new"),)), fixture.deadline())
        assert (done.entity.title, done.entity.kind, done.entity.attributes) == ("new", stored.kind, {"a": 1})
        assert done.entity.version >= stored.version + 2
        done = await store.execute(UpdateConversation(stored.id, (("attributes", '{"b":2}'),)), fixture.deadline())
        assert (done.entity.title, done.entity.attributes) == ("new", {"b": 2})
        assert await store.get(stored.id, fixture.deadline()) == done.entity

    async def test_racing_compare_and_sets_have_one_winner(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        made = (await store.execute(_create(maker, 1), fixture.deadline())).entity
        updates = [UpdateConversation(made.id, (("title", f"{at}"),), made.version) for at in range(TASKS)]
        results, errors = await outcomes(
            [clients[at % 2].execute(update, fixture.deadline()) for at, update in enumerate(updates)]
        )
        assert len(results) == 1
        stored = results[0].entity
        assert await store.get(made.id, fixture.deadline()) == stored
        for error in errors:
            assert isinstance(error, Conflict)
            assert error.current_version == stored.version
        await refused(Conflict, store.execute(DeleteConversation(made.id, made.version), fixture.deadline()))

    async def test_adding_a_member_again_changes_nothing(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        create, ann = _create(maker, 1), maker.id()
        await store.execute(create, fixture.deadline())
        first = await store.execute(AddMember(create.id, ann, "admin"), fixture.deadline())
        assert len(first.records) == 1
        again = await store.execute(AddMember(create.id, ann, "admin"), fixture.deadline())
        assert (again.records, again.entity) == ((), first.entity)
        error = await refused(AlreadyExists, store.execute(AddMember(create.id, ann), fixture.deadline()))
        assert error.field == "user_id"
        assert await store.member(create.id, ann, fixture.deadline()) == first.entity

    async def test_a_member_who_left_may_join_again(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        create, ann = _create(maker, 1), maker.id()
        await store.execute(create, fixture.deadline())
        versions = []
        for role in ("member", "admin"):
            joined = (await store.execute(AddMember(create.id, ann, role), fixture.deadline())).entity
            assert (joined.role, joined.read_up_to) == (role, None)
            read = (await store.execute(MarkRead(create.id, ann, maker.id()), fixture.deadline())).entity
            gone = await store.execute(RemoveMember(create.id, ann), fixture.deadline())
            assert gone.entity.deleted
            versions += [joined.version, read.version, gone.entity.version]
            assert (await store.execute(RemoveMember(create.id, ann), fixture.deadline())).records == ()
        assert versions == sorted(set(versions)), "versions rise strictly"
        assert await store.members(create.id, 10, fixture.deadline(), after=None) == [
            await store.member(create.id, create.members[0][0], fixture.deadline())
        ]

    async def test_the_last_owner_stays(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        create = _create(maker, 3)
        owner, ann = create.members[0][0], create.members[1][0]
        await store.execute(create, fixture.deadline())
        for refusal in (RemoveMember(create.id, owner), SetRole(create.id, owner, "admin")):
            await refused(Conflict, store.execute(refusal, fixture.deadline()))
        same = await store.execute(SetRole(create.id, owner, "owner"), fixture.deadline())
        assert same.records == ()
        promoted = await store.execute(SetRole(create.id, ann, "owner"), fixture.deadline())
        assert promoted.entity.role == "owner"
        await store.execute(RemoveMember(create.id, owner), fixture.deadline())
        await refused(Conflict, store.execute(RemoveMember(create.id, ann), fixture.deadline()))

    async def test_racing_departures_leave_an_owner(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        for round_ in range(5):
            create = CreateConversation(maker.id(), "", "group", tuple((maker.id(), "owner") for _ in range(4)))
            await store.execute(create, fixture.deadline())
            calls = [
                RemoveMember(create.id, user) if (at + round_) % 2 else SetRole(create.id, user, "member")
                for at, (user, _) in enumerate(create.members)
            ]
            results, errors = await outcomes(
                [clients[at % 2].execute(call, fixture.deadline()) for at, call in enumerate(calls)]
            )
            assert (len(results), [type(error) for error in errors]) == (3, [Conflict])
            left = await store.members(create.id, 10, fixture.deadline())
            assert [one.role for one in left].count("owner") == 1

    async def test_a_full_conversation_takes_nobody(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        create = _create(maker, 2)
        await store.execute(create, fixture.deadline())
        calls = [AddMember(create.id, maker.id(), most=5) for _ in range(TASKS)]
        results, errors = await outcomes(
            [clients[at % 2].execute(call, fixture.deadline()) for at, call in enumerate(calls)]
        )
        assert len(results) == 3
        assert {type(error) for error in errors} == {Conflict}
        assert len(await store.members(create.id, 100, fixture.deadline())) == 5
        joined = results[0].entity.user_id
        assert (await store.execute(AddMember(create.id, joined, most=5), fixture.deadline())).records == ()
        await store.execute(RemoveMember(create.id, joined), fixture.deadline())
        await store.execute(AddMember(create.id, maker.id(), most=5), fixture.deadline())

    async def test_reading_goes_forward_only(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        create = _create(maker, 1)
        owner = create.members[0][0]
        await store.execute(create, fixture.deadline())
        ids = maker.ids(TASKS, from_us=maker.now_us - 1_000_000, step_us=1000)
        newest = max(ids)
        calls = [MarkRead(create.id, owner, one) for one in fixture.random.sample(ids, len(ids))]
        results, errors = await outcomes(
            [clients[at % 2].execute(call, fixture.deadline()) for at, call in enumerate(calls)]
        )
        assert not errors
        assert len({done.entity.version for done in results if done.records}) == sum(bool(d.records) for d in results)
        stored = await store.member(create.id, owner, fixture.deadline())
        assert stored.read_up_to == newest
        for earlier in (ids[0], newest):
            done = await store.execute(MarkRead(create.id, owner, earlier), fixture.deadline())
            assert (done.records, done.entity) == ((), stored)

    async def test_delete_is_final_and_ends_every_membership(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        create = _create(maker, 4)
        await store.execute(create, fixture.deadline())
        await store.execute(RemoveMember(create.id, create.members[1][0]), fixture.deadline())
        done = await store.execute(DeleteConversation(create.id), fixture.deadline())
        assert (done.entity.deleted, done.entity.title, done.entity.attributes) == (True, "", {})
        assert len(done.records) == 4, "the conversation and its three members"
        assert all(record.deleted for record in done.records)
        assert await fetched(store, by_key(done.records)) == by_key(done.records)
        assert await store.members(create.id, 10, fixture.deadline()) == []
        assert (await store.execute(DeleteConversation(create.id), fixture.deadline())).records == ()
        late = await store.execute(create, fixture.deadline())
        assert (late.records, late.entity) == ((), done.entity), "a create of a deleted id brings it back"

    async def test_what_is_not_there_is_refused(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        absent, create, ann = maker.id(), _create(maker, 1), maker.id()
        await store.execute(create, fixture.deadline())
        await store.execute(DeleteConversation(create.id), fixture.deadline())
        for gone in (absent, create.id):
            calls: list[ConversationMutation] = [UpdateConversation(gone, (("title", "x"),)), AddMember(gone, ann)]
            calls += [RemoveMember(gone, ann), SetRole(gone, ann, "owner"), MarkRead(gone, ann, maker.id())]
            for call in calls:
                await refused(NotFound, store.execute(call, fixture.deadline()))
        await refused(NotFound, store.execute(DeleteConversation(absent), fixture.deadline()))
        live = _create(maker, 1)
        await store.execute(live, fixture.deadline())
        for call in (RemoveMember(live.id, ann), SetRole(live.id, ann, "admin"), MarkRead(live.id, ann, maker.id())):
            await refused(NotFound, store.execute(call, fixture.deadline()))
        assert await store.get(absent, fixture.deadline()) is None

    async def test_settle_takes_what_was_seen_and_no_later_version(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(PLACE), Maker(fixture)
        create = _create(maker, 3)
        done = await store.execute(create, fixture.deadline())
        seen = tuple((UUID(bytes=one.key[16:]), one.version) for one in done.records if one.kind == "member")
        changed = await store.execute(MarkRead(create.id, seen[0][0], maker.id()), fixture.deadline())
        assert (await store.lag(100, fixture.deadline()))[0] == 3
        settled = await store.execute(Settle(create.id, seen), fixture.deadline())
        assert {record.key[16:] for record in settled.records} == {user.bytes for user, _ in seen[1:]}
        assert by_key(await store.unlisted(10, fixture.deadline())) == by_key(changed.records), (
            "a change since stays to be shown"
        )
        assert (await store.execute(Settle(create.id, seen), fixture.deadline())).records == ()
        assert (await store.execute(Settle(maker.id(), seen), fixture.deadline())).records == ()
        await store.execute(SetRole(create.id, seen[1][0], "admin"), fixture.deadline())
        assert (await store.lag(100, fixture.deadline()))[0] == 2, "a change after it was settled is to be shown again"

    async def test_write_past_its_deadline_changes_nothing(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        create = _create(maker, 1)
        await refused(DeadlineExceeded, store.execute(create, fixture.deadline(-1.0)))
        assert await store.get(create.id, fixture.deadline()) is None

    async def test_write_to_a_dropped_place_says_that_the_route_is_stale(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(PLACE), Maker(fixture)
        create = _create(maker, 1)
        await store.execute(create, fixture.deadline())
        await store.drop()
        calls: list[Any] = [create, DeleteConversation(create.id), AddMember(create.id, maker.id())]
        for call in (*calls, MarkRead(create.id, create.members[0][0], maker.id())):
            await refused(StaleRoute, store.execute(call, fixture.deadline()))


def _create(maker: Maker, members: int, *, title: str = "Lunch", attributes: str = "{}") -> CreateConversation:
    """A conversation of one owner and so many members in all."""
    roles = ["owner", *["member"] * (members - 1)]
    return CreateConversation(maker.id(), title, "group", tuple((maker.id(), role) for role in roles), attributes)


def _mutation(maker: Maker, known: list[UUID], users: list[UUID], model: Model) -> ConversationMutation:
    random = maker.random
    if random.random() < 0.05:
        known.append(maker.id())
    id_, user = random.choice(known), random.choice(users)
    stored = model.records.get(("conversation", id_.bytes))
    member = model.records.get(("member", conversations.member_key(id_, user)))
    versions = [None, None, 1] + ([] if stored is None else [stored.version] * 2)
    text, attributes = random.choice(list(TEXTS.values())), random.choice(list(JSON_TEXTS.values()))
    picked = random.sample(users, random.randrange(1, 4))
    roles = ["owner", *(random.choice(ROLES) for _ in picked[1:])]
    changes = random.sample([("title", text), ("attributes", attributes)], random.randrange(1, 3))
    shown = ((user, 1 if member is None else member.version), (maker.id(), 5))
    made: dict[str, ConversationMutation] = {
        "c": CreateConversation(
            id_, random.choice(("same", text)), "group", tuple(zip(picked, roles, strict=True)), attributes
        ),
        "u": UpdateConversation(id_, tuple(changes), random.choice(versions)),
        "d": DeleteConversation(id_, random.choice(versions)),
        "a": AddMember(id_, user, random.choice(ROLES), most=4),
        "r": RemoveMember(id_, user),
        "s": SetRole(id_, user, random.choice(ROLES)),
        "m": MarkRead(id_, user, maker.id()),
        "t": Settle(id_, shown),
    }
    # few deletes: they are for good
    return made[random.choice("cccuudaaaaaarrrrssssssmmmmmmtttttt")]
