"""A streaming replica of a cluster: copied with pg_basebackup, fed through a slot of its own, promoted in place.

The slot keeps the primary's log for as long as the replica is down or paused, so it always catches up. A
synchronous one is named in the primary's synchronous_standby_names once it streams: from then on a commit that
was acknowledged is on both, and while the replica is down or paused with SIGSTOP commits wait for it. Paused
replay holds up no commit: what arrives is flushed, it is only not shown.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from tests.servers.errors import ServerError
from tests.servers.interface import PostgresServer
from tests.servers.ports import PortLease
from tests.servers.postgres.install import PASSWORD, SUPERUSER, PostgresInstall
from tests.servers.postgres.server import LocalPostgres
from tests.servers.process import run_tool

_COPY_TIMEOUT_S = 180.0
_WAIT_S = 60.0
_POLL_S = 0.01
# So that a replica comes back at once after its primary was restarted, not after five seconds.
_SETTINGS = {"wal_retrieve_retry_interval": "100ms"}


def ask(url: str, query: LiteralString | sql.Composed, *parameters: Any) -> Any:
    """The first column of the first row."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query, parameters or None).fetchone()
    return row[0] if row else None


def sibling(url: str, other: str) -> str:
    """The database of `other`, at the host and account of `url`."""
    return urlsplit(url)._replace(path=urlsplit(other).path).geturl()


class ReplicaBySql:
    """What a replica is told and asked in SQL, wherever it runs; `primary` is what it follows."""

    url: str
    primary: PostgresServer

    def url_of(self, database_url: str) -> str:
        """The same database, read here."""
        return sibling(self.url, database_url)

    def pause_replay(self) -> None:
        """From now on nothing new is shown here; it is received all the same."""
        ask(self.url, "SELECT pg_wal_replay_pause()")
        self._until("paused", lambda: ask(self.url, "SELECT pg_get_wal_replay_pause_state()") == "paused")

    def resume_replay(self) -> None:
        """Shows what has come in meanwhile; harmless when not paused."""
        ask(self.url, "SELECT pg_wal_replay_resume()")

    def lag_bytes(self) -> int:
        """How much of the primary's log is not shown here yet."""
        written = ask(self.primary.url, "SELECT pg_current_wal_flush_lsn()::text")
        return int(ask(self.url, "SELECT greatest(0, pg_wal_lsn_diff(%s, pg_last_wal_replay_lsn()))", written))

    def await_caught_up(self) -> None:
        """Returns when everything that the primary acknowledged before the call is shown here.

        Raises:
            ServerError: not within a minute.
        """
        # A commit of its own flushes what was committed without waiting for the disk.
        ask(self.primary.url, "SELECT pg_logical_emit_message(true, 'datalayer', '')::text")
        written = ask(self.primary.url, "SELECT pg_current_wal_flush_lsn()::text")
        shown: LiteralString = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        self._until("caught up", lambda: bool(ask(self.url, shown, written)))

    def promote(self) -> None:
        """Makes it a primary of its own, paused replay or not; returns when it takes writes.

        Raises:
            ServerError: not within a minute.
        """
        if not ask(self.url, "SELECT pg_promote(true, %s)", int(_WAIT_S)):
            raise ServerError(f"{self._where} was not promoted within {_WAIT_S:.0f} s")

    @property
    def _where(self) -> str:
        return "the replica at " + urlsplit(self.url).netloc.rpartition("@")[2]

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not holds():
            if time.monotonic() > deadline:
                raise ServerError(f"{self._where} is not {what} after {_WAIT_S:.0f} s")
            time.sleep(_POLL_S)


class LocalReplica(ReplicaBySql, LocalPostgres):
    """A streaming replica of a local cluster."""

    def __init__(
        self, name: str, *, primary: LocalPostgres, install: PostgresInstall, folder: Path, lease: PortLease, mark: str
    ) -> None:
        # A standby refuses to start when some of its limits are below the primary's.
        settings = {**primary.settings, **_SETTINGS}
        super().__init__(name, install=install, folder=folder, lease=lease, mark=mark, settings=settings)
        self.primary: LocalPostgres = primary

    def await_streaming(self) -> None:
        """Returns when the primary sends it its log, for instance after one of the two came back.

        Raises:
            ServerError: not within a minute.
        """
        self._until("streaming", lambda: self._state() is not None)

    def make_synchronous(self) -> None:
        """From now on the primary acknowledges no commit that is not flushed here, across restarts too."""
        wanted = sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(f'FIRST 1 ("{self.name}")')
        with psycopg.connect(self.primary.url, autocommit=True) as connection:
            connection.execute(wanted)
            connection.execute("SELECT pg_reload_conf()")
        self._until("synchronous", lambda: self._state() == "sync")

    def _state(self) -> str | None:
        """sync or async while it streams, else None. The primary knows a standby by its cluster_name."""
        query: LiteralString = (
            "SELECT sync_state FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'"
        )
        found: str | None = ask(self.primary.url, query, self.name)
        return found

    def _make_data(self) -> None:
        slot = "".join(letter if letter.isalnum() else "_" for letter in self.name.lower())
        source = ("-h", self.primary.host, "-p", str(self.primary.port), "-U", SUPERUSER, "-w")
        how = ("-R", "-X", "stream", "-C", "-S", slot, "-c", "fast", "--no-sync")
        run_tool(
            self._install.tool(
                "pg_basebackup",
                *(*source, "-D", str(self.data), *how),
                folder=self.data.parent,
                environment={"PGPASSWORD": PASSWORD},
            ),
            timeout_s=_COPY_TIMEOUT_S,
        )
