"""What a transactional store promises of mutations: decide() is the reference, also when many run at once."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from datalayer.domains import messages, users
from datalayer.domains.messages import Append, Delete, Edit
from datalayer.domains.record import FINAL_LEAD
from datalayer.domains.users import CreateUser, DeleteUser, UpdateUser
from datalayer.errors import AlreadyExists, Conflict, DeadlineExceeded, NotFound, StaleRoute
from datalayer.testing.contract.fixture import StoreFixture, outcomes, refused
from datalayer.testing.contract.model import Model
from datalayer.testing.contract.port import by_key, fetched
from datalayer.testing.contract.values import JSON_TEXTS, TEXTS, Maker

if TYPE_CHECKING:
    from datalayer.domains.messages import MessageMutation
    from datalayer.domains.users import UserMutation

TASKS = 12


class MessageExecuteSuite:
    """Append, Edit, Delete."""

    async def test_random_mutations_do_what_decide_does(self, fixture: StoreFixture) -> None:
        store, maker, model = await fixture.fresh("messages"), Maker(fixture), Model("messages")
        known = [(maker.id(), maker.id()) for _ in range(6)]
        for _ in range(120 * fixture.scale):
            await model.step(fixture, store, _message_mutation(maker, known))
        expected = by_key(model.records.values())
        assert await fetched(store, expected) == expected

    async def test_appended_message_is_what_get_and_history_give(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        conversation = maker.id()
        for text in TEXTS.values():
            for attributes in JSON_TEXTS.values():
                append = Append(
                    conversation,
                    maker.id(),
                    maker.id(),
                    text,
                    thread_id=maker.id(),
                    attachments=(maker.id(),),
                    attributes=attributes,
                )
                done = await store.execute(append, fixture.deadline())
                assert repr(await store.get(conversation, append.id, fixture.deadline())) == repr(done.entity)
                assert repr(done.entity) == repr(messages.appended(append))

    async def test_append_again_is_the_same_write(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        append = Append(maker.id(), maker.id(), maker.id(), "hi")
        first = await store.execute(append, fixture.deadline())
        assert [record.version for record in first.records] == [first.entity.version]
        again = await store.execute(append, fixture.deadline())
        assert again.records == ()
        assert again.entity == first.entity
        edited = await store.execute(Edit(append.conversation_id, append.id, "edited"), fixture.deadline())
        late = await store.execute(append, fixture.deadline())
        assert late.records == ()
        assert late.entity == edited.entity, "a late retry brings the first body back"

    async def test_append_of_a_known_id_by_somebody_else_is_refused(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        append = Append(maker.id(), maker.id(), maker.id(), "hi")
        stored = await store.execute(append, fixture.deadline())
        other_sender = Append(append.conversation_id, append.id, maker.id(), "hi")
        other_body = Append(append.conversation_id, append.id, append.sender_id, "ho")
        for other in (other_sender, other_body):
            error = await refused(AlreadyExists, store.execute(other, fixture.deadline()))
            assert error.field == "id"
        assert await store.get(append.conversation_id, append.id, fixture.deadline()) == stored.entity

    async def test_edit_and_delete_lift_a_version_that_is_ahead_of_the_clock(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        ahead_us = maker.now_us + 50_000_000
        record = maker.message(version=ahead_us)
        await store.apply([record])
        message = messages.to_message(record)
        edit = Edit(message.conversation_id, message.id, "later")
        edited = await store.execute(edit, fixture.deadline())
        assert edited.entity.version == ahead_us + 2
        deleted = await store.execute(Delete(message.conversation_id, message.id), fixture.deadline())
        assert deleted.entity.version == ahead_us + 4 + FINAL_LEAD

    async def test_delete_is_final_and_may_be_repeated(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        append = Append(maker.id(), maker.id(), maker.id(), "hi", attachments=(maker.id(),), attributes='{"a":1}')
        await store.execute(append, fixture.deadline())
        delete = Delete(append.conversation_id, append.id)
        first = await store.execute(delete, fixture.deadline())
        assert first.entity.deleted
        assert (first.entity.body, first.entity.attachments, first.entity.attributes) == ("", (), {})
        again = await store.execute(delete, fixture.deadline())
        assert again.records == ()
        assert again.entity == first.entity
        await refused(NotFound, store.execute(Edit(append.conversation_id, append.id, "back"), fixture.deadline()))
        late = await store.execute(append, fixture.deadline())
        assert late.records == ()
        assert late.entity == first.entity, "an append of a deleted id brings it back"

    async def test_edit_and_delete_of_an_absent_message_are_refused(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        append = Append(maker.id(), maker.id(), maker.id(), "hi")
        await store.execute(append, fixture.deadline())
        for conversation, id_ in ((append.conversation_id, maker.id()), (maker.id(), append.id)):
            await refused(NotFound, store.execute(Edit(conversation, id_, "x"), fixture.deadline()))
            await refused(NotFound, store.execute(Delete(conversation, id_), fixture.deadline()))

    async def test_edit_keeps_what_it_does_not_name(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        append = Append(
            maker.id(), maker.id(), maker.id(), "hi", "note", maker.id(), (maker.id(), maker.id()), '{"x":-0.0}'
        )
        stored = (await store.execute(append, fixture.deadline())).entity
        edited = (await store.execute(Edit(append.conversation_id, append.id, "ho"), fixture.deadline())).entity
        kept = ("sender_id", "kind", "thread_id", "attachments", "attributes", "created_at")
        assert [repr(getattr(edited, name)) for name in kept] == [repr(getattr(stored, name)) for name in kept]
        assert (edited.body, edited.edited_at_us is None) == ("ho", False)
        other = Edit(append.conversation_id, append.id, "ho", '{"y":1}')
        assert (await store.execute(other, fixture.deadline())).entity.attributes == {"y": 1}

    async def test_concurrent_appends_of_one_id_and_body_are_one_write(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        append = Append(maker.id(), maker.id(), maker.id(), "hi")
        results, errors = await outcomes([clients[at % 2].execute(append, fixture.deadline()) for at in range(TASKS)])
        assert not errors
        assert sum(len(done.records) for done in results) == 1, "exactly one of them wrote"
        assert {repr(done.entity) for done in results} == {repr(messages.appended(append))}

    async def test_concurrent_appends_of_one_id_with_other_bodies_have_one_winner(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        conversation, id_, sender = maker.id(), maker.id(), maker.id()
        appends = [Append(conversation, id_, sender, f"body {at}") for at in range(TASKS)]
        results, errors = await outcomes(
            [clients[at % 2].execute(append, fixture.deadline()) for at, append in enumerate(appends)]
        )
        assert len(results) == 1
        assert {type(error) for error in errors} == {AlreadyExists}
        assert await store.get(conversation, id_, fixture.deadline()) == results[0].entity

    async def test_concurrent_edits_all_land_in_the_order_of_their_versions(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        append = Append(maker.id(), maker.id(), maker.id(), "hi")
        await store.execute(append, fixture.deadline())
        edits = [Edit(append.conversation_id, append.id, f"body {at}") for at in range(TASKS)]
        results, errors = await outcomes(
            [clients[at % 2].execute(edit, fixture.deadline()) for at, edit in enumerate(edits)]
        )
        assert not errors
        by_version = {done.entity.version: done.entity for done in results}
        assert len(by_version) == TASKS, "two edits took one version"
        last = by_version[max(by_version)]
        assert await store.get(append.conversation_id, append.id, fixture.deadline()) == last

    async def test_delete_among_edits_wins(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        for _ in range(5):
            append = Append(maker.id(), maker.id(), maker.id(), "hi")
            key = (append.conversation_id, append.id)
            await store.execute(append, fixture.deadline())
            calls: list[MessageMutation] = [Edit(*key, f"body {at}") for at in range(6)]
            calls.insert(fixture.random.randrange(7), Delete(*key))
            results, errors = await outcomes(
                [clients[at % 2].execute(call, fixture.deadline()) for at, call in enumerate(calls)]
            )
            assert {type(error) for error in errors} <= {NotFound}
            found = await store.get(*key, fixture.deadline())
            assert found is not None
            assert found.deleted
            assert found.version == max(done.entity.version for done in results)

    async def test_write_past_its_deadline_changes_nothing(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("messages"), Maker(fixture)
        append = Append(maker.id(), maker.id(), maker.id(), "hi")
        await refused(DeadlineExceeded, store.execute(append, fixture.deadline(-1.0)))
        assert await store.get(append.conversation_id, append.id, fixture.deadline()) is None

    async def test_write_to_a_dropped_place_says_that_the_route_is_stale(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("messages"), Maker(fixture)
        append = Append(maker.id(), maker.id(), maker.id(), "hi")
        await store.execute(append, fixture.deadline())
        await store.drop()
        key = (append.conversation_id, append.id)
        for mutation in (append, Edit(*key, "x"), Delete(*key)):
            await refused(StaleRoute, store.execute(mutation, fixture.deadline()))


class UserExecuteSuite:
    """CreateUser, UpdateUser, DeleteUser, and the claims that make names unique."""

    async def test_random_mutations_do_what_decide_does(self, fixture: StoreFixture) -> None:
        store, maker, model = await fixture.fresh("users"), Maker(fixture), Model("users")
        known = [maker.id() for _ in range(6)]
        for _ in range(120 * fixture.scale):
            await model.step(fixture, store, _user_mutation(maker, known, model))
        expected = by_key(model.records.values())
        assert await fetched(store, expected) == expected

    async def test_created_user_is_what_get_and_its_claims_give(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        for text in TEXTS.values():
            name = f"{maker.id().hex}{text}"
            create = CreateUser(maker.id(), name, f"{name}@example.org", text, attributes='{"x":-0.0}')
            done = await store.execute(create, fixture.deadline())
            assert repr(await store.get(create.id, fixture.deadline())) == repr(done.entity)
            assert repr(done.entity) == repr(users.created(create))
            for key in users.claim_keys(create.username, create.email):
                assert await store.claim_owner(key, fixture.deadline()) == create.id

    async def test_create_again_is_the_same_write(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        create = _create(maker)
        first = await store.execute(create, fixture.deadline())
        again = await store.execute(create, fixture.deadline())
        assert again.records == ()
        assert again.entity == first.entity
        renamed = CreateUser(create.id, maker.id().hex)
        error = await refused(AlreadyExists, store.execute(renamed, fixture.deadline()))
        assert error.field == "id"
        assert await store.claim_owner(users.claim_key("username", renamed.username), fixture.deadline()) is None

    async def test_racing_creates_of_one_username_have_one_winner(self, fixture: StoreFixture) -> None:
        await self._race(fixture, "username")

    async def test_racing_creates_of_one_address_have_one_winner(self, fixture: StoreFixture) -> None:
        await self._race(fixture, "email")

    async def _race(self, fixture: StoreFixture, field: str) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        taken, creates = maker.id().hex, []
        for at in range(TASKS):
            # Names that differ in case alone are one name.
            value = taken.upper() if at % 3 else taken
            name, email = (value, None) if field == "username" else (maker.id().hex, value)
            other = maker.id().hex if field == "username" else None
            creates.append(CreateUser(maker.id(), name, email or other))
        results, errors = await outcomes(
            [clients[at % 2].execute(create, fixture.deadline()) for at, create in enumerate(creates)]
        )
        assert len(results) == 1, "exactly one of them may have the name"
        assert {(type(error), getattr(error, "field", "")) for error in errors} == {(AlreadyExists, field)}
        winner = results[0].entity
        assert await store.claim_owner(users.claim_key(field, taken), fixture.deadline()) == winner.id
        for create in creates:
            if create.id == winner.id:
                continue
            assert await store.get(create.id, fixture.deadline()) is None, "a loser left its row"
            other_field = "email" if field == "username" else "username"
            other_value = create.email if field == "username" else create.username
            assert other_value is not None
            key = users.claim_key(other_field, other_value)
            assert await store.claim_owner(key, fixture.deadline()) is None, "a loser left its other claim"

    async def test_racing_renames_to_one_name_have_one_winner(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        creates = [_create(maker) for _ in range(6)]
        for create in creates:
            await store.execute(create, fixture.deadline())
        name = maker.id().hex
        results, errors = await outcomes(
            [
                clients[at % 2].execute(UpdateUser(create.id, (("username", name),)), fixture.deadline())
                for at, create in enumerate(creates)
            ]
        )
        assert len(results) == 1
        assert {type(error) for error in errors} == {AlreadyExists}
        for create in creates:
            user = await store.get(create.id, fixture.deadline())
            assert user.username == (name if user.id == results[0].entity.id else create.username)
            key = users.claim_key("username", user.username)
            assert await store.claim_owner(key, fixture.deadline()) == user.id

    async def test_racing_compare_and_sets_have_one_winner(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        user = (await store.execute(_create(maker), fixture.deadline())).entity
        updates = [UpdateUser(user.id, (("display_name", f"{at}"),), user.version) for at in range(TASKS)]
        results, errors = await outcomes(
            [clients[at % 2].execute(update, fixture.deadline()) for at, update in enumerate(updates)]
        )
        assert len(results) == 1
        stored = results[0].entity
        assert await store.get(user.id, fixture.deadline()) == stored
        for error in errors:
            assert isinstance(error, Conflict)
            assert error.current_version == stored.version
        await refused(Conflict, store.execute(DeleteUser(user.id, user.version), fixture.deadline()))

    async def test_two_users_swap_names_over_a_third_name(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        ann, bob = _create(maker), _create(maker)
        for create in (ann, bob):
            await store.execute(create, fixture.deadline())
        steps = [(ann.id, maker.id().hex), (bob.id, ann.username), (ann.id, bob.username)]
        for user_id, name in steps:
            await store.execute(UpdateUser(user_id, (("username", name),)), fixture.deadline())
        for name, owner in ((ann.username, bob.id), (bob.username, ann.id)):
            assert await store.claim_owner(users.claim_key("username", name), fixture.deadline()) == owner
        assert await store.claim_owner(users.claim_key("username", steps[0][1]), fixture.deadline()) is None

    async def test_delete_frees_the_names_and_is_final(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        create = _create(maker)
        await store.execute(create, fixture.deadline())
        deleted = await store.execute(DeleteUser(create.id), fixture.deadline())
        assert (deleted.entity.deleted, deleted.entity.username, deleted.entity.email) == (True, "", None)
        assert (await store.execute(DeleteUser(create.id), fixture.deadline())).records == ()
        await refused(NotFound, store.execute(UpdateUser(create.id, (("status", "x"),)), fixture.deadline()))
        heir = CreateUser(maker.id(), create.username, create.email)
        await store.execute(heir, fixture.deadline())
        for key in users.claim_keys(create.username, create.email):
            assert await store.claim_owner(key, fixture.deadline()) == heir.id

    async def test_a_refused_rename_changes_nothing(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        ann, bob = _create(maker), _create(maker)
        await store.execute(ann, fixture.deadline())
        before = (await store.execute(bob, fixture.deadline())).entity
        fresh = f"{maker.id().hex}@example.org"
        update = UpdateUser(bob.id, (("email", fresh), ("username", ann.username)))
        error = await refused(AlreadyExists, store.execute(update, fixture.deadline()))
        assert error.field == "username"
        assert await store.get(bob.id, fixture.deadline()) == before
        assert await store.claim_owner(users.claim_key("email", fresh), fixture.deadline()) is None

    async def test_update_of_an_absent_user_is_refused(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("users"), Maker(fixture)
        await refused(NotFound, store.execute(UpdateUser(maker.id(), (("status", "x"),)), fixture.deadline()))
        await refused(NotFound, store.execute(DeleteUser(maker.id()), fixture.deadline()))


def _create(maker: Maker) -> CreateUser:
    name = maker.id().hex
    return CreateUser(maker.id(), name, f"{name}@example.org")


def _message_mutation(maker: Maker, known: list[tuple[UUID, UUID]]) -> MessageMutation:
    random = maker.random
    if random.random() < 0.2:
        known.append((random.choice(known)[0], maker.id()))
    key = random.choice(known)
    body, attributes = random.choice(list(TEXTS.values())), random.choice(list(JSON_TEXTS.values()))
    match random.choice(("append", "append", "append", "edit", "edit", "edit", "delete")):
        case "append":
            sender = UUID(int=random.choice((1, 1, 2)))
            return Append(*key, sender, random.choice((body, "same")), attributes=attributes)
        case "edit":
            return Edit(*key, body, random.choice((None, attributes)))
        case _:
            return Delete(*key)


def _user_mutation(maker: Maker, known: list[UUID], model: Model) -> UserMutation:
    random = maker.random
    if random.random() < 0.2:
        known.append(maker.id())
    user_id = random.choice(known)
    # Few names, in many spellings: nearly every mutation meets another user's claim.
    names = [spelling for name in ("ann", "bob", "stra\u00dfe", "caf\u00e9") for spelling in (name, name.upper())]
    username, email = random.choice(names), random.choice([None, *names])
    stored = model.records.get(("user", user_id.bytes))
    versions = [None, None, 1] + ([] if stored is None else [stored.version] * 2)
    match random.choice(("create", "create", "update", "update", "update", "delete")):
        case "create":
            return CreateUser(user_id, username, email, attributes=random.choice(list(JSON_TEXTS.values())))
        case "update":
            changes: dict[str, str | None] = {"username": username, "email": email, "display_name": username}
            changes |= {"status": "away", "attributes": '{"x":1e+22}'}
            picked = random.sample(list(changes.items()), random.randrange(1, 6))
            return UpdateUser(user_id, tuple(picked), random.choice(versions))
        case _:
            return DeleteUser(user_id, random.choice(versions))
