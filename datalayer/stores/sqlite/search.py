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
        index = words_table(table)
        match = " AND ".join(f'"{" ".join(phrase.words)}"{" *" if phrase.prefix else ""}' for phrase in phrases)
        return [Part(f"doc IN (SELECT rowid FROM {index} WHERE {index} MATCH ?)", (match,))]  # noqa: S608 - a name of the schema

    def one_of(self, column: str, ids: Sequence[UUID]) -> Part:
        # few texts: a list is padded with its last item to a power of two
        padded = [*ids, *[ids[-1]] * ((1 << (len(ids) - 1).bit_length()) - len(ids))]
        return Part(f"{column} IN ({', '.join('?' * len(padded))})", [one.bytes for one in padded])

    def _to_uuid(self, value: Any) -> UUID:
        return uuid_of(value)
