"""The search index in SQLite: FTS5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from datalayer.schemas.search import words_table
from datalayer.stores.sql.build import uuid_of
from datalayer.stores.sql.search import Part, SqlSearch
from datalayer.stores.sqlite.store import SqlitePlace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.domains.search import Phrase

FEW: Final = 5000
"""So many messages hold the words at most: looking each of them up is the shortest way."""
ROOMS: Final = 64
"""So many conversations of a reader are read through sooner than a list of the whole table is looked up."""


class SqliteSearch(SqlSearch, SqlitePlace):
    """Documents and their words in one file."""

    marker: ClassVar[str] = "?"

    def with_words(self, table: str, column: str, phrases: Sequence[Phrase]) -> list[Part]:
        return [self._held(table, phrases)]

    async def words_of_messages(
        self, table: str, phrases: Sequence[Phrase], conversations: int, deadline: Deadline
    ) -> list[Part]:
        """Where many messages hold the words, a reader's conversations come first, by their index.

        Left to itself SQLite looks up every row that holds them: 449 ms for a common word of 1,000,000 messages. The plus
        sign keeps it from that (100 ms, most of it the making of the list). For one word and few conversations each row
        is asked by itself (5 ms): FTS5 seeks within a long list; to do so for a rare word would cost more than its list.
        How many hold a phrase or a beginning is as dear to know as the answer.
        """
        part = self._held(table, phrases)
        few = conversations <= ROOMS
        if len(phrases) > 1 or len(phrases[0].words) > 1 or phrases[0].prefix:
            return [Part(f"+{part.sql}", part.params)] if few else [part]
        index = words_table(table)
        probe = f"SELECT count(*) FROM (SELECT 1 FROM {index} WHERE {index} MATCH ? LIMIT {FEW + 1})"  # noqa: S608 - a name of the schema
        if (await self.db.fetch(probe, part.params, deadline=deadline))[0][0] <= FEW:
            return [part]
        if few:
            return [Part(f"EXISTS (SELECT 1 FROM {index} WHERE rowid = doc AND {index} MATCH ?)", part.params)]  # noqa: S608 - a name of the schema
        return [Part(f"+{part.sql}", part.params)]

    def _held(self, table: str, phrases: Sequence[Phrase]) -> Part:
        index = words_table(table)
        match = " AND ".join(f'"{" ".join(phrase.words)}"{" *" if phrase.prefix else ""}' for phrase in phrases)
        return Part(f"doc IN (SELECT rowid FROM {index} WHERE {index} MATCH ?)", (match,))  # noqa: S608 - a name of the schema

    def one_of(self, column: str, ids: Sequence[UUID]) -> Part:
        # few texts: a list is padded with its last item to a power of two
        padded = [*ids, *[ids[-1]] * ((1 << (len(ids) - 1).bit_length()) - len(ids))]
        return Part(f"{column} IN ({', '.join('?' * len(padded))})", [one.bytes for one in padded])

    def _to_uuid(self, value: Any) -> UUID:
        return uuid_of(value)
