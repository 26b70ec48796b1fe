"""``SqlDatabase`` over psycopg: single statements in autocommit, transactions in READ COMMITTED, bounded calls."""

from __future__ import annotations

import asyncio
import traceback
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus

from datalayer.stores.postgres.connection import ADAPTERS, NEVER, DeadlineConnection, TimeUp, Unconfirmed
from datalayer.stores.postgres.faults import CAUGHT, translate, translate_connect
from datalayer.stores.postgres.listener import Listener
from datalayer.stores.postgres.pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence

    from psycopg.abc import QueryNoTemplate

    from datalayer.clock import Deadline
    from datalayer.settings import BackendUrl
    from datalayer.stores.sql.database import Dialect, Row

CALL_TIMEOUT_S: Final = 30.0
"""The bound of a call that carries no deadline."""
CONNECT_TIMEOUT_S: Final = 10.0
HOST_TIMEOUT_S: Final = 2
"""Of several hosts, how long each may take to answer; the least that libpq takes."""
PORT: Final = 5432
ROLLBACK_S: Final = 0.25
"""What a ROLLBACK may take, beyond the deadline too, before the connection is closed instead."""
PREPARE_AFTER: Final = 3
PREPARED_MAX: Final = 500
"""Statements that a connection keeps prepared: a shard has some for each of its slot groups."""
APPLICATION: Final = "datalayer/"
"""What application_name of this library's connections begins with; the journal takes all others for foreign."""
_TUPLES: Final = ExecStatus.TUPLES_OK
_OUR_OPTIONS: Final = frozenset({"pgbouncer", "direct", "application_name"})
BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"


def connect_arguments(url: BackendUrl, process: str) -> dict[str, Any]:
    """Keywords for psycopg. A connection string is never built: psycopg repeats one that it cannot parse."""
    arguments: dict[str, Any] = {
        "user": url.user,
        "password": url.password,
        "dbname": url.database,
        "application_name": f"{APPLICATION}{process}",
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        **{key: value for key, value in url.options.items() if key not in _OUR_OPTIONS},
    }
    if url.hosts:
        arguments["host"] = ",".join(host.name for host in url.hosts)
        arguments["port"] = ",".join(str(host.port or PORT) for host in url.hosts)
    return {key: value for key, value in arguments.items() if value is not None}


