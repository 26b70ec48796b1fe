"""Broken search indexes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from datalayer.domains.record import Record
from datalayer.domains.search import MessageQuery, Phrase
from datalayer.stores.memory.table import Table
from datalayer.testing.contract import SearchReadsSuite
from tests.contract.broken.breakage import BrokenStores, Registry, replace
from tests.contract.broken.port import overwrite

SEARCH = Registry()
breaks = SEARCH.breaks


def on_query(broken: BrokenStores, change: Callable[[MessageQuery], MessageQuery]) -> None:
    """Change each query on its way into the index."""

    def on_store(store: Any) -> None:
        def make(messages: Any) -> Any:
            async def asked(query: MessageQuery, *rest: Any, **options: Any) -> Any:
                return await messages(change(query), *rest, **options)

            return asked

        replace(store, "messages", make)

    broken.each_store(on_store)


def on_phrases(broken: BrokenStores, change: Callable[[Phrase], Phrase]) -> None:
    on_query(broken, lambda query: dataclasses.replace(query, phrases=tuple(change(one) for one in query.phrases)))


def on_found(broken: BrokenStores, name: str, change: Callable[[Any], Any]) -> None:
    """Change what a read gives."""

    def on_store(store: Any) -> None:
        def make(read: Any) -> Any:
            async def given(*args: Any, **options: Any) -> Any:
                return change(await read(*args, **options))

            return given

        replace(store, name, make)

    broken.each_store(on_store)


@breaks(SearchReadsSuite, "test_messages_gives_exactly_what_matches_newest_first", domain="search")
def any_phrase_will_do(broken: BrokenStores) -> None:
    on_query(broken, lambda query: dataclasses.replace(query, phrases=query.phrases[:1]))


@breaks(SearchReadsSuite, "test_messages_gives_exactly_what_matches_newest_first", domain="search")
def words_of_a_phrase_in_any_order(broken: BrokenStores) -> None:
    def loose(query: MessageQuery) -> MessageQuery:
        parts = [
            Phrase((word,), phrase.prefix and at == len(phrase.words) - 1)
            for phrase in query.phrases
            for at, word in enumerate(phrase.words)
        ]
        return dataclasses.replace(query, phrases=tuple(parts))

    on_query(broken, loose)


@breaks(
    SearchReadsSuite,
    "test_messages_gives_exactly_what_matches_newest_first",
    "test_pages_of_any_size_are_filled_and_go_on_after_any_position",
    domain="search",
)
def no_beginnings(broken: BrokenStores) -> None:
    on_phrases(broken, lambda phrase: phrase._replace(prefix=False))


@breaks(SearchReadsSuite, "test_messages_gives_exactly_what_matches_newest_first", domain="search")
def the_sender_does_not_count(broken: BrokenStores) -> None:
    on_query(broken, lambda query: dataclasses.replace(query, sender_id=None))


@breaks(SearchReadsSuite, "test_messages_gives_exactly_what_matches_newest_first", domain="search")
def the_time_does_not_count(broken: BrokenStores) -> None:
    on_query(broken, lambda query: dataclasses.replace(query, since=None, until=None))


@breaks(
    SearchReadsSuite,
    "test_messages_gives_exactly_what_matches_newest_first",
    "test_pages_of_any_size_are_filled_and_go_on_after_any_position",
    "test_only_the_conversations_named_are_searched",
    domain="search",
)
def oldest_first(broken: BrokenStores) -> None:
    on_found(broken, "messages", lambda found: found[::-1])


@breaks(SearchReadsSuite, "test_pages_of_any_size_are_filled_and_go_on_after_any_position", domain="search")
def pages_are_not_filled(broken: BrokenStores) -> None:
    on_found(broken, "messages", lambda found: found[:5])


@breaks(
    SearchReadsSuite,
    "test_pages_of_any_size_are_filled_and_go_on_after_any_position",
    "test_walk_under_change_gives_every_staying_document_once",
    domain="search",
)
def the_position_is_left_out(broken: BrokenStores) -> None:
    def on_store(store: Any) -> None:
        def make(messages: Any) -> Any:
            async def from_the_start(*args: Any, after: Any = None) -> Any:
                return await messages(*args)

            return from_the_start

        replace(store, "messages", make)

    broken.each_store(on_store)


@breaks(
    SearchReadsSuite,
    "test_only_the_conversations_named_are_searched",
    "test_messages_gives_exactly_what_matches_newest_first",
    domain="search",
)
def one_conversation_too_many(broken: BrokenStores) -> None:
    rooms: list[Any] = []

    def more(query: MessageQuery) -> MessageQuery:
        rooms.extend(query.conversations)
        return dataclasses.replace(query, conversations=tuple(dict.fromkeys(rooms)))

    on_query(broken, more)


@breaks(
    SearchReadsSuite,
    "test_shuffled_and_repeated_edits_leave_the_newest_words",
    "test_nothing_brings_a_deleted_document_back",
    "test_a_user_is_found_by_the_newest_name_alone",
    domain="search",
)
def the_last_applied_wins(broken: BrokenStores) -> None:
    replace(broken.server, "put", lambda _: overwrite)


@breaks(
    SearchReadsSuite,
    "test_nothing_brings_a_deleted_document_back",
    "test_a_user_is_found_by_the_newest_name_alone",
    domain="search",
)
def a_deleted_document_is_forgotten(broken: BrokenStores) -> None:
    def put(table: Table, record: Record) -> bool:
        return table.remove(record.ident) is not None if record.deleted else table.put(record)

    replace(broken.server, "put", lambda _: put)


@breaks(
    SearchReadsSuite,
    "test_no_text_of_a_person_is_taken_for_syntax",
    "test_messages_gives_exactly_what_matches_newest_first",
    domain="search",
)
def reserved_words_are_left_out(broken: BrokenStores) -> None:
    def without(query: MessageQuery) -> MessageQuery:
        reserved = {("and",), ("or",), ("not",), ("near",), ("body",)}
        return dataclasses.replace(query, phrases=tuple(one for one in query.phrases if one.words not in reserved))

    on_query(broken, without)


@breaks(SearchReadsSuite, "test_every_word_of_a_long_text_is_found", domain="search")
def texts_are_cut(broken: BrokenStores) -> None:
    def make(put: Any) -> Any:
        def short(table: Table, record: Record) -> bool:
            fields = [value[:65_536] if isinstance(value, str) else value for value in record.fields]
            landed: bool = put(table, record._replace(fields=tuple(fields)))
            return landed

        return short

    replace(broken.server, "put", make)


@breaks(SearchReadsSuite, "test_what_was_applied_is_found_within_the_bound", domain="search")
def a_document_is_found_after_the_next(broken: BrokenStores) -> None:
    def on_store(store: Any) -> None:
        waiting: list[Record] = []

        def make(apply: Any) -> Any:
            async def late(records: Sequence[Record]) -> None:
                await apply(waiting)
                waiting[:] = records

            return late

        replace(store, "apply", make)

    broken.each_store(on_store)


@breaks(SearchReadsSuite, "test_users_gives_exactly_those_so_named_in_the_order_of_names", domain="search")
def users_by_id(broken: BrokenStores) -> None:
    on_found(broken, "users", lambda found: sorted(found, key=lambda one: one.id))


@breaks(SearchReadsSuite, "test_users_gives_exactly_those_so_named_in_the_order_of_names", domain="search")
def users_by_whole_words(broken: BrokenStores) -> None:
    def on_store(store: Any) -> None:
        def make(users: Any) -> Any:
            async def whole(phrase: Phrase, *rest: Any, **options: Any) -> Any:
                return await users(phrase._replace(prefix=False), *rest, **options)

            return whole

        replace(store, "users", make)

    broken.each_store(on_store)


@breaks(SearchReadsSuite, "test_reads_past_their_deadline_say_so", domain="search")
def no_deadlines(broken: BrokenStores) -> None:
    def on_store(store: Any) -> None:
        async def nothing(*_: Any, **__: Any) -> list[Any]:
            return []

        for name in ("messages", "users"):
            replace(store, name, lambda _: nothing)

    broken.each_store(on_store)


@breaks(SearchReadsSuite, "test_reads_of_a_dropped_place_say_that_the_route_is_stale", domain="search")
def a_dropped_place_is_empty(broken: BrokenStores) -> None:
    def make(drop: Any) -> Any:
        def emptied(place: tuple[str, int]) -> None:
            drop(place)
            broken.server.create(place)

        return emptied

    replace(broken.server, "drop", make)
