"""One SQLite file as a backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import PreconditionFailed
from datalayer.schemas.metadata import sqlite_tables
from datalayer.schemas.search import create_search
from datalayer.stores.sql.meta import SqlMeta
from datalayer.stores.sqlite.database import SqliteDatabase
from datalayer.stores.sqlite.schema import SqliteSchema
from datalayer.stores.sqlite.search import SqliteSearch
from datalayer.stores.sqlite.store import (
    SqliteCatalogue,
    SqliteConversations,
    SqliteListings,
    SqliteMessages,
    SqlitePlace,
    SqliteProduct,
    SqliteSessions,
    SqliteUsers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.clock import Clock, Deadline
    from datalayer.stores.base import AuthorityClass, MetaRow, Token

READERS_MAX = 4
"""More threads do not read faster: they share one interpreter lock."""
_STORES: Final[
    dict[
        str,
        type[
            SqliteMessages
            | SqliteUsers
            | SqliteConversations
            | SqliteListings
            | SqliteSearch
            | SqliteCatalogue
            | SqliteSessions
        ],
    ]
] = {
    "messages": SqliteMessages,
    "users": SqliteUsers,
    "conversations": SqliteConversations,
    "listings": SqliteListings,
    "sessions": SqliteSessions,
    "search": SqliteSearch,
    "catalogue": SqliteCatalogue,
}


class SqliteBackend:
    """``Backend`` over one file; the file is made at the first call, its folder must exist."""

    product: str = "sqlite"
    authority_class: AuthorityClass = "transactional"

    def __init__(self, name: str, path: Path, *, clock: Clock, readers: int = 2, synchronous: str = "FULL") -> None:
        self.name = name
        self.database = SqliteDatabase(path, clock, readers=readers, synchronous=synchronous)
        self._meta = SqlMeta(self.database, extra_tables=sqlite_tables(), extra_ddl=create_search("sqlite"))
        self._product = SqliteProduct(clock)
        self._stores: dict[tuple[str, int], SqlitePlace] = {}

    async def open(self) -> None:
        if not self.database.path.parent.is_dir():
            raise PreconditionFailed(
                f"the folder of backend {self.name!r} does not exist: {self.database.path.parent}",
                hint="make the folder, or correct the backend's url",
            )
        await self.database.fetch("PRAGMA schema_version")

    async def close(self) -> None:
        await self.database.close()

    async def ping(self, deadline: Deadline) -> None:
        await self.database.fetch("PRAGMA schema_version", deadline=deadline)

    def refuses(self, domain: str) -> str | None:
        return None if domain in _STORES else f"SQLite holds {', '.join(_STORES)}, not {domain}"

    def store(self, domain: str, attempt: int) -> SqlitePlace:
        key = (domain, attempt)
        if key not in self._stores:
            assert self.refuses(domain) is None, f"SQLite holds no {domain}"
            self._stores[key] = _STORES[domain](self.database, self._product, attempt)
        return self._stores[key]

    def sql_schema(self) -> SqliteSchema:
        """The way to this file's schema, for the schema tools."""
        return SqliteSchema(self.database)

    async def ensure_schema(self, *, create: bool) -> None:
        await self._meta.ensure_schema(create=create)

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        return await self._meta.read_meta()

    async def write_meta(self, row: MetaRow) -> None:
        await self._meta.write_meta(row)

    async def raise_token(self, token: Token) -> None:
        await self._meta.raise_token(token)


def create_backend(name: str, url: Any, *, pool_max: int, clock: Clock) -> SqliteBackend:
    """The backend of a ``sqlite:///`` URL; ``pool_max`` bounds its readers."""
    return SqliteBackend(name, Path(url.path), clock=clock, readers=max(1, min(READERS_MAX, pool_max // 5)))
