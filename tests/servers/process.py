"""One server process as our own child: started, watched until ready, killed, stopped, paused.

We are the direct parent and always wait for a child that we kill, so no zombie keeps its id alive: Postgres
would take such an id in postmaster.pid for a running server and refuse to start.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.servers import watchdog
from tests.servers.errors import ServerError, StartFailed
from tests.servers.ports import require_free

_POLL_S = 0.03
_LOG_TAIL_LINES = 40
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "JAVA_HOME")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user whom a server runs as when we are root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, where, and what it needs."""

    argv: Sequence[str]
    folder: Path
    log: Path
    environment: Mapping[str, str]
    account: Account | None = None


def clean_environment(**extra: str) -> dict[str, str]:
    """Only what a server needs, so that the developer's PG* or JAVA_* variables do not leak in."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC", **extra}


def run_tool(command: Command, *, timeout_s: float) -> None:
    """Runs a command to its end, its output going to the log.

    Raises:
        ServerError: it failed or took too long; the message ends with the last lines of the log.
    """
    with command.log.open("ab") as log:
        child = _spawn(command, log.fileno())
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise ServerError(f"{command.argv[0]} ran longer than {timeout_s:.0f} s\n{tail(command.log)}") from None
    if code != 0:
        raise ServerError(f"{' '.join(command.argv)} ended with {code}\n{tail(command.log)}")


def tail(log: Path, lines: int = _LOG_TAIL_LINES) -> str:
    """The last lines of a log, or a remark that there is none."""
    if not log.exists():
        return f"(no log at {log})"
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join([f"--- last lines of {log}:", *text])


def _spawn(command: Command, output: int) -> "subprocess.Popen[bytes]":
    account = command.account
    return subprocess.Popen(
        list(command.argv),
        cwd=command.folder,
        env=dict(command.environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


class ServerProcess:
    """A server that runs, or could run again over the same data."""

    def __init__(
        self,
        name: str,
        command: Command,
        *,
        ready: Callable[[int], bool],
        listens: Sequence[tuple[str, int]],
        start_timeout_s: float,
        stop_signal: signal.Signals,
        stop_timeout_s: float = 60.0,
    ) -> None:
        self.name = name
        self.command = command
        self._ready = ready
        self._listens = listens
        self._start_timeout_s = start_timeout_s
        self._stop_signal = stop_signal
        self._stop_timeout_s = stop_timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of the main process.

        Raises:
            ServerError: the server does not run.
        """
        if self._child is None:
            raise ServerError(f"{self.name} is not running")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the main process is alive, paused or not."""
        return self._child is not None and self._child.poll() is None

    def launch(self) -> None:
        """Starts the process without waiting for it to be ready.

        Raises:
            PortBusy: somebody else listens on one of its ports.
        """
        for host, port in self._listens:
            require_free(host, port, who=self.name)
        with self.command.log.open("ab") as log:
            self._child = _spawn(self.command, log.fileno())

    def await_ready(self) -> None:
        """Waits until the server answers.

        Raises:
            StartFailed: it ended or did not answer in time; the message holds the end of its log.
        """
        child = self._child
        if child is None:
            raise ServerError(f"{self.name} is not running")
        began = time.monotonic()
        while not self._ready(child.pid):
            if child.poll() is not None:
                self._child = None
                raise StartFailed(f"{self.name} ended with {child.returncode} while starting\n{tail(self.command.log)}")
            if time.monotonic() - began > self._start_timeout_s:
                self.kill9()
                waited = f"{self.name} did not answer within {self._start_timeout_s:.0f} s"
                raise StartFailed(f"{waited}\n{tail(self.command.log)}")
            time.sleep(_POLL_S)
        _logger.info("%s is ready after %.1f s", self.name, time.monotonic() - began)

    def start(self) -> None:
        """Starts over the same data and waits until ready; a server that runs is only resumed."""
        if self.running:
            self.resume()
            return
        self._bury()
        self.launch()
        self.await_ready()

    def kill9(self) -> None:
        """Kills the server and all its processes at one moment, as a crash would; returns when all are gone."""
        child = self._child
        if child is None:
            return
        victims = watchdog.freeze(child.pid)
        for process in victims:
            watchdog.send(process, signal.SIGKILL)
        self._bury()
        left = watchdog.await_gone(victims)
        if left:
            raise ServerError(f"{self.name}: processes {[process.pid for process in left]} survive SIGKILL")

    def stop(self) -> None:
        """Ends the server in its own orderly way; killed when that takes longer than a minute."""
        child = self._child
        if child is None:
            return
        family = watchdog.descendants([child.pid])
        self.resume()
        child.send_signal(self._stop_signal)
        try:
            child.wait(self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            _logger.warning("%s did not stop within %.0f s; killing it", self.name, self._stop_timeout_s)
            self.kill9()
            return
        self._bury()
        watchdog.await_gone(family)

    def pause(self) -> None:
        """Stops every process of the server in its tracks: connections stay open and hang."""
        watchdog.freeze(self.pid)

    def resume(self) -> None:
        """Lets a paused server go on; harmless for one that was not paused."""
        for process in watchdog.descendants([self.pid]):
            watchdog.send(process, signal.SIGCONT)
        if self._child is not None:
            self._child.send_signal(signal.SIGCONT)

    def _bury(self) -> None:
        if self._child is not None:
            self._child.wait()
            self._child = None
