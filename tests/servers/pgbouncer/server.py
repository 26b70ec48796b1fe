"""One PgBouncer in transaction mode as a child process, or given by URL."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg.rows import dict_row

from tests.servers.given import Given
from tests.servers.interface import PostgresServer
from tests.servers.pgbouncer.install import PgBouncerInstall
from tests.servers.ports import LOOPBACK, PortLease
from tests.servers.postgres.replica import sibling
from tests.servers.process import Command, ServerProcess, clean_environment
from tests.servers.watchdog import MARK

_START_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 5
# Few server connections, so that clients do share them; idle ones go soon, for a run makes many databases.
_SETTINGS = {
    "unix_socket_dir": "",
    "auth_type": "scram-sha-256",
    "pool_mode": "transaction",
    "default_pool_size": "5",
    "max_client_conn": "500",
    "server_idle_timeout": "10",
    "server_login_retry": "0.2",
    "ignore_startup_parameters": "extra_float_digits",
}


class _Front:
    """The addresses of databases as seen through the pooler, and its console."""

    url: str
    server: PostgresServer

    def url_of(self, database_url: str) -> str:
        """The same database through the pooler, as any client takes it."""
        return sibling(self.url, database_url)

    def library_url(self, database_url: str, *, direct: bool = False) -> str:
        """The same as a URL of a backend: ?pgbouncer=true, and with `direct` the way past the pooler."""
        url = self.url_of(database_url)
        address = urlsplit(self.server.url).netloc.rpartition("@")[2]
        past = f"&direct={address}" if direct else ""
        return f"{url}{'&' if '?' in url else '?'}pgbouncer=true{past}"

    def show(self, what: str) -> list[dict[str, Any]]:
        """Rows of SHOW `what` of the admin console: pools, servers, clients, config, version."""
        with psycopg.connect(self._console, autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(f"SHOW {what}".encode()).fetchall()

    @property
    def _console(self) -> str:
        return sibling(self.url, "postgresql:///pgbouncer")


class LocalPgBouncer(_Front):
    """A PgBouncer of our own before every database of one server, with the server's account."""

    controllable = True

    def __init__(
        self,
        name: str,
        *,
        server: PostgresServer,
        install: PgBouncerInstall,
        folder: Path,
        lease: PortLease,
        mark: str,
        settings: Mapping[str, str],
    ) -> None:
        self.name = name
        self.server = server
        self.host = LOOPBACK
        self.port = lease.port
        self._target = urlsplit(server.url)
        account, at, _ = self._target.netloc.rpartition("@")
        self.url = f"postgresql://{account}{at}{LOOPBACK}:{lease.port}{self._target.path}"
        self._folder = folder
        self._install = install
        self._settings = {"listen_addr": LOOPBACK, "listen_port": str(lease.port), **_SETTINGS, **settings}
        argv = (str(install.binary), str(folder / "pgbouncer.ini"))
        self.process = ServerProcess(
            name,
            Command(argv, folder, folder / "pgbouncer.log", clean_environment(**{MARK: mark}), install.account),
            ready=self._is_ready,
            listens=[(LOOPBACK, lease.port)],
            start_timeout_s=_START_TIMEOUT_S,
            # SIGINT would wait for every client to end its transaction.
            stop_signal=signal.SIGTERM,
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it is alive."""
        return self.process.running

    def start(self) -> None:
        """Starts at the same port and waits until it serves clients; the server behind it may be down."""
        if not (self._folder / "pgbouncer.ini").exists():
            self._configure()
        self.process.start()

    def stop(self) -> None:
        """Ends it and every connection through it."""
        self.process.stop()

    def kill9(self) -> None:
        """A crash."""
        self.process.kill9()

    def pause(self) -> None:
        """Stops it in its tracks; connections hang."""
        self.process.pause()

    def resume(self) -> None:
        """Lets it go on."""
        self.process.resume()

    def _configure(self) -> None:
        user, password = (unquote(part or "") for part in (self._target.username, self._target.password))
        users = self._folder / "users.txt"
        mine = {"auth_file": str(users), "admin_users": user}
        text = [
            "[databases]",
            f"* = host={self._target.hostname} port={self._target.port or 5432}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in {**self._settings, **mine}.items()),
        ]
        config = self._folder / "pgbouncer.ini"
        config.write_text("\n".join(text) + "\n", encoding="utf-8")
        quoted = " ".join('"' + part.replace('"', '""') + '"' for part in (user, password))
        users.touch(mode=0o600)
        users.write_text(quoted + "\n", encoding="utf-8")
        if account := self._install.account:
            for path in (self._folder, config, users):
                os.chown(path, account.uid, account.gid)

    def _is_ready(self, pid: int) -> bool:
        try:
            psycopg.connect(self._console, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S).close()
        except psycopg.OperationalError:
            return False
        return True


class GivenPgBouncer(_Front, Given):
    """A PgBouncer given by URL; it must pass on every database of the server behind it."""

    def __init__(self, url: str, server: PostgresServer) -> None:
        super().__init__(url)
        self.server = server