class PostgresDatabase:
    """One database. ``process`` becomes part of application_name, so that the journal can tell foreign writers."""

    dialect: Dialect = "postgresql"

    def __init__(
        self, url: BackendUrl, *, name: str, process: str = "app", pool_max: int = 20, any_server: bool = False
    ) -> None:
        """``any_server``: standbys too; else a connection is made only to a server that takes writes, the first of
        the URL's hosts that does.
        """
        where = ",".join(str(host) for host in url.hosts) or "the local socket"
        self.where: Final = f"postgres {name!r} at {where}"
        self._pgbouncer = bool(url.options.get("pgbouncer", False))
        self.arguments = connect_arguments(url, process)
        if len(url.hosts) > 1:
            self.arguments.setdefault("connect_timeout", HOST_TIMEOUT_S)
        if not any_server and (len(url.hosts) > 1 or not self._pgbouncer):
            self.arguments.setdefault("target_session_attrs", "read-write")
        self._hosts = [(host.name, str(host.port or PORT)) for host in url.hosts]
        direct = url.options.get("direct")
        self._direct = None if self._pgbouncer and not direct else dict(self.arguments)
        if direct and self._direct is not None:
            host, _, port = str(direct).rpartition(":")
            self._direct |= {"host": host, "port": port}
        self._pool = Pool(self._connect, pool_max, self.where)
        self._listener: Listener | None = None
        self._numbers = count()

    # connections
    async def _connect(self, until: float, arguments: dict[str, Any] | None = None) -> DeadlineConnection:
        loop = asyncio.get_running_loop()
        chosen = self._ordered() if arguments is None else arguments
        try:
            async with asyncio.timeout_at(min(until, loop.time() + CONNECT_TIMEOUT_S)):
                connection = await self._made(chosen)
        except (psycopg.Error, TimeoutError, OSError) as error:
            # the driver's error may quote its parameters: it is no __cause__ here
            raise translate_connect(error, self.where) from None
        connection.watch()
        connection.prepared_max = PREPARED_MAX
        if arguments is None and len(self._hosts) > 1:
            found = (connection.info.host, str(connection.info.port))
            self._hosts.sort(key=lambda host: host != found)
        return connection

    async def _made(self, arguments: dict[str, Any]) -> DeadlineConnection:
        try:
            return await DeadlineConnection.connect(
                autocommit=True,
                prepare_threshold=None if self._pgbouncer else PREPARE_AFTER,
                context=ADAPTERS,
                **arguments,
            )
        except asyncio.CancelledError as stopped:
            # The half-made connection is a local of the driver's frames, which the error keeps for as long as whoever holds
            # it; its socket would stay open, and the server wait a minute for a login, with it every DROP DATABASE.
            traceback.clear_frames(stopped.__traceback__)
            raise

    def _ordered(self) -> dict[str, Any]:
        """The arguments with the host that answered last in front: one that is gone for good costs time."""
        if len(self._hosts) < 2:
            return self.arguments
        names, ports = zip(*self._hosts, strict=True)
        return self.arguments | {"host": ",".join(names), "port": ",".join(ports)}

    @property
    def in_use(self) -> int:
        """Connections handed out or being made."""
        return self._pool.in_use

    def renew(self) -> None:
        """Use no connection made until now again: another server is in charge."""
        self._pool.renew()

    async def dedicated(self) -> DeadlineConnection | None:
        """A connection outside the pool that is no pooler's, or None where there is only a pooler. Close it."""
        if self._direct is None:
            return None
        return await self._connect(NEVER, self._direct)

    @asynccontextmanager
    async def connection(self, deadline: Deadline | None = None) -> AsyncIterator[DeadlineConnection]:
        """A pooled connection for this package's own protocols (COPY, cursors). Errors are not translated."""
        connection = await self._pool.take(_until(deadline))
        try:
            yield connection
        finally:
            self._pool.give(connection)

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        if self._listener is not None:
            await self._listener.close()
        self._pool.close()

    # statements
    async def fetch(self, sql: str, params: Sequence[Any] = (), *, deadline: Deadline | None = None) -> list[Row]:
        """One read in autocommit."""
        return await self._statement(sql, params, deadline, may_have_committed=False)

    async def run(self, sql: str, params: Sequence[Any] = (), *, deadline: Deadline | None = None) -> list[Row]:
        """One writing statement in autocommit; rows of its RETURNING."""
        return await self._statement(sql, params, deadline, may_have_committed=True)

    async def fetch_raw(self, sql: str, params: Sequence[Any], *, deadline: Deadline | None = None) -> list[Row]:
        """As ``fetch``, but a uuid comes as its 16 bytes and a uuid[] as their concatenation."""
        connection = await self._pool.take(_until(deadline))
        try:
            cursor = connection.raw
            await cursor.execute(cast("QueryNoTemplate", sql), params)
            return await cursor.fetchall()
        except CAUGHT as error:
            raise translate(error, self.where, may_have_committed=False) from error
        finally:
            self._pool.give(connection)

    async def _statement(
        self, sql: str, params: Sequence[Any], deadline: Deadline | None, *, may_have_committed: bool
    ) -> list[Row]:
        connection = await self._pool.take(_until(deadline))
        try:
            return await execute(connection, sql, params)
        except CAUGHT as error:
            raise translate(error, self.where, may_have_committed=may_have_committed) from error
        finally:
            self._pool.give(connection)

    @asynccontextmanager
    async def transaction(self, *, deadline: Deadline | None = None) -> AsyncIterator[PostgresTransaction]:
        """A READ COMMITTED transaction: committed at the end of the block, rolled back on any exception."""
        connection = await self._pool.take(_until(deadline))
        try:
            transaction = PostgresTransaction(connection, self.where)
            await transaction.run(BEGIN)
            yield transaction
            await transaction.commit()
        finally:
            # what is still open is rolled back here, or by the server when give() closes the connection
            await self._roll_back(connection)
            self._pool.give(connection)

    async def _roll_back(self, connection: DeadlineConnection) -> None:
        if connection.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            connection.until = asyncio.get_running_loop().time() + ROLLBACK_S
            try:
                await execute(connection, "ROLLBACK", ())
            except CAUGHT:
                connection.discard()

    async def stream(
        self, sql: str, params: Sequence[Any] = (), *, batch: int = 1000
    ) -> AsyncGenerator[list[Row], None]:
        """Rows of a long read, batch by batch, through a server-side cursor. No deadline over the whole of it."""
        connection = await self._pool.take(_until(None))
        try:
            await execute(connection, f"{BEGIN} READ ONLY", ())
            name = f"datalayer_{next(self._numbers)}"
            await execute(connection, f"DECLARE {name} NO SCROLL CURSOR FOR {sql}", params)
            while True:
                connection.until = _until(None)
                rows = await execute(connection, f"FETCH {batch:d} FROM {name}", ())
                if rows:
                    yield rows
                if len(rows) < batch:
                    break
        except CAUGHT as error:
            raise translate(error, self.where, may_have_committed=False) from error
        finally:
            await self._roll_back(connection)
            self._pool.give(connection)

    async def listen(self, channel: str, callback: Callable[[], None]) -> bool:
        """Call back on every notification and after every reconnect; False behind a pooler without ``direct``."""
        if self._direct is None:
            return False
        if self._listener is None:
            self._listener = Listener(self.dedicated)
        return await self._listener.add(channel, callback)


