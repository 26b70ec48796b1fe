"""Read replicas of a Postgres backend: their pools, and where each server is in the log.

What a replica has replayed is asked over a connection of its own, and believed of a read's connection only while both
lead into the same run of the same server. A server that restarts may come back with less replayed than it had, and a
name or an address may lead to another server tomorrow: so every new connection is asked who it talks to and how far
that is, and is refused when it is somebody else or further back. Nothing is remembered about a run that has ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from psycopg.pq import TransactionStatus

from datalayer.errors import Unavailable
from datalayer.stores.postgres.connection import DeadlineConnection
from datalayer.stores.postgres.database import CALL_TIMEOUT_S, PostgresDatabase, execute
from datalayer.stores.postgres.faults import CAUGHT, translate
from datalayer.stores.replicated import LogPosition, ReplicaLook

if TYPE_CHECKING:
    from collections.abc import Callable

    from datalayer.clock import Deadline
    from datalayer.settings import BackendUrl
    from datalayer.stores.sql.database import Row

LONG_HEADER: Final = 40
SHORT_HEADER: Final = 24
"""Bytes of the header of a segment's first page, and of every other page."""

END_OF_LOG: Final = """
SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),
  CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_insert_lsn()) END,
  CASE WHEN pg_is_in_recovery() THEN NULL ELSE (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint END,
  (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'), current_setting('wal_block_size')::int"""

# The receiver says which timeline it was given, but only to members of pg_read_all_stats; the last restartpoint says
# it to everybody, minutes later.
STANDING: Final = """
SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),
  greatest((SELECT timeline_id FROM pg_control_checkpoint()), (SELECT received_tli FROM pg_stat_wal_receiver)),
  (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint,
  concat_ws(' ', inet_server_addr(), inet_server_port(), pg_postmaster_start_time())"""


def end_of_log(row: Row, where: str) -> LogPosition:
    """The answer to ``END_OF_LOG``; Unavailable when a standby gave it."""
    standby, system, segment, lsn, segment_bytes, page_bytes = row
    if standby:
        raise Unavailable(f"{where} is a standby")
    # Where the log ends at the end of a page, the insert position lies behind the next page's header, which no
    # replica comes to before there is a record on that page.
    if lsn % segment_bytes == LONG_HEADER:
        lsn -= LONG_HEADER
    elif lsn % page_bytes == SHORT_HEADER:
        lsn -= SHORT_HEADER
    return LogPosition(system, int(segment[:8], 16), lsn)


def share_out(pool_max: int, replicas: int) -> tuple[int, int]:
    """Connections to the primary and to each replica, of a total; each gets one at least."""
    each = max(1, pool_max // (1 + replicas))
    return max(1, pool_max - replicas * each), each


class LogEnd:
    """Asks a primary where its log ends, and notices when another server has become the primary."""

    def __init__(self, db: PostgresDatabase) -> None:
        self._db = db
        self._log: tuple[int, int] | None = None

    async def ask(self, deadline: Deadline) -> LogPosition:
        """The end of the log; Unavailable when there is no primary at the other end."""
        row = (await self._db.fetch(END_OF_LOG, deadline=deadline))[0]
        try:
            end = end_of_log(row, self._db.where)
        except Unavailable:
            self._db.renew()
            raise
        if self._log not in (None, end[:2]):
            self._db.renew()  # some connections may still lead to the old primary
        self._log = end[:2]
        return end


class ReplicaDatabase(PostgresDatabase):
    """A database read at one replica. Every connection leads into the run that was looked at last."""

    def __init__(self, url: BackendUrl, *, name: str, process: str, pool_max: int) -> None:
        super().__init__(url, name=name, process=process, pool_max=pool_max, any_server=True)
        self._probe: DeadlineConnection | None = None
        self._run: str | None = None
        self._replayed = 0

    async def look(self, deadline: Deadline) -> ReplicaLook:
        """Where the server is; Unavailable when it does not answer or is no standby. One caller at a time."""
        until = asyncio.get_running_loop().time() + min(deadline.remaining(), CALL_TIMEOUT_S)
        try:
            if self._probe is None or not _alive(self._probe):
                self._forget_run()
                self._probe = await super()._connect(until)
            found = await self._standing(self._probe, until)
            # Had the server crashed since its answer, a new connection might find less replayed.
            if not _alive(self._probe):
                raise Unavailable(f"{self.where} hung up")
        except BaseException:  # cancellation included: without its connection a run cannot be told from the next
            if self._probe is None or not _alive(self._probe):
                self._forget_run()
            raise
        if self._run is not None and (found.incarnation != self._run or found.position.lsn < self._replayed):
            self._forget_run()
            raise Unavailable(f"{self.where} is another server than it was")
        self._run, self._replayed = found.incarnation, found.position.lsn
        return found

    async def close(self) -> None:
        self._forget_run()
        await super().close()

    async def _connect(self, until: float, arguments: dict[str, Any] | None = None) -> DeadlineConnection:
        """A connection for reads, into the run that was looked at; Unavailable when it leads elsewhere."""
        run, replayed, probe = self._run, self._replayed, self._probe
        if run is None or probe is None:
            raise Unavailable(f"{self.where} has not been looked at")
        # A name may have several addresses.
        pinned = {**(arguments or self.arguments), "host": probe.info.host, "port": str(probe.info.port)}
        if probe.info.hostaddr and not probe.info.host.startswith("/"):
            pinned["hostaddr"] = probe.info.hostaddr
        connection = await super()._connect(until, pinned)
        try:
            found = await self._standing(connection, until)
        except BaseException:  # whatever happened, the connection is in nobody's hands; raised again
            connection.discard()
            raise
        if found.incarnation != run or found.position.lsn < replayed or self._run != run:
            connection.discard()
            self._forget_run()
            raise Unavailable(f"{self.where} is another server than it was")
        return connection

    async def _standing(self, connection: DeadlineConnection, until: float) -> ReplicaLook:
        connection.until = until
        try:
            standby, system, timeline, lsn, run = (await execute(connection, STANDING, ()))[0]
        except CAUGHT as error:
            raise translate(error, self.where, may_have_committed=False) from error
        finally:
            connection.until = float("inf")
        assert connection.pgconn.transaction_status == TransactionStatus.IDLE, "a statement in autocommit has ended"
        if not standby:
            raise Unavailable(f"{self.where} is no standby")
        return ReplicaLook(LogPosition(system, timeline or 0, lsn or 0), run)

    def _forget_run(self) -> None:
        self._run, self._replayed = None, 0
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.discard()
        self.renew()


def _alive(probe: DeadlineConnection) -> bool:
    return not probe.closed and probe.usable()


class PostgresReplica:
    """One read replica: ``datalayer.stores.replicated.ReplicaServer``."""

    def __init__(self, db: ReplicaDatabase, name: str, size: int, make_store: Callable[[str, int], Any]) -> None:
        self.db = db
        self.name = name
        self.size = size
        self._make_store = make_store

    @property
    def in_use(self) -> int:
        return self.db.in_use

    async def look(self, deadline: Deadline) -> ReplicaLook:
        return await self.db.look(deadline)

    def store(self, domain: str, attempt: int) -> Any:
        return self._make_store(domain, attempt)

    async def close(self) -> None:
        await self.db.close()


def place_of(url: BackendUrl) -> str:
    """What a replica is called: where it is."""
    return ",".join(str(host) for host in url.hosts) or str(url.options.get("host") or "the local socket")
