"""One Postgres cluster as a child process."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from tests.servers.ports import LOOPBACK, PortLease
from tests.servers.postgres.install import PASSWORD, SUPERUSER, PostgresInstall
from tests.servers.process import Command, ServerProcess, clean_environment
from tests.servers.watchdog import MARK

_START_TIMEOUT_S = 120.0
_STATUS_LINE = 7


def create_database(url: str, name: str) -> str:
    """Makes an empty database beside the one of the URL and returns its URL."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    head, _, tail = url.partition("?")
    sibling = f"{head.rsplit('/', 1)[0]}/{name}"
    return f"{sibling}?{tail}" if tail else sibling


class LocalPostgres:
    """A Postgres cluster of our own, on a free port of 127.0.0.1."""

    controllable = True

    def __init__(
        self,
        name: str,
        *,
        install: PostgresInstall,
        folder: Path,
        lease: PortLease,
        mark: str,
        settings: Mapping[str, str],
    ) -> None:
        self.name = name
        self.host = LOOPBACK
        self.port = lease.port
        self.url = f"postgresql://{SUPERUSER}:{PASSWORD}@{LOOPBACK}:{lease.port}/postgres"
        self.data = folder / "data"
        self.settings = dict(settings)
        self._install = install
        options = {"port": str(lease.port), "listen_addresses": LOOPBACK, "cluster_name": name, **settings}
        argv = [str(install.bin / "postgres"), "-D", str(self.data)]
        for option, value in options.items():
            argv += ["-c", f"{option}={value}"]
        self.process = ServerProcess(
            name,
            Command(argv, folder, folder / "postgres.log", clean_environment(**{MARK: mark}), install.account),
            ready=self._is_ready,
            listens=[(LOOPBACK, lease.port)],
            start_timeout_s=_START_TIMEOUT_S,
            stop_signal=signal.SIGINT,
        )

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the postmaster is alive."""
        return self.process.running

    def start(self) -> None:
        """Starts over the same data and waits until connections are served."""
        if not self.data.exists():
            account = self._install.account
            if account:
                os.chown(self.data.parent, account.uid, account.gid)
            self._make_data()
        if not self.process.running:
            # All processes of the cluster are gone, and its id may by now be somebody else's, whom
            # Postgres would take for a running postmaster.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        self.process.start()

    def stop(self) -> None:
        """A fast shutdown: open transactions roll back, the data is flushed."""
        self.process.stop()

    def kill9(self) -> None:
        """A crash of the postmaster and all backends."""
        self.process.kill9()

    def pause(self) -> None:
        """Stops all processes; connections hang."""
        self.process.pause()

    def resume(self) -> None:
        """Lets all processes go on."""
        self.process.resume()

    def create_database(self, name: str) -> str:
        """Makes an empty database and returns its URL."""
        return create_database(self.url, name)

    def _make_data(self) -> None:
        self._install.make_cluster(self.data.parent)

    def _is_ready(self, pid: int) -> bool:
        # As pg_ctl does: the postmaster writes its state into line 8 of postmaster.pid.
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > _STATUS_LINE and lines[0] == str(pid) and lines[_STATUS_LINE].strip() == "ready"
