"""The promises of a search index: exactly what matches, newest first, and nothing that was deleted or replaced.

What it must give is computed by the reference (``domains.search.matches``) over the same documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains.search import (
    Found,
    FoundUser,
    MessageQuery,
    Phrase,
    matches,
    parse_prefix,
    parse_query,
    sort_name,
    tombstone,
)
from datalayer.domains.words import TEXT_MAX, WORD_MAX, indexed
from datalayer.errors import DeadlineExceeded, InvalidArgument, StaleRoute
from datalayer.ids import uuid7_at
from datalayer.testing.contract.fixture import StoreFixture, refused
from datalayer.testing.contract.values import Maker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datalayer.domains.record import Record

_WORDS: Final = (
    "a the of hello hell help helping under_score under _ __init__ 1 12 123 caf\u00e9 cafe stra\u00dfe \u05e9\u05dc\u05d5\u05dd "
    "\u6771\u4eac \u6771 \u0e2a\u0e27 \u0928\u092e\u0938\u094d\u0924\u0947 x\u0301 and or not near body null"
)
VOCABULARY: Final = tuple(_WORDS.split())
"""Words that products cut, fold or reserve in their own ways."""
HOSTILE: Final = (
    *"\"'*():-+~^<>|&!%_\\/{}[]@#$?=;,.`",
    *(
        " AND ",
        " OR ",
        " NOT ",
        " NEAR(",
        "NEAR/2",
        ":*",
        "<->",
        "body:",
        "_exists_:",
        "{!",
        "*:*",
        "..",
        "--",
        "/*",
        "%s",
    ),
    *("\u201c", "\u00ab", "\u2028", "\ufeff", "\U0001f469\u200d\U0001f680", "\u0301", "\\u0000", "';DROP TABLE x;--"),
)
_WALK_PAGES_MAX: Final = 400


def answers(query: MessageQuery, documents: Iterable[Record]) -> list[Found]:
    """What a query must give, by the reference, of the newest documents."""
    found = []
    rooms = frozenset(query.conversations)
    for one in documents:
        sender, words = one.fields
        room, id = UUID(bytes=one.key[:16]), UUID(bytes=one.key[16:])
        assert isinstance(words, str), "words are text"
        fits = (
            not one.deleted
            and room in rooms
            and (query.sender_id is None or query.sender_id.bytes == sender)
            and (query.since is None or query.since <= id)
            and (query.until is None or id < query.until)
        )
        if fits and matches(query.phrases, words):
            found.append(Found(room, id, one.version))
    return sorted(found, key=lambda one: one.position, reverse=True)


class Talk:
    """Documents of some rooms, made of a small vocabulary so that most queries find some."""

    def __init__(self, fixture: StoreFixture, maker: Maker, size: int) -> None:
        self._random = fixture.random
        self.rooms = [maker.id() for _ in range(4)]
        self.senders = [maker.id() for _ in range(3)]
        self.maker = maker
        self.documents = [self.document() for _ in range(size)]

    def document(self, id: UUID | None = None, version: int | None = None) -> Record:
        """A document of one of the rooms."""
        room, sender = self._random.choice(self.rooms), self._random.choice(self.senders)
        return self.maker.message_doc(room, id, version=version, body=self.words(), sender=sender)

    def words(self) -> str:
        """Up to nine words."""
        return indexed(" ".join(self._random.choices(VOCABULARY, k=self._random.randrange(10))))

    def query(self) -> MessageQuery:
        """A query of one to three phrases; now and then narrowed."""
        rng = self._random
        phrases = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            words = indexed(" ".join(rng.choices(VOCABULARY, k=rng.choice((1, 1, 2, 3))))).split()
            prefix = rng.random() < 0.3
            last = words[-1][: rng.randrange(1, 4)] if prefix else words[-1]
            phrases.append(Phrase((*words[:-1], last), prefix))
        times = sorted(self.maker.now_us - rng.randrange(365 * 86_400_000_000) for _ in range(2))
        return MessageQuery(
            tuple(phrases),
            tuple(rng.sample(self.rooms, rng.randrange(1, 5))),
            rng.choice((None, None, *self.senders)),
            uuid7_at(times[0], 0) if rng.random() < 0.3 else None,
            uuid7_at(times[1], 0) if rng.random() < 0.3 else None,
        )


class SearchReadsSuite:
    """Subclass it with a fixture ``fixture`` that gives a StoreFixture."""

    async def test_messages_gives_exactly_what_matches_newest_first(self, fixture: StoreFixture) -> None:
        store, talk = await _talk(fixture, 300)
        found_some = 0
        for _ in range(60 * fixture.scale):
            query = talk.query()
            expected = answers(query, talk.documents)
            assert await store.messages(query, 1000, fixture.deadline()) == expected, query.phrases
            found_some += bool(expected)
        assert found_some > 10, "most queries find nothing: this says nothing"

    async def test_pages_of_any_size_are_filled_and_go_on_after_any_position(self, fixture: StoreFixture) -> None:
        store, talk = await _talk(fixture, 80)
        # ids of one moment in two rooms: the conversation decides their order
        twins = [talk.maker.message_doc(room, talk.maker.id(), body="hello") for room in talk.rooms]
        twins += [one._replace(key=one.key[:16] + twins[0].key[16:]) for one in twins[1:]]
        await _stored(store, twins)
        query = MessageQuery((Phrase(("he",), prefix=True),), tuple(talk.rooms))
        expected = answers(query, [*talk.documents, *twins])
        assert len(expected) > 20
        for limit in (1, 7, 1000):
            assert await _walked(store, query, limit, fixture) == expected

    async def test_only_the_conversations_named_are_searched(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("search"), Maker(fixture)
        rooms = [maker.id() for _ in range(1000)]
        documents = [maker.message_doc(room, body="hello") for room in (*rooms[:40], maker.id(), maker.id())]
        await _stored(store, documents)
        for asked in (rooms, rooms[:1], rooms[30:40], rooms[40:]):
            query = MessageQuery((Phrase(("hello",)),), tuple(asked))
            assert await store.messages(query, 1000, fixture.deadline()) == answers(query, documents)

    async def test_shuffled_and_repeated_edits_leave_the_newest_words(self, fixture: StoreFixture) -> None:
        store, talk = await _talk(fixture, 40)
        newest = []
        changes = []
        for one in talk.documents:
            versions = [
                one._replace(version=one.version + 2 * at, fields=(one.fields[0], talk.words())) for at in (1, 2, 3)
            ]
            changes += [one, *versions]
            newest.append(versions[-1])
        changes *= 2
        fixture.random.shuffle(changes)
        for at in range(0, len(changes), 17):
            await store.apply(changes[at : at + 17])
        await store.refresh()
        for word in VOCABULARY:
            query = MessageQuery(parse_query(word), tuple(talk.rooms)) if indexed(word) else talk.query()
            assert await store.messages(query, 1000, fixture.deadline()) == answers(query, newest), word

    async def test_nothing_brings_a_deleted_document_back(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("search"), Maker(fixture)
        room = maker.id()
        documents = [maker.message_doc(room, body="hello") for _ in range(30)]
        doomed = documents[:20]
        edits = [one._replace(version=one.version + 2) for one in doomed]
        tombs = [tombstone("message_doc", one.key, one.version + 4) for one in doomed]
        await _stored(store, [*tombs[:10], *documents, *edits])
        await _stored(store, [*tombs, *edits, *doomed])
        query = MessageQuery((Phrase(("hello",)),), (room,))
        assert await store.messages(query, 1000, fixture.deadline()) == answers(query, documents[20:])
        # of a key that may be used again, only a newer version comes back
        again = doomed[0]._replace(version=tombs[0].version + 2)
        await _stored(store, [again])
        assert await store.messages(query, 1000, fixture.deadline()) == answers(query, [*documents[20:], again])

    async def test_walk_under_change_gives_every_staying_document_once(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("search"), Maker(fixture)
        room = maker.id()
        documents = [maker.message_doc(room, body="hello") for _ in range(40)]
        await _stored(store, documents)
        doomed = documents[::4]
        query = MessageQuery((Phrase(("hello",)),), (room,))
        met: list[Found] = []
        after = None
        for turn in range(_WALK_PAGES_MAX):
            page = await store.messages(query, 3, fixture.deadline(), after=after)
            met += page
            if turn < len(doomed):
                tomb = tombstone("message_doc", doomed[turn].key, doomed[turn].version + 2)
                await _stored(store, [tomb, maker.message_doc(room, body="hello")])
            if not page:
                break
            after = page[-1].position
        positions = [one.position for one in met]
        assert positions == sorted(set(positions), reverse=True), "in order, none twice"
        assert {one.key[16:] for one in documents if one not in doomed} <= {one.id.bytes for one in met}

    async def test_no_text_of_a_person_is_taken_for_syntax(self, fixture: StoreFixture) -> None:
        store, talk = await _talk(fixture, 120)
        rooms = tuple(talk.rooms)
        rng = fixture.random
        asked = 0
        for _ in range(150 * fixture.scale):
            parts = rng.choices((*HOSTILE, *VOCABULARY), k=rng.randrange(1, 8))
            typed = rng.choice(("", " ")).join(parts)
            try:
                query = MessageQuery(parse_query(typed), rooms)
            except InvalidArgument:
                continue
            found = await store.messages(query, 1000, fixture.deadline())
            assert found == answers(query, talk.documents), ascii(typed)
            asked += 1
        assert asked > 50 * fixture.scale

    async def test_every_word_of_a_long_text_is_found(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("search"), Maker(fixture)
        room = maker.id()
        long = " ".join(f"w{at}" for at in range(20_000))[:TEXT_MAX].rpartition(" ")[0]
        documents = [
            maker.message_doc(room, body=long),
            maker.message_doc(room, body=f"{'same ' * 19_000}same end"),
            maker.message_doc(room, body=" ".join(chr(0x20000 + at % 5000) * WORD_MAX for at in range(1500))),
        ]
        await _stored(store, documents)
        words = long.split()
        queries = ["w0", words[-1], f'"{words[-2]} {words[-1]}"', '"same end"', "same", words[-1][:3] + "*"]
        phrases = [*map(parse_query, queries), (Phrase((chr(0x20000) * WORD_MAX,)),), (Phrase(("w9", "w11")),)]
        for one in phrases:
            query = MessageQuery(one, (room,))
            assert await store.messages(query, 10, fixture.deadline()) == answers(query, documents), one

    async def test_what_was_applied_is_found_within_the_bound(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("search"), Maker(fixture)
        assert 0 <= store.visible_within_s <= 1
        room = maker.id()
        query = MessageQuery((Phrase(("hello",)),), (room,))
        documents: list[Record] = []
        for _ in range(3):
            documents.append(maker.message_doc(room, body="hello"))
            await store.apply(documents[-1:])
            expected = answers(query, documents)
            if store.visible_within_s == 0:
                assert await store.messages(query, 10, fixture.deadline()) == expected
                continue

            async def visible(expected: list[Found] = expected) -> bool:
                found: list[Found] = await store.messages(query, 10, fixture.deadline())
                return found == expected

            await fixture.until(visible, "the document is found without a refresh")

    # users
    async def test_users_gives_exactly_those_so_named_in_the_order_of_names(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("search"), Maker(fixture)
        names = [
            "Ann",
            "anna",
            "ann.b",
            "bob",
            "\u00c4nne",
            "Zo\u00eb Ann",
            "\u6771\u4eac",
            "_ann_",
            "ann",
            "stra\u00dfe",
            "%",
            "a_n",
        ]
        documents = []
        for at in range(120):
            username, shown = f"{fixture.random.choice(names)}{at % 7}", fixture.random.choice(names)
            words = f"{indexed(username)} {indexed(shown)}".strip()
            documents.append(maker.user_doc(username=sort_name(username), names=words, deleted=at % 11 == 0))
        await _stored(store, documents)
        for typed in (
            "a",
            "an",
            "ann",
            "ann b",
            "zo\u00eb a",
            "\u6771",
            "_a",
            "bob",
            "nobody",
            "stra",
            "a_",
            "\u00e4n",
        ):
            expected = _named(parse_prefix(typed), documents)
            for limit in (1, 7, 1000):
                assert await _users_walked(store, parse_prefix(typed), limit, fixture) == expected, typed

    async def test_a_user_is_found_by_the_newest_name_alone(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("search"), Maker(fixture)
        first = [maker.user_doc(username=f"old{at}") for at in range(10)]
        renamed = [one._replace(version=one.version + 2, fields=("new", "new name")) for one in first]
        gone = [tombstone("user_doc", one.key, one.version + 4) for one in first[:3]]
        await _stored(store, [*gone, *first, *renamed])
        await _stored(store, [*first, *renamed])
        assert await store.users(parse_prefix("old"), 100, fixture.deadline()) == []
        expected = _named(parse_prefix("na"), renamed[3:])
        assert await store.users(parse_prefix("na"), 100, fixture.deadline()) == expected

    async def test_reads_past_their_deadline_say_so(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place("search"), Maker(fixture)
        query = MessageQuery((Phrase(("hello",)),), (maker.id(),))
        await refused(DeadlineExceeded, store.messages(query, 10, fixture.deadline(-1.0)))
        await refused(DeadlineExceeded, store.users(Phrase(("hello",)), 10, fixture.deadline(-1.0)))

    async def test_reads_of_a_dropped_place_say_that_the_route_is_stale(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh("search"), Maker(fixture)
        await store.drop()
        query = MessageQuery((Phrase(("hello",)),), (maker.id(),))
        await refused(StaleRoute, store.messages(query, 10, fixture.deadline()))
        await refused(StaleRoute, store.users(Phrase(("hello",)), 10, fixture.deadline()))


async def _talk(fixture: StoreFixture, size: int) -> tuple[Any, Talk]:
    store, talk = await fixture.place("search"), Talk(fixture, Maker(fixture), size)
    await _stored(store, talk.documents)
    return store, talk


async def _stored(store: Any, documents: Sequence[Record]) -> None:
    await store.apply(documents)
    await store.refresh()


async def _walked(store: Any, query: MessageQuery, limit: int, fixture: StoreFixture) -> list[Found]:
    met: list[Found] = []
    for _ in range(_WALK_PAGES_MAX):
        page = await store.messages(query, limit, fixture.deadline(), after=met[-1].position if met else None)
        met += page
        if len(page) < limit:
            return met
    raise AssertionError("the walk does not end")


async def _users_walked(store: Any, phrase: Phrase, limit: int, fixture: StoreFixture) -> list[FoundUser]:
    met: list[FoundUser] = []
    for _ in range(_WALK_PAGES_MAX):
        page = await store.users(phrase, limit, fixture.deadline(), after=met[-1].position if met else None)
        met += page
        if len(page) < limit:
            return met
    raise AssertionError("the walk does not end")


def _named(phrase: Phrase, documents: Iterable[Record]) -> list[FoundUser]:
    found = []
    for one in documents:
        username, names = one.fields
        assert isinstance(username, str)
        assert isinstance(names, str)
        if not one.deleted and matches((phrase,), names):
            found.append(FoundUser(UUID(bytes=one.key), username, one.version))
    return sorted(found, key=lambda one: (one.username.encode(), one.id))
