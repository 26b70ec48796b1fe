"""Broken mutations."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from datalayer.domains import messages, users
from datalayer.domains.messages import Append, Delete, Edit
from datalayer.domains.record import FINAL_LEAD, Record
from datalayer.domains.users import CreateUser, UpdateUser
from datalayer.errors import AlreadyExists, NotFound
from datalayer.stores.base import Executed
from datalayer.stores.memory import reference
from datalayer.testing.contract import MessageExecuteSuite, UserExecuteSuite
from tests.contract.broken.breakage import BrokenStores, Registry, replace
from tests.contract.broken.port import overwrite

MUTATIONS = Registry()
breaks = MUTATIONS.breaks


def on_execute(broken: BrokenStores, make: Any) -> None:
    """Change the server's execute; ``make`` is given the old one."""
    replace(broken.server, "execute", make)


def on_mutation(broken: BrokenStores, change: Any) -> None:
    """Change each mutation on its way to the server; ``change`` is given the place and the mutation."""
    on_execute(broken, lambda execute: lambda place, mutation: execute(place, change(place, mutation)))


def on_result(broken: BrokenStores, change: Any) -> None:
    """Change each answer; ``change`` is given the place, the mutation and the answer."""

    def make(execute: Any) -> Any:
        def changed(place: tuple[str, int], mutation: Any) -> Any:
            return change(place, mutation, execute(place, mutation))

        return changed

    on_execute(broken, make)


def stored(broken: BrokenStores, place: tuple[str, int], mutation: Any) -> Record | None:
    key = messages.keys_of(mutation)[0] if place[0] == "messages" else users.keys_of(mutation)[0]
    found: Record | None = broken.server.table(place).records.get(key)
    return found


@breaks(
    MessageExecuteSuite,
    "test_random_mutations_do_what_decide_does",
    "test_edit_and_delete_lift_a_version_that_is_ahead_of_the_clock",
)
def version_is_the_clock(broken: BrokenStores) -> None:
    def change(place: tuple[str, int], mutation: Any, done: Executed) -> Executed:
        if isinstance(mutation, Append) or not done.records:
            return done
        lead = FINAL_LEAD if isinstance(mutation, Delete) else 0
        record = done.records[0]._replace(version=broken.server.clock.now_us() + lead)
        overwrite(broken.server.table(place), record)
        return Executed(messages.to_message(record), (record,))

    on_result(broken, change)


@breaks(
    MessageExecuteSuite,
    "test_random_mutations_do_what_decide_does",
    "test_append_again_is_the_same_write",
    "test_delete_is_final_and_may_be_repeated",
)
def append_overwrites(broken: BrokenStores) -> None:
    def change(place: tuple[str, int], mutation: Any) -> Any:
        if isinstance(mutation, Append) and stored(broken, place, mutation) is not None:
            broken.server.table(place).remove(messages.keys_of(mutation)[0])
        return mutation

    on_mutation(broken, change)


