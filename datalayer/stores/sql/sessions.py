"""Sessions on SQL: read, ``domains.sessions.decide``, and write where the row is still as it was read.

No transaction: a mutation writes one row. A cut that commits between reading and writing is concurrent with the write,
and its mark is above that of whatever was read before it. What was refused, or changed nothing, is decided once more
where no fence can be up: on a side that is sealed and stale, "nothing to revoke" would let a session live.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import sqlalchemy as sa

from datalayer.domains import sessions
from datalayer.domains.record import Record
from datalayer.domains.sessions import SessionMutation, decide, keys_of
from datalayer.errors import NotFound, Unavailable
from datalayer.stores.base import Executed
from datalayer.stores.sql.relation import cut_relation, session_relation
from datalayer.stores.sql.statement import limited, statement
from datalayer.stores.sql.store import SqlProduct, SqlStore, Undo
from datalayer.stores.sql.texts import texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.domains.record import Key
    from datalayer.stores.sql.codec import RowCodec
    from datalayer.stores.sql.database import Dialect, Row, SqlDatabase
    from datalayer.stores.sql.relation import Relation
    from datalayer.types import Session, SessionCut

RACES_MAX: Final = 16
_PROBE: Final = sessions.tombstone("session", bytes(32), 0)


class SqlSessions(SqlStore):
    """Port, SessionReads and Transactional over ``sessions`` and ``session_cuts``."""

    domain: ClassVar[str] = "sessions"

    def __init__(self, db: SqlDatabase, product: SqlProduct, attempt: int = 0) -> None:
        dialect = product.dialect
        self._session = texts(session_relation, dialect, product.codec, attempt=attempt)
        self._cut = texts(cut_relation, dialect, product.codec, attempt=attempt)
        super().__init__(db, product, attempt, (self._session, self._cut))
        self._uuid = product.codec.bind_uuid
        self._sql = texts(_Statements, dialect, product.codec, attempt=attempt)

    # --- reads -----------------------------------------------------------------------------------------------------

    async def get(self, user_id: UUID, id: UUID, deadline: Deadline) -> tuple[Session | None, SessionCut | None]:
        user = self._uuid(user_id)
        rows = await self.db.fetch(self._sql.both, (user, self._uuid(id), user), deadline=deadline)
        records = [self._record(row) for row in rows]
        found = {record.kind: sessions.to_entity(record) for record in records}
        return cast("Session | None", found.get("session")), cast("SessionCut | None", found.get("session_cut"))

    async def of_user(self, user_id: UUID, limit: int, deadline: Deadline) -> tuple[list[Session], SessionCut | None]:
        user = self._uuid(user_id)
        rows = await self.db.fetch(self._sql.of_user, (user, limit), deadline=deadline)
        held = [sessions.to_session(self._session.to_record(row)) for row in rows]
        cuts = await self.db.fetch(self._cut.stored, (user,), deadline=deadline)
        cut = cast("SessionCut", sessions.to_entity(self._cut.to_record(cuts[0]))) if cuts else None
        return held, cut

    def _record(self, row: Row) -> Record:
        """The record of a row of ``both``: a cut has no id."""
        if row[1] is not None:
            return self._session.to_record(row)
        user, _, _, _, mark, _, expires_at, deleted, version, _ = row
        return self._cut.to_record((user, mark, expires_at, deleted, version))

    # --- mutations -------------------------------------------------------------------------------------------------

    async def execute(self, mutation: SessionMutation, deadline: Deadline) -> Executed:
        for _ in range(RACES_MAX):
            current = await self._current(mutation, deadline)
            entity, records = self._decide(mutation, current)
            if not records:
                executed = await self._unchanged(mutation, deadline)
                if executed is not None:
                    return executed
                continue
            if await self._write(records[0], current.get(records[0].ident), deadline):
                return Executed(entity, records)
        raise Unavailable("a session kept changing under this write")

    def _decide(self, mutation: SessionMutation, current: dict[Key, Record]) -> tuple[Any, tuple[Record, ...]]:
        """As decide(); a refusal is no records."""
        try:
            return decide(mutation, current, self.product.clock.now_us())
        except NotFound:
            return None, ()

    async def _current(self, mutation: SessionMutation, deadline: Deadline) -> dict[Key, Record]:
        found: dict[Key, Record] = {}
        for kind, key in keys_of(mutation):
            relation = self.relations[kind]
            for row in await self.db.fetch(relation.stored, relation.position(key), deadline=deadline):
                found[kind, key] = relation.to_record(row)
        return found

    async def _write(self, record: Record, before: Record | None, deadline: Deadline) -> bool:
        relation = self.relations[record.kind]
        row = relation.to_row(record)
        if before is None:
            return bool(await self.db.run(relation.create, row, deadline=deadline))
        position = relation.position(record.key)
        return bool(await self.db.run(relation.swap, (*row, *position, before.version), deadline=deadline))

    async def _unchanged(self, mutation: SessionMutation, deadline: Deadline) -> Executed | None:
        """Decide once more behind an insert, which a fence refuses (Fenced); None when there is something to do now.

        NotFound as decide() raises it. Nothing is kept of it.
        """
        probe = _PROBE._replace(key=mutation.user_id.bytes + sessions.NIL)
        current: dict[Key, Record] = {}
        with suppress(Undo):
            async with self.db.transaction(deadline=deadline) as tx:
                await tx.run(self._session.create, self._session.to_row(probe))
                for kind, key in keys_of(mutation):
                    relation = self.relations[kind]
                    for row in await tx.run(relation.stored, relation.position(key)):
                        current[kind, key] = relation.to_record(row)
                raise Undo
        entity, records = decide(mutation, current, self.product.clock.now_us())
        return None if records else Executed(entity, ())

    # --- purge -----------------------------------------------------------------------------------------------------

    async def purge(self, before_us: int, limit: int) -> tuple[int, int]:
        taken = 0
        for purge in self._sql.purge:
            if taken < limit:
                taken += len(await self.db.run(purge, (before_us, limit - taken)))
        return taken, taken


class _Statements:
    """The texts of the reads and of the purge."""

    def __init__(self, dialect: Dialect, codec: RowCodec, attempt: int) -> None:
        session, cut = session_relation(dialect, codec, attempt), cut_relation(dialect, codec, attempt)
        one, all_of = session.table, cut.table
        user = one.c.user_id == sa.bindparam("of_user", type_=one.c.user_id.type)
        mine = one.c.id == sa.bindparam("of_id", type_=one.c.id.type)
        cut_user = all_of.c.user_id == sa.bindparam("of_cut", type_=one.c.user_id.type)
        empty: dict[str, Any] = {name: sa.null() for name in session.columns}
        values = empty | {name: all_of.c[name] for name in cut.columns}
        numbers: Sequence[Any] = [
            value if value is not empty[name] else sa.cast(value, one.c[name].type) for name, value in values.items()
        ]
        whole = sa.select(*(one.c[name] for name in session.columns)).where(user, mine)
        both = whole.union_all(sa.select(*numbers).where(cut_user))
        self.both = statement(dialect, both, "of_user", "of_id", "of_cut").sql
        listed = sa.select(*(one.c[name] for name in session.columns)).where(user, sa.not_(one.c.deleted))
        self.of_user = statement(dialect, limited(dialect, listed.order_by(one.c.id)), "of_user", "limit").sql
        self.purge = tuple(_purge(dialect, relation) for relation in (session, cut))


def _purge(dialect: Dialect, relation: Relation) -> str:
    """DELETE of a bounded number of rows that expired before; what was touched meanwhile stays."""
    table = relation.table
    before = table.c.expires_at < sa.bindparam("before", type_=sa.BigInteger)
    keys = [table.c[name] for name in relation.key_names]
    old = limited(dialect, sa.select(*keys).where(before).order_by(table.c.expires_at)).subquery("old")
    chosen = sa.select(*(old.c[name] for name in relation.key_names))
    key: Any = sa.tuple_(*keys) if len(keys) > 1 else keys[0]
    core = sa.delete(table).where(key.in_(chosen)).returning(table.c.version)
    return statement(dialect, core, "before", "limit").sql
