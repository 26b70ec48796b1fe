"""Conversations on SQL: a conversation and its members change in one transaction, as ``domains.conversations.decide`` says.

Whatever changes who belongs to a conversation holds the conversation's row: so counts and owners are what they seem. How
far a member has read is one statement on the member's row alone, and does not wait for that.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import sqlalchemy as sa

from datalayer.domains.conversations import (
    OWNER,
    AddMember,
    Census,
    ConversationMutation,
    CreateConversation,
    DeleteConversation,
    MarkRead,
    Membership,
    Settle,
    UpdateConversation,
    change,
    change_member,
    created,
    created_again,
    first_members,
    member_key,
    read_up_to,
    to_conversation,
    to_member,
    to_record,
    tombstone,
)
from datalayer.domains.messages import NIL
from datalayer.errors import AlreadyExists, Conflict, NotFound, Unavailable
from datalayer.schemas.metadata import CONVERSATION_COLUMNS, MEMBER_COLUMNS, conversations_table, members_table
from datalayer.stores.base import Executed
from datalayer.stores.sql.relation import conversation_relation, member_relation
from datalayer.stores.sql.statement import LookUp, first, greatest, limited, statement
from datalayer.stores.sql.store import SqlProduct, SqlStore, Undo
from datalayer.stores.sql.texts import texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.domains.record import Key, Record
    from datalayer.stores.sql.database import Dialect, SqlDatabase, SqlTransaction
    from datalayer.types import Conversation, Member

RACES_MAX: Final = 5
_PROBE: Final = tombstone("conversation", NIL.bytes, 0)


class SqlConversations(SqlStore):
    """Port, ConversationReads and Transactional over one ``conversations`` and one ``members`` table."""

    domain: ClassVar[str] = "conversations"

    def __init__(self, db: SqlDatabase, product: SqlProduct, attempt: int = 0) -> None:
        self._conversations = texts(conversation_relation, product.dialect, product.codec, attempt=attempt)
        self._members = texts(member_relation, product.dialect, product.codec, attempt=attempt)
        super().__init__(db, product, attempt, (self._conversations, self._members))
        self._uuid = product.codec.bind_uuid
        self._sql = texts(ConversationStatements, product.dialect, attempt=attempt)

    # --- reads -----------------------------------------------------------------------------------------------------

    async def get(self, conversation_id: UUID, deadline: Deadline) -> Conversation | None:
        rows = await self.db.fetch(self._conversations.stored, (self._uuid(conversation_id),), deadline=deadline)
        return to_conversation(self._conversations.to_record(rows[0])) if rows else None

    async def get_many(self, ids: Sequence[UUID], deadline: Deadline) -> list[Conversation]:
        found = []
        record = self._conversations.to_record
        for sql, params in self._conversations.look_up.calls([self._uuid(one) for one in ids]):
            found += [to_conversation(record(row)) for row in await self.db.fetch(sql, params, deadline=deadline)]
        return found

    async def member(self, conversation_id: UUID, user_id: UUID, deadline: Deadline) -> Member | None:
        key = (self._uuid(conversation_id), self._uuid(user_id))
        rows = await self.db.fetch(self._members.stored, key, deadline=deadline)
        return to_member(self._members.to_record(rows[0])) if rows else None

    async def members(
        self, conversation_id: UUID, limit: int, deadline: Deadline, *, after: UUID | None = None
    ) -> list[Member]:
        params = (self._uuid(conversation_id), self._uuid(NIL if after is None else after), limit)
        rows = await self.db.fetch(self._sql.members, params, deadline=deadline)
        return [to_member(self._members.to_record(row)) for row in rows]

    async def unlisted(self, limit: int, deadline: Deadline, *, after: bytes = b"") -> list[Record]:
        params = (*self._members.position(after or bytes(32)), limit)
        rows = await self.db.fetch(self._sql.unlisted, params, deadline=deadline)
        return [self._members.to_record(row) for row in rows]

    async def lag(self, limit: int, deadline: Deadline) -> tuple[int, int | None]:
        rows = await self.db.fetch(self._sql.lag, (limit,), deadline=deadline)
        return int(rows[0][0]), rows[0][1]

    # --- mutations -------------------------------------------------------------------------------------------------

    async def execute(self, mutation: ConversationMutation, deadline: Deadline) -> Executed:
        for _ in range(RACES_MAX):
            try:
                done = await self._attempt(mutation, deadline)
            except (NotFound, Conflict, AlreadyExists):
                done = None
            if done is not None and done.records:
                return done
            done = await self._unchanged(mutation, deadline)
            if not done.records:
                return done
        raise Unavailable(f"conversation {mutation.id} kept changing under this write")

    async def _attempt(self, mutation: ConversationMutation, deadline: Deadline) -> Executed | None:
        if isinstance(mutation, MarkRead):
            return await self._read_further(mutation, deadline)
        async with self.db.transaction(deadline=deadline) as tx:
            return await self._decide(tx, mutation)

    async def _unchanged(self, mutation: ConversationMutation, deadline: Deadline) -> Executed:
        """Decide once more what was refused or changed nothing, where no fence can be up; nothing is kept of it.

        A row trigger does not fire where nothing is written: a writer with an old route would be answered by the rows
        of a side that is sealed and stale. An insert in the same transaction makes the fence speak (Fenced).
        """
        done = Executed(None, ())
        with suppress(Undo):
            async with self.db.transaction(deadline=deadline) as tx:
                await tx.run(self._conversations.create, self._conversations.to_row(_PROBE))
                done = await self._decide(tx, mutation)
                raise Undo
        return done

    async def _read_further(self, mutation: MarkRead, deadline: Deadline) -> Executed | None:
        values = {
            "of_conversation": self._uuid(mutation.id),
            "of_user": self._uuid(mutation.user_id),
            "message": self._uuid(mutation.message_id),
            "now": self.product.clock.now_us(),
        }
        rows = await self.db.run(self._sql.read.sql, self._sql.read.bind(values), deadline=deadline)
        if not rows:
            return None
        record = self._members.to_record(rows[0])
        return Executed(to_member(record), (record,))

    async def _decide(self, tx: SqlTransaction, mutation: ConversationMutation) -> Executed:
        now = self.product.clock.now_us()
        match mutation:
            case CreateConversation():
                return await self._create(tx, mutation)
            case MarkRead():
                found = await self._stored(tx, mutation.id, (mutation.user_id,))
                return Executed(*read_up_to(mutation, next(iter(found.values()), None), now))
            case Settle():
                return await self._settle(tx, mutation)
            case UpdateConversation() | DeleteConversation():
                return await self._change(tx, mutation, now)
            case _:
                return await self._change_member(tx, mutation, now)

    async def _create(self, tx: SqlTransaction, mutation: CreateConversation) -> Executed:
        made = created(mutation)
        record = to_record(made)
        if not await tx.run(self._conversations.create, self._conversations.to_row(record)):
            stored = await self._locked(tx, mutation.id)
            if stored is None:
                raise Unavailable(f"conversation {mutation.id} was removed by another program during this write")
            return Executed(created_again(mutation, stored), ())
        before = await self._stored(tx, mutation.id, [user for user, _ in mutation.members])
        members = first_members(mutation, before)
        await tx.run_many(self._members.upsert, [self._members.to_row(one) for one in members])
        return Executed(made, (record, *members))

    async def _change(
        self, tx: SqlTransaction, mutation: UpdateConversation | DeleteConversation, now: int
    ) -> Executed:
        stored = await self._locked(tx, mutation.id)
        changed = change(mutation, stored, now)
        if changed is stored:
            return Executed(changed, ())
        record = to_record(changed)
        await tx.run(self._conversations.upsert, self._conversations.to_row(record))
        if not changed.deleted:
            return Executed(changed, (record,))
        values = {"of_conversation": self._uuid(mutation.id), "now": now}
        rows = await tx.run(self._sql.leave.sql, self._sql.leave.bind(values))
        return Executed(changed, (record, *(self._members.to_record(row) for row in rows)))

    async def _change_member(self, tx: SqlTransaction, mutation: Membership, now: int) -> Executed:
        stored = await self._locked(tx, mutation.id)
        found = await self._stored(tx, mutation.id, (mutation.user_id,))
        before = next(iter(found.values()), None)
        census = await self._census(tx, mutation, before)
        entity, records = change_member(mutation, stored, before, census, now)
        for record in records:
            await tx.run(self._members.upsert, self._members.to_row(record))
        return Executed(entity, records)

    async def _census(self, tx: SqlTransaction, mutation: Membership, before: Record | None) -> Census:
        """What this change needs to know of the others, and no more: a count walks over every member."""
        conversation = self._uuid(mutation.id)
        live = before is not None and not before.deleted
        if isinstance(mutation, AddMember):
            rows = [] if live else await tx.run(self._sql.count, (conversation,))
            return Census(int(rows[0][0]) if rows else 0, other_owner=True)
        if not live or cast("Record", before).fields[0] != OWNER:
            return Census(0, other_owner=True)
        return Census(0, bool(await tx.run(self._sql.other_owner, (conversation, self._uuid(mutation.user_id)))))

    async def _settle(self, tx: SqlTransaction, mutation: Settle) -> Executed:
        await self._locked(tx, mutation.id)
        conversation = self._uuid(mutation.id)
        items = [(conversation, self._uuid(user), version) for user, version in mutation.seen]
        records = []
        for sql, params in self._sql.settle.calls(items):
            records += [self._members.to_record(row) for row in await tx.run(sql, params)]
        return Executed(None, tuple(records))

    async def _locked(self, tx: SqlTransaction, conversation_id: UUID) -> Conversation | None:
        rows = await tx.run(self._sql.lock, (self._uuid(conversation_id),))
        return to_conversation(self._conversations.to_record(rows[0])) if rows else None

    async def _stored(self, tx: SqlTransaction, conversation_id: UUID, users: Sequence[UUID]) -> dict[Key, Record]:
        found: dict[Key, Record] = {}
        items = [self._members.item(member_key(conversation_id, user)) for user in users]
        for sql, params in self._members.look_up.calls(items):
            records = [self._members.to_record(row) for row in await tx.run(sql, params)]
            found |= {record.ident: record for record in records}
        return found


class ConversationStatements:
    """The texts of one conversations and one members table."""

    def __init__(self, dialect: Dialect, attempt: int) -> None:
        conversations, members = conversations_table(attempt), members_table(attempt)
        columns = [conversations.c[name] for name in CONVERSATION_COLUMNS]
        of_id = sa.bindparam("of_id", type_=conversations.c.id.type)
        lock = sa.select(*columns).where(conversations.c.id == of_id).with_for_update()
        self.lock = statement(dialect, lock, "of_id").sql
        uuid = members.c.user_id.type
        of_conversation = members.c.conversation_id == sa.bindparam("of_conversation", type_=uuid)
        live = (of_conversation, sa.not_(members.c.deleted))
        every = sa.select(*(members.c[name] for name in MEMBER_COLUMNS))
        beyond = members.c.user_id > sa.bindparam("after", type_=uuid)
        page = limited(dialect, every.where(*live, beyond).order_by(members.c.user_id))
        self.members = statement(dialect, page, "of_conversation", "after", "limit").sql
        count = sa.select(sa.func.count()).select_from(members).where(*live)
        self.count = statement(dialect, count, "of_conversation").sql
        owner: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(members).where(*live)
        owner = owner.where(
            members.c.role == sa.literal_column(f"'{OWNER}'"),
            members.c.user_id != sa.bindparam("of_user", type_=uuid),
        )
        self.other_owner = statement(dialect, first(dialect, owner), "of_conversation", "of_user").sql
        self._waiting(dialect, members)
        self._changes(dialect, members, live)

    def _waiting(self, dialect: Dialect, members: sa.Table) -> None:
        """Members that their users' lists do not show: as the predicate of their index has it."""
        behind = members.c.listed < members.c.version
        key = sa.tuple_(members.c.conversation_id, members.c.user_id)
        low = sa.tuple_(*(sa.bindparam(name, type_=members.c.user_id.type) for name in ("low_a", "low_b")))
        core = sa.select(*(members.c[name] for name in MEMBER_COLUMNS)).where(behind, key > low)
        core = limited(dialect, core.order_by(members.c.conversation_id, members.c.user_id))
        self.unlisted = statement(dialect, core, "low_a", "low_b", "limit").sql
        some = limited(dialect, sa.select(members.c.version).where(behind)).subquery()
        lag = sa.select(sa.func.count(), sa.func.min(some.c.version)).select_from(some)
        self.lag = statement(dialect, lag, "limit").sql

    def _changes(self, dialect: Dialect, members: sa.Table, live: tuple[Any, ...]) -> None:
        uuid = members.c.user_id.type
        returned = [members.c[name] for name in MEMBER_COLUMNS]
        two: sa.ColumnElement[int] = sa.literal_column("2")
        raised = greatest(members.c.version + two, sa.bindparam("now", type_=sa.BigInteger))
        message = sa.bindparam("message", type_=uuid)
        further = sa.or_(members.c.read_up_to.is_(None), members.c.read_up_to < message)
        mine = members.c.user_id == sa.bindparam("of_user", type_=uuid)
        read = sa.update(members).where(*live, mine, further).values(read_up_to=message, version=raised)
        self.read = statement(dialect, read.returning(*returned))
        gone = {"role": sa.literal_column("'member'"), "joined_at": sa.literal_column("0"), "read_up_to": sa.null()}
        leave = sa.update(members).where(*live).values(**gone, deleted=sa.true(), version=raised)
        self.leave = statement(dialect, leave.returning(*returned))
        keys: sa.BindParameter[Any] = sa.bindparam("keys", expanding=True)
        seen = sa.tuple_(members.c.conversation_id, members.c.user_id, members.c.version).in_(keys)
        shown = members.c.version + two
        settle = sa.update(members).where(seen, members.c.listed < members.c.version)
        settle = settle.values(listed=shown, version=shown).returning(*returned)
        self.settle = LookUp(dialect, settle, "keys", (None, None, None))
