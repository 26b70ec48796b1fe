"""The search index on SQL: the shared port, and queries whose condition on words is each product's own.

A query's text is put together of constants; whatever a person typed is a parameter, and of words alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from datalayer.domains.search import Found, FoundUser
from datalayer.schemas.search import create_search, drop_search
from datalayer.stores.sql.relation import message_doc_relation, user_doc_relation
from datalayer.stores.sql.store import SqlProduct, SqlStore
from datalayer.stores.sql.texts import texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.domains.search import MessageQuery, Phrase
    from datalayer.stores.sql.database import SqlDatabase


class Part(NamedTuple):
    """A part of a condition, with its parameters."""

    sql: str
    params: Sequence[Any]


class SqlSearch(SqlStore):
    """Port and SearchReads over one table of messages and one of users."""

    domain: ClassVar[str] = "search"
    visible_within_s: float = 0.0
    marker: ClassVar[str] = "?"

    def __init__(self, db: SqlDatabase, product: SqlProduct, attempt: int = 0) -> None:
        self._messages = texts(message_doc_relation, product.dialect, product.codec, attempt=attempt)
        self._users = texts(user_doc_relation, product.dialect, product.codec, attempt=attempt)
        super().__init__(db, product, attempt, (self._messages, self._users))
        self._bind = product.codec.bind_uuid

    def with_words(self, table: str, column: str, phrases: Sequence[Phrase]) -> list[Part]:
        """The condition that a row's words hold every phrase."""
        raise NotImplementedError

    async def words_of_messages(
        self, table: str, phrases: Sequence[Phrase], conversations: int, deadline: Deadline
    ) -> list[Part]:
        """The condition for messages of so many conversations."""
        del conversations, deadline  # the planner of the product sees to it
        return self.with_words(table, "body", phrases)

    def one_of(self, column: str, ids: Sequence[UUID]) -> Part:
        """The condition that a column is one of these ids."""
        raise NotImplementedError

    def ddl(self) -> list[str]:
        """What makes this place."""
        return texts(create_search, self.product.dialect, attempt=self.attempt)

    async def create(self) -> None:
        async with self.db.transaction() as tx:
            for sql in self.ddl():
                await tx.run(sql)

    async def drop(self) -> None:
        async with self.db.transaction() as tx:
            for sql in drop_search(self.product.dialect, self.attempt):
                await tx.run(sql)

    async def refresh(self) -> None:
        """Nothing: a row and its words are one transaction."""

    async def messages(
        self, query: MessageQuery, limit: int, deadline: Deadline, *, after: tuple[UUID, UUID] | None = None
    ) -> list[Found]:
        table, mark, bind = self._messages.name, self.marker, self._bind
        words = await self.words_of_messages(table, query.phrases, len(query.conversations), deadline)
        parts = [self.one_of("conversation_id", query.conversations), *words]
        if query.sender_id is not None:
            parts.append(Part(f"sender_id = {mark}", (bind(query.sender_id),)))
        if query.since is not None:
            parts.append(Part(f"id >= {mark}", (bind(query.since),)))
        if query.until is not None:
            parts.append(Part(f"id < {mark}", (bind(query.until),)))
        if after is not None:
            parts.append(Part(f"(id, conversation_id) < ({mark}, {mark})", (bind(after[0]), bind(after[1]))))
        sql, params = _select("conversation_id, id, version", table, parts, "id DESC, conversation_id DESC", mark)
        rows = await self.db.fetch(sql, (*params, limit), deadline=deadline)
        to_uuid = self._to_uuid
        return [Found(to_uuid(conversation), to_uuid(id), version) for conversation, id, version in rows]

    async def users(
        self, phrase: Phrase, limit: int, deadline: Deadline, *, after: tuple[str, UUID] | None = None
    ) -> list[FoundUser]:
        table, mark = self._users.name, self.marker
        parts = self.with_words(table, "names", (phrase,))
        if after is not None:
            parts.append(Part(f"(username, id) > ({mark}, {mark})", (after[0], self._bind(after[1]))))
        sql, params = _select("id, username, version", table, parts, "username, id", mark)
        rows = await self.db.fetch(sql, (*params, limit), deadline=deadline)
        return [FoundUser(self._to_uuid(id), username, version) for id, username, version in rows]

    def _to_uuid(self, value: Any) -> UUID:
        raise NotImplementedError


def _select(columns: str, table: str, parts: Sequence[Part], order: str, mark: str) -> tuple[str, list[Any]]:
    condition = " AND ".join(["NOT deleted", *(part.sql for part in parts)])
    sql = f"SELECT {columns} FROM {table} WHERE {condition} ORDER BY {order} LIMIT {mark}"  # noqa: S608 - constants
    return sql, [value for part in parts for value in part.params]
