"""The search index in SQLite: FTS5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from datalayer.schemas.search import words_table
from datalayer.stores.sql.build import uuid_of
from datalayer.stores.sql.search import Part, SqlSearch
from datalayer.stores.sqlite.store import SqlitePlace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from datalayer.domains.search import Phrase


class SqliteSearch(SqlSearch, SqlitePlace):
    """Documents and their words in one file."""

    marker: ClassVar[str] = "?"

    def with_words(self, table: str, column: str, phrases: Sequence[Phrase]) -> list[Part]:
        """Of messages a reader's conversations come first, by their index, and each of their rows is asked for the words.

        Left to itself, SQLite looks up every row of the whole table that holds them: 449 ms for a word of 1,000,000
        messages. A single word is looked for row by row (5 ms), for FTS5 seeks within its list. Of phrases and
        beginnings it would make the list anew for each row, so that is done once (60 and 110 ms); the plus sign keeps
        SQLite from beginning there.
        """
        index = words_table(table)
        match = " AND ".join(f'"{" ".join(phrase.words)}"{" *" if phrase.prefix else ""}' for phrase in phrases)
        if column == "names":  # of users nothing else is asked
            return [Part(f"doc IN (SELECT rowid FROM {index} WHERE {index} MATCH ?)", (match,))]  # noqa: S608 - a name of the schema
        if len(phrases) == 1 and len(phrases[0].words) == 1 and not phrases[0].prefix:
            return [Part(f"EXISTS (SELECT 1 FROM {index} WHERE rowid = doc AND {index} MATCH ?)", (match,))]  # noqa: S608 - a name of the schema
        return [Part(f"+doc IN (SELECT rowid FROM {index} WHERE {index} MATCH ?)", (match,))]  # noqa: S608 - a name of the schema

    def one_of(self, column: str, ids: Sequence[UUID]) -> Part:
        # few texts: a list is padded with its last item to a power of two
        padded = [*ids, *[ids[-1]] * ((1 << (len(ids) - 1).bit_length()) - len(ids))]
        return Part(f"{column} IN ({', '.join('?' * len(padded))})", [one.bytes for one in padded])

    def _to_uuid(self, value: Any) -> UUID:
        return uuid_of(value)
