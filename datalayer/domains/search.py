"""The search domain: documents that follow from messages and users, queries, and the one definition of a match.

A projection: a document has the key, the version and the deleted flag of the record that it is made of, so that the
newer one wins here as it does there. A document of a deleted record stays, as a marker without content: whatever comes
late or twice lands below it and brings nothing back.

A query is a list of phrases that must all be found; a word alone is a phrase of one. ``matches`` is the reference for
every store. Stores give what matches newest first, by id and never by a score: so every product gives the same pages,
and a cursor is valid on either side of a move.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, cast
from uuid import UUID

from datalayer.domains.record import FieldSpec, Kind, Record, check_text
from datalayer.domains.users import normalise
from datalayer.domains.words import TEXT_MAX, Place, indexed, places_of, text_of, words_of
from datalayer.errors import InvalidArgument
from datalayer.types import Excerpt

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGE_DOC: Final = Kind("message_doc", (FieldSpec("sender_id", "uuid"), FieldSpec("body", "text")))
"""``body``: the words of the message (``words.indexed``)."""
USER_DOC: Final = Kind("user_doc", (FieldSpec("username", "text"), FieldSpec("names", "text")))
"""``username``: what users are ordered by (``sort_name``); ``names``: the words of username and display name."""
KINDS: Final = (MESSAGE_DOC, USER_DOC)
SORT_MAX: Final = 64
QUERY_BYTES: Final = 1024
QUERY_WORDS: Final = 32
EXCERPT_CHARS: Final = 200
BEFORE_CHARS: Final = 60
"""How much of an excerpt may lie before its first match."""
_NOBODY: Final = bytes(16)
_CHUNK: Final = re.compile(r'"([^"]*)"?|([^\s"]+)')
_QUOTES: Final = dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u00ab\u00bb"), '"')


class Phrase(NamedTuple):
    """Words that stand one after the other; with ``prefix`` the last of them is the beginning of a word."""

    words: tuple[str, ...]
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class MessageQuery:
    """What a store looks for: every phrase, in one of these conversations, and so on. Of ids as they sort."""

    phrases: tuple[Phrase, ...]
    conversations: tuple[UUID, ...]
    sender_id: UUID | None = None
    since: UUID | None = None
    """The least id."""
    until: UUID | None = None
    """The least id beyond."""


class Found(NamedTuple):
    """A message that a store has found: its key, and the version that its document has."""

    conversation_id: UUID
    id: UUID
    version: int

    @property
    def position(self) -> tuple[UUID, UUID]:
        """What results are ordered by, falling: the message's id, then the conversation's."""
        return self.id, self.conversation_id


class FoundUser(NamedTuple):
    """A user that a store has found."""

    id: UUID
    username: str
    version: int

    @property
    def position(self) -> tuple[str, UUID]:
        """What results are ordered by, rising: the name they sort by, in the order of its UTF-8 bytes, then the id."""
        return self.username, self.id


# --- documents -----------------------------------------------------------------------------------------------------


def document_of(record: Record) -> Record | None:
    """The document of a record of messages or users; None for a kind that is not searched (claims)."""
    if record.kind == "message":
        if record.deleted:
            return tombstone("message_doc", record.key, record.version)
        sender, body = cast("tuple[bytes, str]", record.fields[:2])
        return Record("message_doc", record.key, record.version, False, (sender, body_words(body)))
    if record.kind == "user":
        if record.deleted:
            return tombstone("user_doc", record.key, record.version)
        username, _, display_name = cast("tuple[str, str | None, str]", record.fields[:3])
        fields = (sort_name(username), names_words(username, display_name))
        return Record("user_doc", record.key, record.version, False, fields)
    return None


def tombstone(kind: str, key: bytes, version: int) -> Record:
    """The marker of what was deleted."""
    return Record(kind, key, version, True, (_NOBODY, "") if kind == "message_doc" else ("", ""))


def body_words(body: str) -> str:
    """What of a message's body is searched."""
    return indexed(text_of(body))


def names_words(username: str, display_name: str) -> str:
    """What of a user is searched."""
    return " ".join([*words_of(username), *words_of(display_name)])


def sort_name(username: str) -> str:
    """What users are ordered by: the form in which their names are unique, cut."""
    return normalise("username", username)[:SORT_MAX]


# --- queries -------------------------------------------------------------------------------------------------------


def parse_query(text: str) -> tuple[Phrase, ...]:
    """The phrases of what a person typed. InvalidArgument for what cannot be searched for.

    White space parts phrases; quotes hold words together, and so does what is written without a space (``foo-bar``,
    ``東京``). A ``*`` behind a word makes it the beginning of one. There are no other operators: anything else that is
    no word only parts words.
    """
    check_text(text, "the query", QUERY_BYTES)
    phrases: dict[Phrase, None] = {}
    for found in _CHUNK.finditer(text.translate(_QUOTES)):
        chunk = (found[1] if found[2] is None else found[2]).rstrip()
        words = tuple(words_of(chunk))
        if words:
            phrases[Phrase(words, chunk.endswith("*"))] = None
    _check_words(sum(len(phrase.words) for phrase in phrases))
    return tuple(phrases)


def parse_prefix(text: str) -> Phrase:
    """The phrase of the beginning of a name. InvalidArgument for what cannot be searched for."""
    check_text(text, "the prefix", QUERY_BYTES)
    words = tuple(words_of(text))
    _check_words(len(words))
    return Phrase(words, prefix=True)


def matches(phrases: Sequence[Phrase], words: str) -> bool:
    """Whether a text of words holds every phrase: the reference for every store."""
    padded = f" {words} "
    return all(needle(phrase) in padded for phrase in phrases)


def needle(phrase: Phrase) -> str:
    """What ``matches`` looks for between spaces."""
    return f" {' '.join(phrase.words)}{'' if phrase.prefix else ' '}"


def matches_names(phrase: Phrase, username: str, display_name: str) -> bool:
    """Whether a user's name begins so, or any word of it: the phrase lies in one of the two names."""
    return any(matches((phrase,), " ".join(words_of(name))) for name in (username, display_name))


def excerpt_of(phrases: Sequence[Phrase], body: str) -> Excerpt:
    """At most 200 characters of the text of a message around its first match, and where in it the matches are.

    A match beyond the first 100,000 characters is not looked for.
    """
    text = text_of(body)
    places: list[Place] = []
    marks: set[tuple[int, int]] = set()
    start, end = 0, None
    for place in places_of(text[:TEXT_MAX]):
        if end is not None and place.start > end:
            break
        places.append(place)
        for phrase in phrases:
            run = places[-len(phrase.words) :]
            if len(run) == len(phrase.words) and _same(run, phrase):
                marks |= {(one.start, one.end) for one in run}
                if end is None:
                    start = max(0, run[0].start - BEFORE_CHARS)
                    end = start + EXCERPT_CHARS
    end = start + EXCERPT_CHARS
    inside = tuple((low - start, high - start) for low, high in sorted(marks) if low >= start and high <= end)
    return Excerpt(text[start:end], inside)


def _same(run: Sequence[Place], phrase: Phrase) -> bool:
    *rest, last = phrase.words
    if any(place.word != word for place, word in zip(run, rest, strict=False)):
        return False
    return run[-1].word.startswith(last) if phrase.prefix else run[-1].word == last


def _check_words(number: int) -> None:
    if number == 0:
        raise InvalidArgument(
            "the query holds no word to search for", hint="letters and digits are searched; punctuation is not"
        )
    if number > QUERY_WORDS:
        raise InvalidArgument(f"the query holds {number} words; the limit is {QUERY_WORDS}")
