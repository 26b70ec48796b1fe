"""One Redis server as a child process."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from tests.servers.errors import ServerError
from tests.servers.local import LocalServer
from tests.servers.ports import LOOPBACK
from tests.servers.process import Command, ServerProcess, clean_environment
from tests.servers.redis import probe
from tests.servers.watchdog import MARK

_START_TIMEOUT_S = 60.0
# Databases of their own for as many tests.
DATABASES = 1024
_SETTINGS = {
    "bind": LOOPBACK,
    "databases": str(DATABASES),
    # A title overwrites the environment, by which the watchdog knows the servers of a run.
    "set-proc-title": "no",
    # With everysec or no, a kill may lose what was acknowledged.
    "appendonly": "yes",
    "appendfsync": "always",
    "save": '""',
    # How long a stop waits for replicas that lag.
    "shutdown-timeout": "0",
    # Else a replica that still writes its first append-only file after a resync ignores SIGTERM.
    "shutdown-on-sigterm": "force",
    "repl-diskless-sync-delay": "0",
}


@dataclass(frozen=True, slots=True)
class RedisPlan:
    """Where a server listens and how it is set up; only a cluster's node has a bus port."""

    name: str
    port: int
    settings: Mapping[str, str]
    bus_port: int | None = None


def empty_database(url: str, number: int) -> tuple[str, int]:
    """The URL and number of the first database from `number` on that holds no key.

    Raises:
        ServerError: every one holds some.
    """
    parts = urlsplit(url)
    host, port, password = parts.hostname or LOOPBACK, parts.port or 6379, parts.password
    held = probe.text(host, port, "INFO", "keyspace", password=password)
    taken = {line.partition(":")[0] for line in held.splitlines()}
    limit = probe.ask(host, port, "CONFIG", "GET", "databases", password=password)
    last = int(str(limit[1])) if isinstance(limit, list) and limit else 16
    for candidate in range(number, last):
        if f"db{candidate}" not in taken:
            return parts._replace(path=f"/{candidate}").geturl(), candidate
    raise ServerError(f"the Redis at {host}:{port} has no empty database between {number} and {last - 1}")


class LocalRedis(LocalServer):
    """A Redis of our own, on a free port of 127.0.0.1; what it acknowledged survives kill9()."""

    def __init__(self, plan: RedisPlan, *, binary: Path, folder: Path, mark: str) -> None:
        super().__init__(plan.name, plan.port)
        self._settings = {**_SETTINGS, "port": str(plan.port), "dir": f'"{folder}"', **plan.settings}
        self.bus_port = plan.bus_port
        if plan.bus_port is not None:
            self._settings["cluster-port"] = str(plan.bus_port)
        self.password = self._settings.get("requirepass")
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        self.url = f"redis://{login}{LOOPBACK}:{plan.port}/0"
        self._config = folder / "redis.conf"
        self._databases = 0
        ports = [plan.port] if plan.bus_port is None else [plan.port, plan.bus_port]
        self.process = ServerProcess(
            plan.name,
            Command((str(binary), str(self._config)), folder, folder / "redis.log", clean_environment(**{MARK: mark})),
            ready=self._is_ready,
            listens=[(LOOPBACK, port) for port in ports],
            start_timeout_s=_START_TIMEOUT_S,
            stop_signal=signal.SIGTERM,
        )

    def start(self) -> None:
        """Starts over the same data and waits until it has loaded them; CONFIG REWRITE holds across starts."""
        if not self._config.exists():
            lines = [f"{name} {value}\n" for name, value in self._settings.items()]
            self._config.write_text("".join(lines), encoding="utf-8")
        self.process.start()

    def create_database(self) -> str:
        """The URL of a database that holds no key and was not handed out before."""
        url, self._databases = empty_database(self.url, self._databases + 1)
        return url

    def ask(self, *words: str) -> probe.Reply:
        """The answer to one command.

        Raises:
            OSError: it does not answer.
            ServerError: it refused the command.
        """
        return probe.ask(self.host, self.port, *words, password=self.password)

    def text(self, *words: str) -> str:
        """The answer to one command that answers with text."""
        return probe.text(self.host, self.port, *words, password=self.password)

    def _is_ready(self, _pid: int) -> bool:
        try:
            return self.ask("PING") == "PONG"
        except (OSError, ServerError):
            # ServerError: it still loads its data.
            return False
