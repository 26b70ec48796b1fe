"""Free ports for servers, kept apart between test sessions that run at the same time."""

import fcntl
import os
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.servers.cache import cache_dir
from tests.servers.errors import PortBusy

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral range (32768 up), so that no outgoing connection takes the port of a server that
# is down between kill and restart.
_FIRST, _LAST = 15_000, 31_999
_ATTEMPTS = 500


@dataclass(slots=True)
class PortLease:
    """A port that no other session of this user will choose until it is released or its holder dies."""

    port: int
    _lock: int = field(repr=False)

    def release(self) -> None:
        """Gives the port back; harmless when done twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do it: connections in TIME_WAIT do not count, listeners do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def require_free(host: str, port: int, *, who: str) -> None:
    """Raises PortBusy, naming the address and the one who needs it, when somebody listens there."""
    if not is_free(host, port):
        raise PortBusy(f"{who} cannot start: {host}:{port} is taken by another process (see: ss -ltnp)")


def lease_port(hosts: Sequence[str] = (LOOPBACK,), *, preferred: Sequence[int] = ()) -> PortLease:
    """A port that is free on all hosts: the first possible of `preferred`, else any.

    Raises:
        PortBusy: none of 500 tried ports was free.
    """
    candidates = [*preferred, *(random.randint(_FIRST, _LAST) for _ in range(_ATTEMPTS))]
    for port in candidates:
        lock = _try_lock(port)
        if lock is None:
            continue
        if all(is_free(host, port) for host in hosts):
            return PortLease(port, lock)
        os.close(lock)
    raise PortBusy(f"no port between {_FIRST} and {_LAST} is free on {', '.join(hosts)}")


def _try_lock(port: int) -> int | None:
    folder = cache_dir() / "ports"
    folder.mkdir(exist_ok=True)
    lock = os.open(folder / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
