"""Users on SQL: the row and its claims change in one transaction, as ``domains.users.decide`` says."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final
from uuid import UUID

import sqlalchemy as sa

from datalayer.domains.messages import NIL
from datalayer.domains.record import Record
from datalayer.domains.users import (
    CreateUser,
    DeleteUser,
    Swap,
    UserMutation,
    changed,
    check_expected,
    check_seen,
    claim_of,
    claim_record,
    created,
    same_create,
    taken,
    to_record,
    tombstone,
    wanted_claims,
)
from datalayer.errors import AlreadyExists, Conflict, NotFound, Unavailable
from datalayer.schemas.metadata import CLAIM_COLUMNS, USER_COLUMNS, claims_table, users_table
from datalayer.stores.base import Executed
from datalayer.stores.sql.relation import claim_relation, user_relation
from datalayer.stores.sql.statement import greatest, insert, limited, statement, values_of
from datalayer.stores.sql.store import SqlProduct, SqlStore, Undo
from datalayer.stores.sql.texts import texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.clock import Deadline
    from datalayer.stores.sql.database import Dialect, Row, SqlDatabase, SqlTransaction
    from datalayer.types import User

RACES_MAX: Final = 5


class SqlUsers(SqlStore):
    """Port, UserReads and Transactional over one ``users`` and one ``claims`` table."""

    domain: ClassVar[str] = "users"

    def __init__(self, db: SqlDatabase, product: SqlProduct, attempt: int = 0) -> None:
        users = texts(user_relation, product.dialect, product.codec, attempt=attempt)
        claims = texts(claim_relation, product.dialect, product.codec, attempt=attempt)
        super().__init__(db, product, attempt, (users, claims))
        self._users = users
        self._user = product.codec.user
        self._uuid = product.codec.bind_uuid
        self._sql = texts(UserStatements, product.dialect, attempt=attempt)

    # --- reads -----------------------------------------------------------------------------------------------------

    async def get(self, user_id: UUID, deadline: Deadline) -> User | None:
        rows = await self.db.fetch(self._sql.get, (self._uuid(user_id),), deadline=deadline)
        return self._user(rows[0]) if rows else None

    async def get_many(self, ids: Sequence[UUID], deadline: Deadline) -> list[User]:
        found = []
        for sql, params in self._users.look_up.calls([self._uuid(one) for one in ids]):
            found += [self._user(row) for row in await self.db.fetch(sql, params, deadline=deadline)]
        return found

    async def claim_owner(self, key: bytes, deadline: Deadline) -> UUID | None:
        rows = await self.db.fetch(self._sql.claim_owner, claim_of(key), deadline=deadline)
        return UUID(bytes=self.product.codec.uuid_bytes(rows[0][0])) if rows else None

    async def page(
        self, limit: int, deadline: Deadline, *, after: UUID | None = None, pointers: bool = False
    ) -> list[User]:
        start = self._uuid(NIL if after is None else after)
        sql = self._sql.page_with_pointers if pointers else self._sql.page
        return [self._user(row) for row in await self.db.fetch(sql, (start, limit), deadline=deadline)]

    async def count(self, deadline: Deadline) -> int:
        return int((await self.db.fetch(self._sql.count, (), deadline=deadline))[0][0])

    # --- mutations -------------------------------------------------------------------------------------------------

    async def execute(self, mutation: UserMutation | Swap, deadline: Deadline) -> Executed:
        for _ in range(RACES_MAX):
            try:
                async with self.db.transaction(deadline=deadline) as tx:
                    return await self._decide(tx, mutation)
            except (NotFound, Conflict, AlreadyExists):
                await self._refuse_again(mutation, deadline)
        raise Unavailable(f"user {mutation.id} kept changing under this write")

    async def _refuse_again(self, mutation: UserMutation | Swap, deadline: Deadline) -> None:
        """Decide once more what was refused, where no fence can be up; returns when it would not be refused now.

        A row trigger does not fire where nothing is written: a writer with an old route would be refused by the
        rows of a side that is sealed and stale. An insert in the same transaction makes the fence speak (Fenced).
        """
        probe = Record("user", NIL.bytes, 0, True, tombstone("user", NIL.bytes, 0).fields)
        with suppress(Undo):
            async with self.db.transaction(deadline=deadline) as tx:
                await tx.run(self._sql.create, self._users.to_row(probe))
                await self._decide(tx, mutation)
                raise Undo

    async def _decide(self, tx: SqlTransaction, mutation: UserMutation | Swap) -> Executed:
        if isinstance(mutation, Swap):
            return await self._swap(tx, mutation)
        now = self.product.clock.now_us()
        stored: User | None = None
        if isinstance(mutation, CreateUser):
            user = created(mutation)
            if not await tx.run(self._sql.create, self._users.to_row(to_record(user))):
                return await self._created_again(tx, mutation)
        else:
            stored = await self._locked(tx, mutation.id)
            if stored is None or (stored.deleted and not isinstance(mutation, DeleteUser)):
                raise NotFound(f"user {mutation.id} does not exist")
            if stored.deleted:
                return Executed(stored, ())
            check_expected(mutation, stored)
            user = changed(mutation, stored, now)
            row = self._users.to_row(to_record(user))
            await tx.run(self._sql.update, (*row[1:], row[0]))
        take, release = wanted_claims(mutation, stored)
        records = [to_record(user), *await self._claims(tx, mutation, take, release, now)]
        return Executed(user, tuple(records))

    async def _swap(self, tx: SqlTransaction, mutation: Swap) -> Executed:
        record = mutation.record
        relation = self.relations[record.kind]
        row = relation.to_row(record)
        if mutation.seen is None:
            done = await tx.run(relation.create, row)
        else:
            done = await tx.run(relation.swap, (*row, *relation.position(record.key), mutation.seen))
        if not done:
            rows = await tx.run(relation.stored, relation.position(record.key))
            check_seen(mutation, relation.to_record(rows[0]) if rows else None)
            raise Unavailable(f"{record.kind} {mutation.id} kept changing under this write")
        return Executed(record, (record,))

    async def _claims(
        self, tx: SqlTransaction, mutation: UserMutation, take: Sequence[bytes], release: Sequence[bytes], now: int
    ) -> list[Record]:
        """Take and release claims in the order of their keys, which no two writers can cross."""
        records = []
        owner = self._uuid(mutation.id)
        for key in sorted({*take, *release}):
            kind, value = claim_of(key)
            if key in release:
                params = (now, kind, value, owner)
                rows = await tx.run(self._sql.release, params)
            else:
                params_taken = (kind, value, key[:16], owner, now, False, now)
                rows = await tx.run(self._sql.take, params_taken)
                if not rows:
                    raise taken(await self._first_taken(tx, mutation.id, take) or key, mutation)
            if rows:
                records.append(claim_record(key, mutation.id, rows[0][0], deleted=key in release))
        return records

    async def _first_taken(self, tx: SqlTransaction, owner: UUID, take: Sequence[bytes]) -> bytes | None:
        """The claim that decide() would name: the first in the order of the fields, not of the keys."""
        for key in take:
            rows = await tx.run(self._sql.claim_owner, claim_of(key))
            if rows and self.product.codec.uuid_bytes(rows[0][0]) != owner.bytes:
                return key
        return None

    async def _locked(self, tx: SqlTransaction, user_id: UUID) -> User | None:
        rows: list[Row] = await tx.run(self._sql.lock, (self._uuid(user_id),))
        return self._user(rows[0]) if rows else None

    async def _created_again(self, tx: SqlTransaction, mutation: CreateUser) -> Executed:
        stored = await self._locked(tx, mutation.id)
        if stored is None:
            raise Unavailable(f"user {mutation.id} was removed by another program during this write")
        if not same_create(mutation, stored):
            raise AlreadyExists(f"user {mutation.id} exists already with other values", field="id")
        return Executed(stored, ())


class UserStatements:
    """The texts of one users and one claims table."""

    def __init__(self, dialect: Dialect, attempt: int) -> None:
        users = users_table(attempt)
        columns = [users.c[name] for name in USER_COLUMNS]
        of_id = sa.bindparam("of_id", type_=users.c.id.type)
        one = sa.select(*columns).where(users.c.id == of_id)
        self.get = statement(dialect, one, "of_id").sql
        self.lock = statement(dialect, one.with_for_update(), "of_id").sql
        after = sa.bindparam("after", type_=users.c.id.type)
        page = sa.select(*columns).where(users.c.id > after).order_by(users.c.id)
        alive = sa.not_(users.c.deleted)
        self.page = statement(dialect, limited(dialect, page.where(alive)), "after", "limit").sql
        pointers = page.where(sa.or_(alive, users.c.region.is_not(None)))
        self.page_with_pointers = statement(dialect, limited(dialect, pointers), "after", "limit").sql
        live = sa.select(sa.func.count()).select_from(users).where(sa.not_(users.c.deleted))
        self.count = statement(dialect, live).sql
        create = insert(dialect, users).values(values_of(USER_COLUMNS)).on_conflict_do_nothing()
        self.create = statement(dialect, create.returning(users.c.version), *USER_COLUMNS).sql
        rest = USER_COLUMNS[1:]
        update = sa.update(users).where(users.c.id == of_id).values(values_of(rest))
        self.update = statement(dialect, update, *rest, "of_id").sql
        self._claims(dialect, claims_table(attempt))

    def _claims(self, dialect: Dialect, claims: sa.Table) -> None:
        of_kind = sa.bindparam("of_kind", type_=claims.c.kind.type)
        of_value = sa.bindparam("of_value", type_=claims.c.value.type)
        of_owner = sa.bindparam("of_owner", type_=claims.c.owner.type)
        now = sa.bindparam("now", type_=sa.BigInteger)
        raised = greatest(claims.c.version + sa.literal_column("2"), now)
        at = (claims.c.kind == of_kind, claims.c.value == of_value)
        live = sa.select(claims.c.owner).where(*at, sa.not_(claims.c.deleted))
        self.claim_owner = statement(dialect, live, "of_kind", "of_value").sql
        core = insert(dialect, claims).values(values_of(CLAIM_COLUMNS))
        take = core.on_conflict_do_update(
            index_elements=["kind", "value"],
            set_={"owner": core.excluded.owner, "deleted": sa.false(), "version": raised},
            where=sa.or_(claims.c.deleted, claims.c.owner == core.excluded.owner),
        ).returning(claims.c.version)
        self.take = statement(dialect, take, *CLAIM_COLUMNS, "now").sql
        release = (
            sa.update(claims)
            .where(*at, claims.c.owner == of_owner, sa.not_(claims.c.deleted))
            .values(deleted=sa.true(), version=raised)
            .returning(claims.c.version)
        )
        self.release = statement(dialect, release, "now", "of_kind", "of_value", "of_owner").sql
