"""What of a text is searched, and what a query means."""

import random
import time
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalayer.domains import messages, search, users
from datalayer.domains.record import Record
from datalayer.domains.search import Phrase, parse_prefix, parse_query
from datalayer.domains.words import TEXT_MAX, WORD_MAX, indexed, places_of, text_of, words_of
from datalayer.errors import InvalidArgument
from datalayer.types import Excerpt, Message, User


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", "hello world"),
        ("Straße ﬁn", "strasse fin"),
        ("don't foo-bar_baz a.b@c.de", "don t foo bar_baz a b c de"),
        ("cafe\u0301 caf\u00e9", "café café"),
        ("हिन्दी नमस्ते", "हिन्दी नमस्ते"),
        ("東京タワー x", "東 京 タ ワ ー x"),
        ("\u0e2a\u0e27\u0e31 x", "\u0e2a \u0e27 \u0e31 x"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("½ ² №", "1 2 2 no"),
        ("\u05e9\u05dc\u05d5\u05dd \u202eabc", "שלום abc"),
        ("👩‍🚀 !!! \u2028", ""),
        ("x" * 100 + " y", "x" * WORD_MAX + " y"),
    ],
)
def test_a_text_is_cut_into_words(text: str, words: str) -> None:
    assert indexed(text) == words


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<p>one</p><p>two</p>", " one  two "),
        ("<b>he</b>llo<br/>you", "hello you"),
        ('<a href="https://x.org">here</a>', "here"),
        ("a < b and b > c", "a < b and b > c"),
        ("vector<int> x;", "vector<int> x;"),
        ("<!-- gone -->left", " left"),
        ("5 &lt; 6 &amp;&amp; caf&eacute;", "5 < 6 && café"),
        ("<P CLASS='x'>big</P>", " big "),
        ("a <b", "a <b"),
    ],
)
def test_of_html_the_text_counts(body: str, text: str) -> None:
    assert text_of(body) == text


@settings(max_examples=50)
@given(st.text())
def test_words_hold_no_space_and_come_back_as_they_are(text: str) -> None:
    words = words_of(text)
    assert all(word and not set(word) & set(" \"'*\\:&|!()<>\x00") for word in words)
    assert all(word.split() == [word] for word in words)
    assert all(len(word) <= WORD_MAX for word in words)


@pytest.mark.parametrize(
    "text",
    [
        "<a " * 300_000,
        "<!--" * 250_000,
        "&" * 1_000_000,
        "a\u0301\u0323" * 300_000,
        "\u0301\u0323" * 400_000,
        "<a \"'" * 200_000,
    ],
    ids=["tags", "comments", "entities", "marks", "marks alone", "quotes"],
)
def test_no_text_takes_longer_than_its_length(text: str) -> None:
    start = time.process_time()
    search.body_words(text)
    assert time.process_time() - start < 3.0


def test_a_long_text_is_cut_between_words() -> None:
    words = indexed(" ".join(f"w{at}" for at in range(30_000)))
    assert TEXT_MAX - WORD_MAX < len(words) <= TEXT_MAX
    assert words.split()[-1] == f"w{len(words.split()) - 1}"


