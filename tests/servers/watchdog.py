"""Processes as /proc shows them, and the watchdog that leaves none behind.

The watchdog is a process of its own, in its own session. It waits until the process that started the servers
releases it or is gone, by whatever signal, then kills every process that carries this run's mark and all their
descendants, and removes the run's folder. The mark is an environment variable that each server is started
with, so there is no moment in which a server runs unregistered. Descendants are found by parent: Postgres
overwrites the environment of its children and gives each its own process group, so neither would find them.

It runs as a plain script on the standard library alone (python -I -S watchdog.py), hence everything in one file.
It does not help when it is itself killed together with the session.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MARK = "DATALAYER_SERVERS_RUN"
_KILL_TIMEOUT_S = 30.0
_POLL_S = 0.02
_GONE = "ZX"
_STOPPED = "Tt"


class Process(NamedTuple):
    """One line of /proc/*/stat; `started` tells a process from a later one with the same id."""

    pid: int
    parent: int
    state: str
    started: int


def look(pid: int) -> Process | None:
    """The process of that id, or None when there is none or only a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    if fields[0] in _GONE:
        return None
    return Process(pid, int(fields[1]), fields[0], int(fields[19]))


def everyone() -> list[Process]:
    """All processes that are alive."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [process for process in map(look, pids) if process is not None]


def descendants(roots: Iterable[int]) -> list[Process]:
    """The living children of those processes, and theirs."""
    children: dict[int, list[Process]] = {}
    for process in everyone():
        children.setdefault(process.parent, []).append(process)
    found: dict[int, Process] = {}
    todo = list(roots)
    while todo:
        for child in children.get(todo.pop(), []):
            if child.pid not in found:
                found[child.pid] = child
                todo.append(child.pid)
    return list(found.values())


def send(process: Process, number: signal.Signals) -> None:
    """Signals exactly that process; nothing happens when it is gone."""
    now = look(process.pid)
    if now is None or now.started != process.started:
        return
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return


def freeze(root: int) -> list[Process]:
    """Stops the process and all its descendants, the root first so that it starts no more; returns them."""
    top = look(root)
    if top is None:
        return []
    send(top, signal.SIGSTOP)
    await_stopped(top)
    frozen: dict[int, Process] = {root: top}
    while True:
        fresh = [process for process in descendants([root]) if process.pid not in frozen]
        if not fresh:
            return list(frozen.values())
        for process in fresh:
            send(process, signal.SIGSTOP)
            await_stopped(process)
            frozen[process.pid] = process


def await_stopped(process: Process, timeout_s: float = _KILL_TIMEOUT_S) -> None:
    """Waits until every thread of a process that was told to stop has stopped, or the process is gone."""
    deadline = time.monotonic() + timeout_s
    while (now := look(process.pid)) and now.started == process.started and time.monotonic() < deadline:
        try:
            threads = [look(int(one.name)) for one in Path(f"/proc/{process.pid}/task").iterdir()]
        except (FileNotFoundError, ProcessLookupError):
            return
        if all(thread is None or thread.state in _STOPPED for thread in threads):
            return
        time.sleep(_POLL_S)


def await_gone(processes: Iterable[Process], timeout_s: float = _KILL_TIMEOUT_S) -> list[Process]:
    """Waits until those processes hold nothing any more; returns the ones that outlived the wait."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while True:
        left = [process for process in left if (now := look(process.pid)) and now.started == process.started]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(_POLL_S)


def marked(mark: str) -> list[Process]:
    """The processes that carry the mark in their environment, and all their descendants."""
    wanted = f"{MARK}={mark}".encode()
    roots: dict[int, Process] = {}
    for process in everyone():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            # Gone meanwhile, or another user's, which this run cannot have started.
            continue
        if wanted in environment.split(b"\0"):
            roots[process.pid] = process
    below = {process.pid: process for process in descendants(roots)}
    return list((roots | below).values())


def kill_marked(mark: str) -> None:
    """Kills the run's processes until none is left, or 30 s are over."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while (victims := marked(mark)) and time.monotonic() < deadline:
        for process in victims:
            send(process, signal.SIGKILL)
        await_gone(victims, timeout_s=1.0)


class Watchdog:
    """The parent's handle on a running watchdog."""

    def __init__(self, mark: str, folder: Path) -> None:
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark, str(folder)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The watchdog's process id."""
        return self._process.pid

    def release(self) -> None:
        """Lets the watchdog do its sweep now, and waits for it; harmless when done twice."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=2 * _KILL_TIMEOUT_S)


def _await_end(parent: int) -> None:
    """Returns when the parent closes its end of our stdin or has died, with its pipe still held by a fork of it."""
    try:
        handle = os.pidfd_open(parent)
    except ProcessLookupError:
        return
    if os.getppid() == parent:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.register(0, select.POLLIN)
        poll.poll()
    os.close(handle)


def main(arguments: list[str]) -> None:
    """Waits for the end of the parent, then sweeps: arguments are its pid, the mark and the run's folder."""
    parent, mark, folder = arguments
    _await_end(int(parent))
    kill_marked(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
