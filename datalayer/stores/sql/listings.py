"""Users' lists on SQL: read, ``domains.listings.decide``, and write where the row is still as it was read.

No transaction: an entry is one row. What a fence must refuse is refused by the write; an entry that a mutation leaves
as it is needs none, and whoever reads that from a side that is sealed misses activity at most, of which the next message
tells again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import sqlalchemy as sa

from datalayer.domains.listings import Show, decide, keys_of, to_listed
from datalayer.errors import Unavailable
from datalayer.schemas.metadata import LISTED_COLUMNS, listings_table
from datalayer.stores.base import Executed
from datalayer.stores.sql.relation import listed_relation
from datalayer.stores.sql.statement import limited, statement
from datalayer.stores.sql.store import SqlProduct, SqlStore
from datalayer.stores.sql.texts import texts

if TYPE_CHECKING:
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.stores.sql.database import Dialect, SqlDatabase
    from datalayer.types import Listed

RACES_MAX: Final = 16


class SqlListings(SqlStore):
    """Port, ListingReads and Transactional over one ``listings`` table."""

    domain: ClassVar[str] = "listings"

    def __init__(self, db: SqlDatabase, product: SqlProduct, attempt: int = 0) -> None:
        self._listed = texts(listed_relation, product.dialect, product.codec, attempt=attempt)
        super().__init__(db, product, attempt, (self._listed,))
        self._uuid = product.codec.bind_uuid
        self._pages = texts(_pages, product.dialect, attempt=attempt)

    async def get(self, user_id: UUID, conversation_id: UUID, deadline: Deadline) -> Listed | None:
        key = (self._uuid(user_id), self._uuid(conversation_id))
        rows = await self.db.fetch(self._listed.stored, key, deadline=deadline)
        return to_listed(self._listed.to_record(rows[0])) if rows else None

    async def of_user(
        self, user_id: UUID, limit: int, deadline: Deadline, *, after: tuple[int, UUID] | None = None
    ) -> list[Listed]:
        position = () if after is None else (after[0], self._uuid(after[1]))
        params = (self._uuid(user_id), *position, limit)
        rows = await self.db.fetch(self._pages[after is not None], params, deadline=deadline)
        return [to_listed(self._listed.to_record(row)) for row in rows]

    async def execute(self, mutation: Show, deadline: Deadline) -> Executed:
        ident = keys_of(mutation)[0]
        position = self._listed.position(ident[1])
        for _ in range(RACES_MAX):
            rows = await self.db.fetch(self._listed.stored, position, deadline=deadline)
            before = self._listed.to_record(rows[0]) if rows else None
            current = {} if before is None else {ident: before}
            entity, records = decide(mutation, current, self.product.clock.now_us())
            if not records:
                return Executed(entity, ())
            row = self._listed.to_row(records[0])
            if before is None:
                done = await self.db.run(self._listed.create, row, deadline=deadline)
            else:
                done = await self.db.run(self._listed.swap, (*row, *position, before.version), deadline=deadline)
            if done:
                return Executed(entity, records)
        raise Unavailable(f"the list of user {mutation.user_id} kept changing under this write")


def _pages(dialect: Dialect, attempt: int) -> dict[bool, str]:
    """The texts of a page of a list: without, and with a position to go on after."""
    table = listings_table(attempt)
    user = table.c.user_id == sa.bindparam("of_user", type_=table.c.user_id.type)
    core = sa.select(*(table.c[name] for name in LISTED_COLUMNS)).where(user, sa.not_(table.c.deleted))
    core = core.order_by(table.c.last_activity.desc(), table.c.conversation_id.desc())
    at: Any = sa.tuple_(
        sa.bindparam("after_activity", type_=sa.BigInteger),
        sa.bindparam("after_id", type_=table.c.conversation_id.type),
    )
    beyond = core.where(sa.tuple_(table.c.last_activity, table.c.conversation_id) < at)
    first = statement(dialect, limited(dialect, core), "of_user", "limit").sql
    then = statement(dialect, limited(dialect, beyond), "of_user", "after_activity", "after_id", "limit").sql
    return {False: first, True: then}
