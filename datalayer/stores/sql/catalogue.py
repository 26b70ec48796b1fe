"""The catalogue of media on SQL: an item and its object change in one transaction, as ``domains.catalogue.decide`` says.

Rows are locked in the order item, object, so that no two mutations wait for each other.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import UUID

import sqlalchemy as sa

from datalayer.domains.catalogue import (
    CatalogueMutation,
    StoredObject,
    decide,
    keys_of,
    object_key,
    referred,
    to_media,
    to_object,
    tombstone,
)
from datalayer.errors import AlreadyExists, Conflict, NotFound, PreconditionFailed, Unavailable
from datalayer.ids import uuid7_at
from datalayer.schemas.metadata import MEDIA_COLUMNS, OBJECT_COLUMNS
from datalayer.stores.base import Executed
from datalayer.stores.sql.relation import Relation, media_relation, object_relation
from datalayer.stores.sql.statement import LookUp, limited, statement
from datalayer.stores.sql.store import SqlProduct, SqlStore, Undo
from datalayer.stores.sql.texts import texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.clock import Deadline
    from datalayer.domains.record import Key, Record
    from datalayer.stores.sql.codec import RowCodec
    from datalayer.stores.sql.database import Dialect, SqlDatabase, SqlTransaction
    from datalayer.types import Media

RACES_MAX: Final = 8
_PROBE: Final = tombstone("media", bytes(32), 0)


class SqlCatalogue(SqlStore):
    """Port, CatalogueReads and Transactional over one ``media`` and one ``media_objects`` table."""

    domain: ClassVar[str] = "catalogue"

    def __init__(self, db: SqlDatabase, product: SqlProduct, attempt: int = 0) -> None:
        self._items = texts(media_relation, product.dialect, product.codec, attempt=attempt)
        self._objects = texts(object_relation, product.dialect, product.codec, attempt=attempt)
        super().__init__(db, product, attempt, (self._items, self._objects))
        self._uuid = product.codec.bind_uuid
        self._sql = texts(CatalogueStatements, product.dialect, product.codec, attempt=attempt)

    # --- reads -----------------------------------------------------------------------------------------------------

    async def get(self, owner_id: UUID, media_id: UUID, deadline: Deadline) -> Media | None:
        key = (self._uuid(owner_id), self._uuid(media_id))
        rows = await self.db.fetch(self._items.stored, key, deadline=deadline)
        return to_media(self._items.to_record(rows[0])) if rows else None

    async def of_owner(
        self, owner_id: UUID, limit: int, deadline: Deadline, *, after: UUID | None = None
    ) -> list[Media]:
        position = () if after is None else (self._uuid(after),)
        params = (self._uuid(owner_id), *position, limit)
        rows = await self.db.fetch(self._sql.pages[after is not None], params, deadline=deadline)
        return [to_media(self._items.to_record(row)) for row in rows]

    async def object(self, owner_id: UUID, sha256: str, deadline: Deadline) -> StoredObject | None:
        position = self._objects.position(object_key(owner_id, sha256))
        rows = await self.db.fetch(self._objects.stored, position, deadline=deadline)
        return to_object(self._objects.to_record(rows[0])) if rows else None

    async def known(self, names: Sequence[tuple[UUID, UUID]], deadline: Deadline) -> set[tuple[UUID, UUID]]:
        items = [(self._uuid(owner), self._uuid(name)) for owner, name in names]
        found = set()
        for look_up, relation in ((self._sql.named, self._objects), (self._sql.uploads, self._items)):
            for sql, params in look_up.calls(items) if items else ():
                for row in await self.db.fetch(sql, params, deadline=deadline):
                    record = relation.to_record(row)
                    name = to_object(record).name if record.kind == "object" else to_media(record).upload
                    assert name is not None, "it was found by its name"
                    found.add((UUID(bytes=record.routing), name))
        return found

    async def due(self, now_us: int, limit: int, deadline: Deadline) -> list[StoredObject]:
        rows = await self.db.fetch(self._sql.due, (now_us, limit), deadline=deadline)
        return [to_object(self._objects.to_record(row)) for row in rows]

    async def waiting(self, before_us: int, limit: int, deadline: Deadline) -> list[Media]:
        params = (self._uuid(uuid7_at(before_us, 0)), limit)
        rows = await self.db.fetch(self._sql.waiting, params, deadline=deadline)
        return [to_media(self._items.to_record(row)) for row in rows]

    # --- mutations -------------------------------------------------------------------------------------------------

    async def execute(self, mutation: CatalogueMutation, deadline: Deadline) -> Executed:
        for _ in range(RACES_MAX):
            done: Executed | None = None
            with suppress(NotFound, Conflict, AlreadyExists, PreconditionFailed, Undo):
                async with self.db.transaction(deadline=deadline) as tx:
                    done = await self._change(tx, mutation)
                if done.records:
                    return done
            done = await self._unchanged(mutation, deadline)
            if not done.records:
                return done
        raise Unavailable("this item of media kept changing under this write")

    async def _change(self, tx: SqlTransaction, mutation: CatalogueMutation) -> Executed:
        """Decide and write; Undo where another writer made one of the rows meanwhile."""
        current = await self._locked(tx, mutation)
        entity, records = decide(mutation, current, self.product.clock.now_us())
        for record in records:
            relation = self.relations[record.kind]
            if record.ident in current:
                await tx.run(relation.upsert, relation.to_row(record))
            elif not await tx.run(relation.create, relation.to_row(record)):
                raise Undo
        return Executed(entity, records)

    async def _unchanged(self, mutation: CatalogueMutation, deadline: Deadline) -> Executed:
        """Decide once more what was refused or changed nothing, where no fence can be up; nothing is kept of it.

        As ``SqlConversations``: the insert makes the fence speak, where rows of a sealed side would answer.
        """
        done = Executed(None, ())
        with suppress(Undo):
            async with self.db.transaction(deadline=deadline) as tx:
                await tx.run(self._items.create, self._items.to_row(_PROBE))
                current = await self._locked(tx, mutation)
                done = Executed(*decide(mutation, current, self.product.clock.now_us()))
                raise Undo
        return done

    async def _locked(self, tx: SqlTransaction, mutation: CatalogueMutation) -> dict[Key, Record]:
        current: dict[Key, Record] = {}
        for key in keys_of(mutation):
            await self._lock(tx, key, current)
        let_go = referred(mutation, current.get(keys_of(mutation)[0]))
        if let_go is not None:
            await self._lock(tx, let_go, current)
        return current

    async def _lock(self, tx: SqlTransaction, key: Key, current: dict[Key, Record]) -> None:
        relation = self.relations[key[0]]
        rows = await tx.run(self._sql.lock[key[0]], relation.position(key[1]))
        if rows:
            current[key] = relation.to_record(rows[0])


class CatalogueStatements:
    """The texts of one media and one media_objects table."""

    def __init__(self, dialect: Dialect, codec: RowCodec, attempt: int) -> None:
        items, objects = media_relation(dialect, codec, attempt), object_relation(dialect, codec, attempt)
        self.lock = {one.kind.name: _locking(dialect, one) for one in (items, objects)}
        media, stored = items.table, objects.table
        uuid = media.c.id.type
        live = (sa.not_(media.c.deleted), media.c.upload.is_(None))
        owner = media.c.owner_id == sa.bindparam("of_owner", type_=uuid)
        every = sa.select(*(media.c[name] for name in MEDIA_COLUMNS))
        page = every.where(owner, *live).order_by(media.c.id.desc())
        beyond = page.where(media.c.id < sa.bindparam("after", type_=uuid))
        first = statement(dialect, limited(dialect, page), "of_owner", "limit").sql
        self.pages = {
            False: first,
            True: statement(dialect, limited(dialect, beyond), "of_owner", "after", "limit").sql,
        }
        old = every.where(
            media.c.upload.is_not(None), sa.not_(media.c.deleted), media.c.id < sa.bindparam("before", type_=uuid)
        )
        self.waiting = statement(dialect, limited(dialect, old.order_by(media.c.id)), "before", "limit").sql
        all_objects = sa.select(*(stored.c[name] for name in OBJECT_COLUMNS))
        time = sa.bindparam("now", type_=sa.BigInteger)
        due = all_objects.where(stored.c.delete_after.is_not(None), sa.not_(stored.c.deleted))
        due = due.where(stored.c.delete_after <= time).order_by(stored.c.delete_after)
        self.due = statement(dialect, limited(dialect, due), "now", "limit").sql
        keys: Any = sa.bindparam("keys", expanding=True)
        named = all_objects.where(sa.tuple_(stored.c.owner_id, stored.c.name).in_(keys), sa.not_(stored.c.deleted))
        self.named = LookUp(dialect, named, "keys", (None, None))
        uploads = every.where(sa.tuple_(media.c.owner_id, media.c.upload).in_(keys), sa.not_(media.c.deleted))
        self.uploads = LookUp(dialect, uploads, "keys", (None, None))


def _locking(dialect: Dialect, relation: Relation) -> str:
    table = relation.table
    keys = [column == sa.bindparam(f"of_{column.name}", type_=column.type) for column in table.primary_key]
    names = [f"of_{name}" for name in relation.key_names]
    return statement(dialect, relation.select.where(*keys).with_for_update(), *names).sql
