"""The search index in Postgres: lexemes under GIN, or LIKE over the text of few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast

from datalayer.domains.search import needle
from datalayer.schemas.search import create_search, lexemes
from datalayer.stores.postgres.bulk import BulkWriter
from datalayer.stores.postgres.stores import Sized
from datalayer.stores.sql.search import Part, SqlSearch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from datalayer.domains.record import Record
    from datalayer.domains.search import Phrase
    from datalayer.stores.postgres.database import PostgresDatabase, PostgresTransaction
    from datalayer.stores.sql.database import SqlDatabase, SqlTransaction
    from datalayer.stores.sql.store import SqlProduct

Method = Literal["like", "tsvector"]
_SPACED: Final = "(' '::text || {column} || ' '::text)"


class PostgresSearch(SqlSearch, Sized):
    """Documents and their words. ``method``: with "like" nothing but the filters narrows what is read through."""

    marker: ClassVar[str] = "%s"

    def __init__(
        self, db: PostgresDatabase, product: SqlProduct, attempt: int = 0, *, method: Method = "tsvector"
    ) -> None:
        super().__init__(cast("SqlDatabase", db), product, attempt)
        self._bulk = BulkWriter(self)
        self._method: Final = method

    def ddl(self) -> list[str]:
        return create_search("postgresql", self.attempt, words=self._method == "tsvector")

    def with_words(self, table: str, column: str, phrases: Sequence[Phrase]) -> list[Part]:
        spaced = _SPACED.format(column=column)
        texts = [Part(f"{spaced} LIKE %s", (_pattern(phrase),)) for phrase in phrases]
        if self._method == "like":
            return texts
        # The texts are compared first, also where the planner does not use the index of words: to make lexemes of a row
        # costs ten times as much. They alone know of rows of words.
        words = " & ".join(_lexeme(phrase, at) for phrase in phrases for at in range(len(phrase.words)))
        return [*texts, Part(f"{lexemes(column)} @@ %s::tsquery", (words,))]

    def one_of(self, column: str, ids: Sequence[UUID]) -> Part:
        return Part(f"{column} = ANY (%s::uuid[])", (list(ids),))

    async def apply_in(self, tx: SqlTransaction, records: Iterable[Record]) -> None:
        await self._bulk.write(cast("PostgresTransaction", tx), records)

    def _to_uuid(self, value: Any) -> UUID:
        return cast("UUID", value)


def _pattern(phrase: Phrase) -> str:
    """The one sign of LIKE that a word may hold is ``_``."""
    return "%" + needle(phrase).replace("_", r"\_") + "%"


def _lexeme(phrase: Phrase, at: int) -> str:
    beginning = phrase.prefix and at == len(phrase.words) - 1
    return f"'{phrase.words[at]}'{':*' if beginning else ''}"
