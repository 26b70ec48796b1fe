"""Broken typed reads."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from datalayer.domains import messages, users
from datalayer.testing.contract import MessageReadsSuite, UserReadsSuite
from datalayer.types import Message, User
from tests.contract.broken.breakage import BrokenStores, Registry, replace

READS = Registry()
breaks = READS.breaks


def on_history(broken: BrokenStores, make: Any) -> None:
    """Change ``history``; ``make`` is given the store and the method."""
    broken.each_store(lambda store: replace(store, "history", lambda history: make(store, history)))


def all_messages(broken: BrokenStores, store: Any) -> list[Message]:
    return [messages.to_message(record) for record in broken.server.table(store.place).records.values()]


@breaks(MessageReadsSuite, "test_get_gives_deleted_ones_and_none_for_absent_ones")
@breaks(UserReadsSuite, "test_get_finds_one_user_with_every_value")
def get_hides_deleted_ones(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(get: Any) -> Any:
            async def live(*args: Any) -> Message | User | None:
                found: Message | User | None = await get(*args)
                return None if found is None or found.deleted else found

            return live

        replace(store, "get", make)

    broken.each_store(change)


@breaks(MessageReadsSuite, "test_get_gives_deleted_ones_and_none_for_absent_ones")
def get_looks_at_the_id_alone(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        async def by_id(_conversation: UUID, message_id: UUID, _deadline: Any) -> Message | None:
            return next((one for one in all_messages(broken, store) if one.id == message_id), None)

        replace(store, "get", lambda _: by_id)

    broken.each_store(change)


@breaks(MessageReadsSuite, "test_get_many_finds_those_that_exist_of_a_thousand")
@breaks(UserReadsSuite, "test_get_many_finds_those_that_exist_of_a_thousand")
def get_many_is_cut(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(get_many: Any) -> Any:
            async def cut(keys: Sequence[Any], deadline: Any) -> list[Any]:
                return list((await get_many(keys, deadline))[:100])

            return cut

        replace(store, "get_many", make)

    broken.each_store(change)


@breaks(MessageReadsSuite, "test_get_many_gives_a_message_asked_for_twice_once")
def get_many_repeats(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(get_many: Any) -> Any:
            async def repeated(keys: Sequence[Any], deadline: Any) -> list[Any]:
                return [one for key in keys for one in await get_many([key], deadline)]

            return repeated

        replace(store, "get_many", make)

    broken.each_store(change)


@breaks(MessageReadsSuite, "test_history_is_newest_first_and_oldest_first_when_asked")
def history_has_one_order(broken: BrokenStores) -> None:
    def make(_store: Any, history: Any) -> Any:
        async def newest(*args: Any, **options: Any) -> Any:
            return await history(*args, **{**options, "oldest_first": False})

        return newest

    on_history(broken, make)


@breaks(
    MessageReadsSuite,
    "test_history_goes_on_after_any_message_in_either_order",
    "test_walk_under_change_gives_every_staying_message_once",
)
def after_includes_its_message(broken: BrokenStores) -> None:
    def make(_store: Any, history: Any) -> Any:
        async def including(*args: Any, after: UUID | None = None, oldest_first: bool = False, **rest: Any) -> Any:
            step = -1 if oldest_first else 1
            near = None if after is None else UUID(int=after.int + step)
            return await history(*args, after=near, oldest_first=oldest_first, **rest)

        return including

    on_history(broken, make)


@breaks(MessageReadsSuite, "test_history_is_filled_to_the_limit_though_deleted_ones_are_left_out")
def limit_counts_deleted_ones(broken: BrokenStores) -> None:
    def make(_store: Any, history: Any) -> Any:
        async def unfilled(*args: Any, include_deleted: bool = False, **options: Any) -> list[Message]:
            found = await history(*args, include_deleted=True, **options)
            return [message for message in found if include_deleted or not message.deleted]

        return unfilled

    on_history(broken, make)


@breaks(MessageReadsSuite, "test_history_gives_deleted_ones_when_asked")
def history_never_gives_deleted_ones(broken: BrokenStores) -> None:
    def make(_store: Any, history: Any) -> Any:
        async def live(*args: Any, **options: Any) -> Any:
            return await history(*args, **{**options, "include_deleted": False})

        return live

    on_history(broken, make)


@breaks(MessageReadsSuite, "test_history_of_a_conversation_of_deleted_ones_is_empty")
def history_always_gives_deleted_ones(broken: BrokenStores) -> None:
    def make(_store: Any, history: Any) -> Any:
        async def everything(*args: Any, **options: Any) -> Any:
            return await history(*args, **{**options, "include_deleted": True})

        return everything

    on_history(broken, make)


@breaks(MessageReadsSuite, "test_history_keeps_conversations_apart")
def history_mixes_conversations(broken: BrokenStores) -> None:
    def make(store: Any, _history: Any) -> Any:
        async def mixed(_conversation: UUID, limit: int, _deadline: Any, **_options: Any) -> list[Message]:
            return sorted(all_messages(broken, store), key=lambda message: message.id)[:limit]

        return mixed

    on_history(broken, make)


@breaks(MessageReadsSuite, "test_history_orders_by_id_whatever_was_edited_later")
def history_orders_by_version(broken: BrokenStores) -> None:
    def make(_store: Any, history: Any) -> Any:
        async def by_version(*args: Any, **options: Any) -> list[Message]:
            return sorted(await history(*args, **options), key=lambda message: -message.version)

        return by_version

    on_history(broken, make)


@breaks(MessageReadsSuite, "test_reads_past_their_deadline_say_so")
@breaks(UserReadsSuite, "test_reads_past_their_deadline_say_so")
def reads_know_no_deadline(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        def make(call: Any) -> Any:
            async def patient(name: str, effect: Any, _deadline: Any = None, **options: Any) -> Any:
                return await call(name, effect, None, **options)

            return patient

        replace(store, "_call", make)

    broken.each_store(change)


@breaks(UserReadsSuite, "test_claim_owner_knows_live_claims_only")
def claims_are_never_released(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        async def owner(key: bytes, _deadline: Any) -> UUID | None:
            claim = broken.server.table(store.place).records.get(("claim", key))
            return None if claim is None else UUID(bytes=claim.fields[0])

        replace(store, "claim_owner", lambda _: owner)

    broken.each_store(change)


@breaks(UserReadsSuite, "test_claim_owner_tells_usernames_from_addresses")
def claims_are_not_told_apart(broken: BrokenStores) -> None:
    def change(store: Any) -> None:
        async def owner(_key: bytes, _deadline: Any) -> UUID | None:
            claims = [r for r in broken.server.table(store.place).records.values() if r.kind == "claim"]
            return next((UUID(bytes=record.fields[0]) for record in claims[::-1] if not record.deleted), None)

        replace(store, "claim_owner", lambda _: owner)

    broken.each_store(change)


def _on_page(broken: BrokenStores, make: Any) -> None:
    broken.each_store(lambda store: replace(store, "page", lambda page: make(store, page)))


@breaks(UserReadsSuite, "test_page_walks_all_live_users_by_id")
def page_gives_deleted_users(broken: BrokenStores) -> None:
    def make(store: Any, _page: Any) -> Any:
        async def everybody(limit: int, _deadline: Any, *, after: UUID | None = None) -> list[User]:
            records = broken.server.table(store.place).records.values()
            found = sorted((users.to_user(r) for r in records if r.kind == "user"), key=lambda user: user.id)
            return [user for user in found if after is None or user.id > after][:limit]

        return everybody

    _on_page(broken, make)


@breaks(UserReadsSuite, "test_page_walks_all_live_users_by_id")
def page_repeats_the_last_user(broken: BrokenStores) -> None:
    def make(_store: Any, page: Any) -> Any:
        async def including(limit: int, deadline: Any, *, after: UUID | None = None) -> Any:
            return await page(limit, deadline, after=None if after is None else UUID(int=after.int - 1))

        return including

    _on_page(broken, make)
