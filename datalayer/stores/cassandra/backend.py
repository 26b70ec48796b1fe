"""One configured cluster: a keyspace, its schema, and what it says of itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import ConfigurationError, LostLease
from datalayer.stores.base import MetaRow
from datalayer.stores.cassandra.binding import bound
from datalayer.stores.cassandra.cluster import Target
from datalayer.stores.cassandra.messages import CassandraMessages
from datalayer.stores.cassandra.place import MessagesPlace
from datalayer.stores.cassandra.schema import CassandraSchema
from datalayer.stores.cassandra.session import CassandraSession

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.clock import Clock, Deadline
    from datalayer.settings import BackendUrl
    from datalayer.stores.base import AuthorityClass, Token

_KEYSPACE: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")
_DATA_CENTRE: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_NEEDS_COMPARE_AND_SET: Final = frozenset({"users", "conversations", "listings", "catalogue"})
REQUESTS_PER_POOL_SLOT: Final = 25


class CassandraBackend:
    """A keyspace of a Cassandra or ScyllaDB cluster."""

    product: str = "cassandra"
    authority_class: AuthorityClass = "last_writer"

    def __init__(self, name: str, url: BackendUrl, *, in_flight_max: int, clock: Clock) -> None:
        self.name = name
        self._target = Target.of(url)
        keyspace = self._target.keyspace
        if not _KEYSPACE.fullmatch(keyspace):
            raise ConfigurationError(f"backend {name}: a keyspace is named by a-z, 0-9 and _, at most 48 of them")
        self._keyspace = keyspace
        self._clock = clock
        self._session = CassandraSession(name, self._target, clock, in_flight_max=in_flight_max)
        self._session.on_down = self._node_lost
        self._stores: dict[int, CassandraMessages] = {}

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def ping(self, deadline: Deadline) -> None:
        statement = await self._session.prepare("SELECT key FROM system.local")
        await self._session.run(bound(statement, ()), write=False, deadline=deadline)

    def refuses(self, domain: str) -> str | None:
        if domain == "messages":
            return None
        if domain in _NEEDS_COMPARE_AND_SET:
            return f"{domain} needs compare-and-set"
        return f"cassandra does not store {domain}"

    def store(self, domain: str, attempt: int) -> CassandraMessages:
        if domain != "messages":
            raise ConfigurationError(f"backend {self.name}: {self.refuses(domain)}")
        found = self._stores.get(attempt)
        if found is None:
            found = CassandraMessages(MessagesPlace(self._session, self._keyspace, attempt, self._clock))
            self._stores[attempt] = found
        return found

    # --- schema ---

    def cql_schema(self) -> CassandraSchema:
        """The way to this keyspace's schema, for the schema tools."""
        if not _DATA_CENTRE.fullmatch(self._session.local_dc):
            raise ConfigurationError(f"backend {self.name}: local_dc is no name of a data centre")
        return CassandraSchema(self._session, self._keyspace, self._target.replication)

    async def ensure_schema(self, *, create: bool) -> None:
        schema = self.cql_schema()
        if create:
            await schema.upgrade()
        await schema.check()

    # --- what the keyspace says of itself ---

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        rows = await self._rows("SELECT domain, attempt, deployment, role, epoch FROM {keyspace}.datalayer_meta")
        return {(row[0], row[1]): MetaRow(*row) for row in rows}

    async def write_meta(self, row: MetaRow) -> None:
        key = (row.domain.encode(), row.attempt.to_bytes(4, "big"))
        content = (row.deployment.encode(), row.role.encode(), row.epoch.to_bytes(8, "big"))
        if not await self._if_applied(
            "INSERT INTO {keyspace}.datalayer_meta (domain, attempt, deployment, role, epoch) "
            "VALUES (?, ?, ?, ?, ?) IF NOT EXISTS",
            (*key, *content),
        ):
            # Not applied: the stored row is of a later epoch, and stays.
            await self._if_applied(
                "UPDATE {keyspace}.datalayer_meta SET deployment = ?, role = ?, epoch = ? "
                "WHERE domain = ? AND attempt = ? IF epoch <= ?",
                (*content, *key, content[-1]),
            )

    async def raise_token(self, token: Token) -> None:
        content = (token.migration.encode(), token.attempt.to_bytes(4, "big"), token.value.to_bytes(8, "big"))
        domain = token.domain.encode()
        if await self._if_applied(
            "INSERT INTO {keyspace}.datalayer_token (domain, migration, attempt, value) "
            "VALUES (?, ?, ?, ?) IF NOT EXISTS",
            (domain, *content),
        ):
            return
        if not await self._if_applied(
            "UPDATE {keyspace}.datalayer_token SET migration = ?, attempt = ?, value = ? "
            "WHERE domain = ? IF value <= ?",
            (*content, domain, content[-1]),
        ):
            raise LostLease(f"{self._session.where} has seen a newer coordinator of {token.domain}")

    async def _if_applied(self, cql: str, values: tuple[bytes, ...]) -> bool:
        """A lightweight transaction: whether its condition held."""
        rows = await self._rows(cql, values, write=True)
        return bool(rows[0][0])

    async def _rows(self, cql: str, values: tuple[bytes, ...] = (), *, write: bool = False) -> list[tuple[Any, ...]]:
        statement = await self._session.prepare(cql.format(keyspace=f'"{self._keyspace}"'))
        return await self._session.run(bound(statement, values), write=write)

    def _node_lost(self) -> None:
        for store in self._stores.values():
            store.forget_buckets()


def create_backend(name: str, url: BackendUrl, *, pool_max: int, clock: Clock) -> CassandraBackend:
    """The backend of a URL, not yet opened. The driver keeps one connection to each node, so ``pool_max`` is not
    a number of connections here; it scales the bound of requests in flight.
    """
    return CassandraBackend(name, url, in_flight_max=max(32, pool_max * REQUESTS_PER_POOL_SLOT), clock=clock)
