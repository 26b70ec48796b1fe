"""SQLAlchemy's horizontal ShardedSession over the same databases: tables of one name on every shard, in autocommit. To be imported
after ``greenlets.install_greenlet``.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.shards.place import SLOTS, Lies, slot
from datalayer.types import User

POOL = 8


class Base(DeclarativeBase):
    pass


class OrmUser(Base):
    __tablename__ = "orm_users"

    id: Mapped[UUID] = mapped_column(sa.Uuid, primary_key=True)
    username: Mapped[str]
    email: Mapped[str | None]
    display_name: Mapped[str]
    status: Mapped[str]
    updated_at: Mapped[int] = mapped_column(sa.BigInteger)
    deleted: Mapped[bool]
    version: Mapped[int] = mapped_column(sa.BigInteger)
    attributes: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


class OrmUsers:
    """A new session for each call, as a web service has one for each request."""

    def __init__(self, urls: Sequence[str], groups: Sequence[Lies]) -> None:
        self._engines: dict[str, AsyncEngine] = {
            str(number): create_async_engine(
                url.replace("postgresql://", "postgresql+psycopg://"),
                isolation_level="AUTOCOMMIT",
                pool_size=POOL,
                connect_args={"prepare_threshold": 0},
            )
            for number, url in enumerate(urls)
        }
        shard_of = [str(lies.shard) for lies in groups]
        slots_each = SLOTS // len(groups)

        def of_id(ident: UUID) -> str:
            return shard_of[slot(ident.bytes) // slots_each]

        self._of_id = of_id
        self._options: dict[str, Any] = {
            "sync_session_class": ShardedSession,
            "shards": {name: engine.sync_engine for name, engine in self._engines.items()},
            "shard_chooser": lambda mapper, instance, clause=None: of_id(instance.id),  # noqa: ARG005 - called so
            "identity_chooser": lambda mapper, key, **_: [of_id(key[0])],  # noqa: ARG005 - as above
            "execute_chooser": lambda context: list(self._engines),  # noqa: ARG005 - as above
            "expire_on_commit": False,
        }

    async def open(self) -> None:
        for engine in self._engines.values():
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.dispose()

    async def fill(self, users: Sequence[User]) -> None:
        """Rows of the same users, in tables of its own."""
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self._engines}
        for user in users:
            rows[self._of_id(user.id)].append(
                {
                    "id": user.id,
                    "username": user.username,
                    "email": user.email,
                    "display_name": user.display_name,
                    "status": user.status,
                    "updated_at": user.updated_at_us,
                    "deleted": user.deleted,
                    "version": user.version,
                    "attributes": dict(user.attributes),
                }
            )
        for name, mine in rows.items():
            async with self._engines[name].begin() as connection:
                await connection.execute(sa.insert(OrmUser), mine)

    async def get(self, ident: UUID) -> Any:
        async with AsyncSession(**self._options) as session:
            return await session.get(OrmUser, ident)
