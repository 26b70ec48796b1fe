"""psycopg alone over shards: a pool for each, autocommit, prepared, the shard and the table worked out by hand.

Rows come as psycopg makes them: no model, no check of an argument, no deadline.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from benchmarks.shards.place import SLOTS, Lies, slot
from datalayer.domains.users import claim_key
from datalayer.schemas.metadata import claims_table, users_table
from datalayer.stores.sql.statement import insert, statement, values_of
from datalayer.stores.sql.users import UserStatements
from datalayer.types import User

POOL = 8
PREPARED_MAX = 500


class BareUsers:
    """Users in the tables of these slot groups."""

    def __init__(self, urls: Sequence[str], groups: Sequence[Lies], *, prepare_after: int) -> None:
        """``prepare_after``: psycopg's prepare_threshold. 0 costs a round trip at the first use and suits one statement;
        5 is its default, and suits many.
        """
        self._pools: list[AsyncConnectionPool[Any]] = [
            AsyncConnectionPool(
                url,
                min_size=POOL,
                max_size=POOL,
                kwargs={"autocommit": True, "prepare_threshold": prepare_after},
                configure=_keep_prepared,
                open=False,
            )
            for url in urls
        ]
        self._tables = [_Tables(self._pools[lies.shard], lies.table) for lies in groups]
        self._slots_each = SLOTS // len(groups)

    async def open(self) -> None:
        for pool in self._pools:
            await pool.open(wait=True)

    async def close(self) -> None:
        for pool in self._pools:
            await pool.close()

    async def get(self, ident: UUID) -> Any:
        at = self._at(ident.bytes)
        async with at.pool.connection() as connection:
            cursor = await connection.execute(at.get, (ident,), binary=True)
            return await cursor.fetchone()

    async def create(self, user: User) -> None:
        """Three statements: the row, the claim of the name, of the address. A taken one is found only in its own group."""
        await self._run(user.id.bytes, "create", _row(user))
        for field, value in (("username", user.username), ("email", user.email or "")):
            key = claim_key(field, value)
            await self._run(key, "claim", (field, value, key[:16], user.id, user.version, False))

    async def rename(self, ident: UUID, old: str, new: str, version: int) -> None:
        """Three statements: the new claim, the row, the old claim freed. Whoever dies between them leaves a mess."""
        key, former = claim_key("username", new), claim_key("username", old)
        await self._run(key, "claim", ("username", new, key[:16], ident, version, False))
        await self._run(ident.bytes, "rename", (new, version, version, ident))
        await self._run(former, "free", (version, "username", old, ident))

    async def _run(self, key: bytes, name: str, row: tuple[Any, ...]) -> None:
        at = self._at(key)
        async with at.pool.connection() as connection:
            cursor = await connection.execute(getattr(at, name), row, binary=True)
            assert cursor.rowcount == 1, f"{name} changed {cursor.rowcount} rows"

    def _at(self, key: bytes) -> "_Tables":
        return self._tables[slot(key[:16]) // self._slots_each]


class _Tables:
    """The statements of one slot group."""

    def __init__(self, pool: AsyncConnectionPool[Any], number: int) -> None:
        self.pool = pool
        users, claims = users_table(number), claims_table(number)
        self.get = UserStatements("postgresql", number).get
        create = insert("postgresql", users).values(values_of([column.name for column in users.columns]))
        self.create = statement("postgresql", create).sql
        claim = insert("postgresql", claims).values(values_of([column.name for column in claims.columns]))
        self.claim = statement("postgresql", claim).sql
        self.rename = f"UPDATE {users.name} SET username = %s, updated_at = %s, version = %s WHERE id = %s"
        self.free = (
            f"UPDATE {claims.name} SET deleted = true, version = %s WHERE kind = %s AND value = %s AND owner = %s"
        )


def _row(user: User) -> tuple[Any, ...]:
    head = (user.id, user.username, user.email, user.display_name, user.status)
    return (*head, user.updated_at_us, user.deleted, user.version, '{"locale":"en","plan":"free"}')


async def _keep_prepared(connection: Any) -> None:
    connection.prepared_max = PREPARED_MAX
