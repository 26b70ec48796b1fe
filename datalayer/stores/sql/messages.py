"""Messages on SQL: typed reads, and mutations as single statements that do what ``domains.messages.decide`` says."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import UUID

import sqlalchemy as sa

from datalayer.domains.messages import (
    NIL,
    Append,
    Delete,
    Edit,
    MessageMutation,
    appended,
    message_key,
    same_append,
    tombstone,
)
from datalayer.domains.record import FINAL_LEAD, Record
from datalayer.errors import AlreadyExists, NotFound, Unavailable
from datalayer.ids import id_time_us
from datalayer.schemas.metadata import MESSAGE_COLUMNS, messages_table
from datalayer.stores.base import Executed
from datalayer.stores.sql.relation import message_relation
from datalayer.stores.sql.statement import Statement, greatest, insert, limited, statement, values_of
from datalayer.stores.sql.store import SqlProduct, SqlStore, Undo
from datalayer.stores.sql.texts import texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.clock import Deadline
    from datalayer.stores.sql.database import Dialect, Row, SqlDatabase
    from datalayer.types import Message

RACES_MAX: Final = 5


class SqlMessages(SqlStore):
    """Port, MessageReads and Transactional over one ``messages`` table."""

    domain: ClassVar[str] = "messages"

    def __init__(self, db: SqlDatabase, product: SqlProduct, attempt: int = 0) -> None:
        relation = texts(message_relation, product.dialect, product.codec, attempt=attempt)
        super().__init__(db, product, attempt, (relation,))
        self._relation = relation
        self._message = product.codec.message
        self._uuid = product.codec.bind_uuid
        self._sql = texts(MessageStatements, product.dialect, attempt=attempt)
        blank = dict(zip(MESSAGE_COLUMNS, relation.to_row(tombstone(bytes(32), 0)), strict=True))
        self._blank = {f"no_{name}": blank[name] for name in ("body", "attachments", "attributes")}

    # --- reads -----------------------------------------------------------------------------------------------------

    async def get(self, conversation_id: UUID, message_id: UUID, deadline: Deadline) -> Message | None:
        uuid = self._uuid
        rows = await self.db.fetch(self._sql.get, (uuid(conversation_id), uuid(message_id)), deadline=deadline)
        return self._message(rows[0]) if rows else None

    async def get_many(self, keys: Sequence[tuple[UUID, UUID]], deadline: Deadline) -> list[Message]:
        items = [(self._uuid(conversation), self._uuid(message)) for conversation, message in keys]
        found = []
        for sql, params in self._relation.look_up.calls(items):
            found += [self._message(row) for row in await self.db.fetch(sql, params, deadline=deadline)]
        return found

    async def history(
        self,
        conversation_id: UUID,
        limit: int,
        deadline: Deadline,
        *,
        after: UUID | None = None,
        oldest_first: bool = False,
        include_deleted: bool = False,
    ) -> list[Message]:
        sql = self._sql.history[oldest_first, include_deleted, after is not None]
        conversation = self._uuid(conversation_id)
        params = (conversation, limit) if after is None else (conversation, self._uuid(after), limit)
        message = self._message
        return [message(row) for row in await self.db.fetch(sql, params, deadline=deadline)]

    # --- mutations -------------------------------------------------------------------------------------------------

    async def execute(self, mutation: MessageMutation, deadline: Deadline) -> Executed:
        if isinstance(mutation, Append):
            return await self._append(mutation, deadline)
        sql, params = self._change(mutation)
        for _ in range(RACES_MAX):
            rows = await self.db.run(sql, params, deadline=deadline)
            if rows:
                return Executed(self._message(rows[0]), (self._relation.to_record(rows[0]),))
            executed = await self._unchanged(mutation, deadline)
            if executed is not None:
                return executed
        raise Unavailable(f"message {mutation.id} kept changing under this write")

    async def _append(self, mutation: Append, deadline: Deadline) -> Executed:
        record = append_record(mutation)
        params = self._relation.to_row(record)
        for _ in range(RACES_MAX):
            if await self.db.run(self._sql.append, params, deadline=deadline):
                return Executed(appended(mutation), (record,))
            stored = await self.get(mutation.conversation_id, mutation.id, deadline)
            if stored is None:
                continue  # removed by another program between the two statements
            if not same_append(mutation, stored):
                raise AlreadyExists(f"message {mutation.id} exists already with another sender or body", field="id")
            return Executed(stored, ())
        raise Unavailable(f"message {mutation.id} kept changing under this write")

    def _change(self, mutation: Edit | Delete) -> tuple[str, list[Any]]:
        values = {
            "of_conversation": self._uuid(mutation.conversation_id),
            "of_id": self._uuid(mutation.id),
            "now": self.product.clock.now_us(),
        }
        if isinstance(mutation, Delete):
            return self._sql.delete.sql, self._sql.delete.bind({**values, **self._blank})
        values["new_body"] = mutation.body
        values["new_attributes"] = mutation.attributes
        return self._sql.edit.sql, self._sql.edit.bind(values)

    async def _unchanged(self, mutation: Edit | Delete, deadline: Deadline) -> Executed | None:
        """Why an UPDATE met no live row; None when there is one by now.

        A row trigger does not fire where no row is met: a writer with an old route would read "absent" from a side
        that is sealed and stale. So the same transaction first tries an insert, which a fence refuses (Fenced).
        """
        probe = self._relation.to_row(Record("message", message_key(mutation.conversation_id, NIL), 0, True, _PROBE))
        key = (self._uuid(mutation.conversation_id), self._uuid(mutation.id))
        rows: list[Row] = []
        with suppress(Undo):
            async with self.db.transaction(deadline=deadline) as tx:
                await tx.run(self._sql.append, probe)
                rows = await tx.run(self._sql.get, key)
                raise Undo
        if not rows:
            raise NotFound(f"message {mutation.id} does not exist in conversation {mutation.conversation_id}")
        stored = self._message(rows[0])
        if not stored.deleted:
            return None
        if isinstance(mutation, Edit):
            raise NotFound(f"message {mutation.id} was deleted")
        return Executed(stored, ())


_PROBE: Final = tombstone(bytes(32), 0).fields


def append_record(mutation: Append) -> Record:
    """The record a first append makes, without a detour over its entity."""
    return Record(
        "message",
        message_key(mutation.conversation_id, mutation.id),
        id_time_us(mutation.id),
        False,
        (
            mutation.sender_id.bytes,
            mutation.body,
            mutation.kind,
            None if mutation.thread_id is None else mutation.thread_id.bytes,
            b"".join([item.bytes for item in mutation.attachments]),
            None,
            mutation.attributes,
        ),
    )


class MessageStatements:
    """The texts of one messages table."""

    def __init__(self, dialect: Dialect, attempt: int) -> None:
        table = messages_table(attempt)
        columns = [table.c[name] for name in MESSAGE_COLUMNS]
        at = (
            table.c.conversation_id == sa.bindparam("of_conversation", type_=table.c.conversation_id.type),
            table.c.id == sa.bindparam("of_id", type_=table.c.id.type),
        )
        self.get = statement(dialect, sa.select(*columns).where(*at), "of_conversation", "of_id").sql
        self.append = statement(
            dialect,
            insert(dialect, table)
            .values(values_of(MESSAGE_COLUMNS))
            .on_conflict_do_nothing()
            .returning(table.c.version),
            *MESSAGE_COLUMNS,
        ).sql
        now = sa.bindparam("now", type_=sa.BigInteger)
        raised = greatest(table.c.version + sa.literal_column("2"), now)
        live = sa.update(table).where(*at, sa.not_(table.c.deleted)).returning(*columns)
        self.edit: Statement = statement(
            dialect,
            live.values(
                body=sa.bindparam("new_body", type_=sa.Text),
                attributes=sa.func.coalesce(
                    sa.bindparam("new_attributes", type_=table.c.attributes.type), table.c.attributes
                ),
                edited_at=now,
                version=raised,
            ),
        )
        self.delete: Statement = statement(
            dialect,
            live.values(
                body=sa.bindparam("no_body"),
                attachments=sa.bindparam("no_attachments"),
                attributes=sa.bindparam("no_attributes"),
                deleted=sa.true(),
                version=raised + sa.literal_column(str(FINAL_LEAD)),
            ),
        )
        flags = (False, True)
        self.history = {
            (oldest, deleted, after): self._history(dialect, table, oldest=oldest, deleted=deleted, after=after)
            for oldest in flags
            for deleted in flags
            for after in flags
        }

    @staticmethod
    def _history(dialect: Dialect, table: sa.Table, *, oldest: bool, deleted: bool, after: bool) -> str:
        core = sa.select(*(table.c[name] for name in MESSAGE_COLUMNS)).where(
            table.c.conversation_id == sa.bindparam("of_conversation", type_=table.c.conversation_id.type)
        )
        names = ["of_conversation"]
        if after:
            start = sa.bindparam("after", type_=table.c.id.type)
            core = core.where(table.c.id > start if oldest else table.c.id < start)
            names.append("after")
        if not deleted:
            core = core.where(sa.not_(table.c.deleted))
        core = core.order_by(table.c.id if oldest else table.c.id.desc())
        return statement(dialect, limited(dialect, core), *names, "limit").sql