class PostgresTransaction:
    """One open transaction. Whatever fails in it before ``commit`` was not applied."""

    __slots__ = ("_where", "connection")

    def __init__(self, connection: DeadlineConnection, where: str) -> None:
        self.connection = connection
        self._where = where

    async def run(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one statement; its rows, or []."""
        try:
            return await execute(self.connection, sql, params)
        except CAUGHT as error:
            raise translate(error, self._where, may_have_committed=False) from error

    async def run_script(self, statements: Iterable[str]) -> None:
        """Run statements without parameters in one round trip: writers may be waiting for the end of it."""
        try:
            await self.connection.cursor().execute(cast("QueryNoTemplate", ";\n".join(statements)))
        except CAUGHT as error:
            raise translate(error, self._where, may_have_committed=False) from error

    async def run_many(self, sql: str, params: Sequence[Sequence[Any]]) -> None:
        """Run one statement once per parameter set, in one pipeline."""
        try:
            await self.connection.cursor().executemany(sql.encode(), params)
        except CAUGHT as error:
            raise translate(error, self._where, may_have_committed=False) from error

    async def copy_in(self, sql: str, data: bytes) -> None:
        """Run one COPY .. FROM STDIN with its whole input."""
        try:
            async with self.connection.cursor().copy(cast("QueryNoTemplate", sql)) as copy:
                await copy.write(data)
        except CAUGHT as error:
            raise translate(error, self._where, may_have_committed=False) from error

    async def commit(self) -> None:
        """Commit; called by the block that opened it."""
        status = self.connection.pgconn.transaction_status
        assert status != TransactionStatus.INERROR, "a failed statement was swallowed: COMMIT would roll back silently"
        try:
            await execute(self.connection, "COMMIT", ())
        except CAUGHT as error:
            raise translate(error, self._where, may_have_committed=True) from error


async def execute(connection: DeadlineConnection, sql: str, params: Sequence[Any]) -> list[Row]:
    """Run one statement on a connection; its rows, or []. Raises what is in ``CAUGHT``."""
    if asyncio.get_running_loop().time() >= connection.until:
        raise TimeUp(undone=True)  # nothing was sent: a COMMIT that comes too late is known as not applied
    cursor = connection.reused
    connection.unconfirmed = False
    await cursor.execute(cast("QueryNoTemplate", sql), params or None)
    result = cursor.pgresult
    if connection.unconfirmed:
        raise Unconfirmed
    if result is None or result.status != _TUPLES:
        return []
    return await cursor.fetchall()


def _until(deadline: Deadline | None) -> float:
    return asyncio.get_running_loop().time() + (CALL_TIMEOUT_S if deadline is None else deadline.remaining())