@pytest.mark.parametrize(
    ("typed", "phrases"),
    [
        ("hello World", [Phrase(("hello",)), Phrase(("world",))]),
        ('"big deal" now', [Phrase(("big", "deal")), Phrase(("now",))]),
        ("\u201cbig deal\u201d", [Phrase(("big", "deal"))]),
        ("hel* foo-ba*", [Phrase(("hel",), True), Phrase(("foo", "ba"), True)]),
        ('"open end', [Phrase(("open", "end"))]),
        ('"big dea*"', [Phrase(("big", "dea"), True)]),
        ("a a A", [Phrase(("a",))]),
        ("東京", [Phrase(("東", "京"))]),
        ("AND or NOT (x:y) -z +w ~2 ^3", [Phrase((w,)) for w in ("and", "or", "not")] + [Phrase(("x", "y")), *(Phrase((w,)) for w in ("z", "w", "2", "3"))]),
        ("body:secret", [Phrase(("body", "secret"))]),
    ],
)  # fmt: skip
def test_a_query_is_a_list_of_phrases(typed: str, phrases: list[Phrase]) -> None:
    assert list(parse_query(typed)) == phrases


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "no word"),
        ("   ", "no word"),
        ("!!! && || ()", "no word"),
        ("* \"\" ''", "no word"),
        ("a\x00b", "NUL"),
        ("\ud800", "surrogate"),
        ("x" * 1025, "1024"),
        (" ".join(f"w{at}" for at in range(33)), "33 words; the limit is 32"),
        (None, "must be text"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(typed: str, said: str) -> None:
    for parse in (parse_query, parse_prefix):
        with pytest.raises(InvalidArgument, match=said):
            parse(typed)


def test_words_without_an_operator_are_searched_like_any() -> None:
    """There are no stop words: "the" is a word."""
    assert parse_query("the") == (Phrase(("the",)),)


def test_a_match_holds_every_phrase() -> None:
    words = indexed("The quick brown fox, 東京タワー")
    for typed in ("fox", "quick the", '"quick brown"', "qui*", '"brown fo*"', "京タ", "FOX"):
        assert search.matches(parse_query(typed), words), typed
    for typed in ("fo", "quick fix", '"brown quick"', "rown*", "京東", "quickbrown"):
        assert not search.matches(parse_query(typed), words), typed


def test_documents_follow_from_records() -> None:
    room, id, sender = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    record = messages.to_record(Message(id, room, sender, "<p>Hello</p> you", version=7))
    assert search.document_of(record) == Record(
        "message_doc", room.bytes + id.bytes, 7, False, (sender.bytes, "hello you")
    )
    gone = search.document_of(record._replace(deleted=True, version=9))
    assert gone == search.tombstone("message_doc", record.key, 9)
    user = users.to_record(User(id, "Ann.B", display_name="Ann Bée", version=3))
    assert search.document_of(user) == Record("user_doc", id.bytes, 3, False, ("ann.b", "ann b ann bée"))
    assert search.document_of(user._replace(deleted=True)) == search.tombstone("user_doc", id.bytes, 3)
    assert search.document_of(users.claim_record(users.claim_key("username", "ann"), id, 3)) is None


def test_a_name_matches_at_its_beginning_or_at_that_of_a_word() -> None:
    for prefix in ("an", "ann.", "ann b", "smi", "Ann Sm"):
        assert search.matches_names(parse_prefix(prefix), "ann.b", "Ann Smith"), prefix
    for prefix in ("nn", "b ann", "smith ann"):
        assert not search.matches_names(parse_prefix(prefix), "ann.b", "Ann Smith"), prefix


def test_an_excerpt_shows_the_first_match_and_marks_all_it_shows() -> None:
    body = "<p>" + "lead " * 40 + "the <b>Quick</b> brown fox</p> quick"
    found = search.excerpt_of(parse_query('quick "brown fo*"'), body)
    assert len(found.text) <= search.EXCERPT_CHARS
    assert [found.text[low:high] for low, high in found.marks] == ["Quick", "brown", "fox", "quick"]
    assert search.excerpt_of(parse_query("京タ"), "東京タワー") == Excerpt("東京タワー", ((1, 2), (2, 3)))
    assert search.excerpt_of(parse_query("absent"), "short").text == "short"


def test_an_excerpt_of_a_long_text_costs_what_lies_before_its_match() -> None:
    start = time.process_time()
    found = search.excerpt_of(parse_query("end"), "the end " + "word " * 200_000)
    assert found.marks == ((4, 7),)
    assert time.process_time() - start < 0.2
    assert search.excerpt_of(parse_query("end"), "word " * 30_000 + "end").marks == ()


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_places_are_where_the_words_stand(text: str) -> None:
    for place in places_of(text):
        assert place.word in words_of(text[place.start : place.end])


def test_cutting_is_cheap() -> None:
    rng = random.Random(1)
    body = "<p>" + " ".join("".join(rng.choices("abcdefgh", k=6)) for _ in range(25)) + "</p>"
    start = time.process_time()
    for _ in range(1000):
        search.body_words(body)
    assert time.process_time() - start < 0.5, "about 10 us each"