@breaks(MessageExecuteSuite, "test_append_of_a_known_id_by_somebody_else_is_refused")
@breaks(UserExecuteSuite, "test_create_again_is_the_same_write", domain="users")
def a_known_id_is_always_a_retry(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def lenient(place: tuple[str, int], mutation: Any) -> Any:
            try:
                return execute(place, mutation)
            except AlreadyExists as error:
                record = stored(broken, place, mutation)
                if error.field != "id" or record is None:
                    raise
                entity = messages.to_message(record) if place[0] == "messages" else users.to_user(record)
                return Executed(entity, ())

        return lenient

    on_execute(broken, make)


@breaks(MessageExecuteSuite, "test_delete_is_final_and_may_be_repeated")
def delete_takes_the_row_away(broken: BrokenStores) -> None:
    def change(place: tuple[str, int], mutation: Any, done: Executed) -> Executed:
        if isinstance(mutation, Delete):
            broken.server.table(place).remove(messages.keys_of(mutation)[0])
        return done

    on_result(broken, change)


@breaks(MessageExecuteSuite, "test_delete_is_final_and_may_be_repeated")
def delete_keeps_the_body(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def keeping(place: tuple[str, int], mutation: Any) -> Any:
            before = stored(broken, place, mutation)
            done = execute(place, mutation)
            if not isinstance(mutation, Delete) or before is None or not done.records:
                return done
            return Executed(dataclasses.replace(done.entity, body=str(before.fields[1])), done.records)

        return keeping

    on_execute(broken, make)


@breaks(
    MessageExecuteSuite,
    "test_edit_and_delete_of_an_absent_message_are_refused",
    "test_random_mutations_do_what_decide_does",
)
def edit_creates(broken: BrokenStores) -> None:
    def change(place: tuple[str, int], mutation: Any) -> Any:
        if isinstance(mutation, Edit) and stored(broken, place, mutation) is None:
            return Append(mutation.conversation_id, mutation.id, UUID(int=1), mutation.body)
        return mutation

    on_mutation(broken, change)


@breaks(MessageExecuteSuite, "test_edit_and_delete_of_an_absent_message_are_refused")
def edit_looks_at_the_id_alone(broken: BrokenStores) -> None:
    def change(place: tuple[str, int], mutation: Any) -> Any:
        keys = (key for _, key in broken.server.table(place).records if key[16:] == mutation.id.bytes)
        key = next(keys, None)
        return mutation if key is None else dataclasses.replace(mutation, conversation_id=UUID(bytes=key[:16]))

    on_mutation(broken, change)


@breaks(MessageExecuteSuite, "test_edit_keeps_what_it_does_not_name")
def edit_clears_attributes(broken: BrokenStores) -> None:
    def change(_place: tuple[str, int], mutation: Any) -> Any:
        plain = isinstance(mutation, Edit) and mutation.attributes is None
        return dataclasses.replace(mutation, attributes="{}") if plain else mutation

    on_mutation(broken, change)


@breaks(
    MessageExecuteSuite,
    "test_concurrent_appends_of_one_id_and_body_are_one_write",
    "test_concurrent_appends_of_one_id_with_other_bodies_have_one_winner",
    "test_concurrent_edits_all_land_in_the_order_of_their_versions",
    "test_delete_among_edits_wins",
)
@breaks(
    UserExecuteSuite,
    "test_racing_creates_of_one_username_have_one_winner",
    "test_racing_creates_of_one_address_have_one_winner",
    "test_racing_renames_to_one_name_have_one_winner",
    "test_racing_compare_and_sets_have_one_winner",
    domain="users",
)
def transactions_do_not_lock(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        async def execute(mutation: Any, _deadline: Any) -> Executed:
            # One clock reading for everybody, so that versions do not hide the race.
            table = broken.server.table(store.place)
            records = table.records
            done = reference.execute(store.place[0], mutation, records.get, 1_900_000_000_000_000)
            await asyncio.sleep(0)
            for record in done.records:
                overwrite(broken.server.table(store.place), record)
            return done

        replace(store, "execute", lambda _: execute)

    broken.each_store(change)


@breaks(MessageExecuteSuite, "test_write_past_its_deadline_changes_nothing")
def writes_know_no_deadline(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        async def execute(mutation: Any, _deadline: Any) -> Any:
            return broken.server.execute(store.place, mutation)

        replace(store, "execute", lambda _: execute)

    broken.each_store(change)


def _lose_claims(broken: BrokenStores, keep: Any) -> None:
    """Let claims vanish on their way into the table unless ``keep`` says otherwise."""
    replace(
        broken.server,
        "put",
        lambda put: lambda table, record: put(table, record) if record.kind == "user" or keep(record) else True,
    )


@breaks(
    UserExecuteSuite,
    "test_random_mutations_do_what_decide_does",
    "test_created_user_is_what_get_and_its_claims_give",
    "test_two_users_swap_names_over_a_third_name",
    domain="users",
)
def claims_are_not_written(broken: BrokenStores) -> None:
    _lose_claims(broken, lambda record: False)


@breaks(
    UserExecuteSuite,
    "test_two_users_swap_names_over_a_third_name",
    "test_delete_frees_the_names_and_is_final",
    domain="users",
)
def names_are_never_freed(broken: BrokenStores) -> None:
    _lose_claims(broken, lambda record: not record.deleted)


@breaks(UserExecuteSuite, "test_racing_compare_and_sets_have_one_winner", domain="users")
def expected_versions_are_ignored(broken: BrokenStores) -> None:
    def change(_place: tuple[str, int], mutation: Any) -> Any:
        return mutation if isinstance(mutation, CreateUser) else dataclasses.replace(mutation, expected_version=None)

    on_mutation(broken, change)


@breaks(UserExecuteSuite, "test_a_refused_rename_changes_nothing", domain="users")
def claims_of_a_refused_write_stay(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def leaking(place: tuple[str, int], mutation: Any) -> Any:
            try:
                return execute(place, mutation)
            except AlreadyExists:
                changes = dict(getattr(mutation, "changes", ()))
                if changes.get("email"):
                    key = users.claim_key("email", changes["email"])
                    broken.server.table(place).put(users.claim_record(key, mutation.id, 1))
                raise

        return leaking

    on_execute(broken, make)


@breaks(UserExecuteSuite, "test_update_of_an_absent_user_is_refused", domain="users")
def update_of_nobody_is_no_error(broken: BrokenStores) -> None:
    def make(execute: Any) -> Any:
        def silent(place: tuple[str, int], mutation: Any) -> Any:
            try:
                return execute(place, mutation)
            except NotFound:
                assert isinstance(mutation, UpdateUser | users.DeleteUser)
                return Executed(None, ())

        return silent

    on_execute(broken, make)


@breaks(MessageExecuteSuite, "test_random_mutations_do_what_decide_does")
@breaks(UserExecuteSuite, "test_random_mutations_do_what_decide_does", domain="users")
def answers_hide_a_record(broken: BrokenStores) -> None:
    def change(_place: tuple[str, int], _mutation: Any, done: Executed) -> Executed:
        kept: Sequence[Record] = done.records[:-1]
        return done._replace(records=tuple(kept))

    on_result(broken, change)
