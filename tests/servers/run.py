"""What all servers of one run share: its mark, ports, folder and end."""

import os
import uuid
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.servers import containers
from tests.servers.errors import NotControllable
from tests.servers.local import LocalServer
from tests.servers.ports import LOOPBACK, PortLease, lease_port
from tests.servers.postgres.install import make_open_folder
from tests.servers.watchdog import Watchdog

# JVMs that start on two cores compete with their own optimising compilers. For servers that are there for faults, not
# speed: rings, and nodes for one test alone.
QUICK_JVM = ("-XX:TieredStopAtLevel=1",)
_C = TypeVar("_C", bound=containers.Container)
_L = TypeVar("_L", bound=LocalServer)


def refuse_fresh(name: str, variable: str) -> None:
    """Raises NotControllable when the environment gives the server of which one more is asked for."""
    if variable in os.environ:
        raise NotControllable(f"a server of its own for {name} is not to be had while {variable} is set")


class Run:
    """Owns servers, and ends them with this process, however it ends."""

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex[:12]
        self._owner = os.getpid()
        self._cleanup = ExitStack()
        self._folder: Path | None = None
        self._folders = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills all servers of this run and removes their data; does nothing in a fork of the owner."""
        if os.getpid() != self._owner:
            return
        self._cleanup.close()
        self._folder = None
        self._forget()

    def _forget(self) -> None:
        """Servers that are asked for after the end are new ones."""

    def _own(self, server: _L) -> _L:
        self._cleanup.callback(server.kill9)
        return server

    def _started(self, server: _L) -> _L:
        self._own(server).start()
        return server

    def _contain(self, container: _C) -> _C:
        self._cleanup.callback(container.remove)
        container.start()
        return container

    def _lease(self, *hosts: str, preferred: int | None = None) -> PortLease:
        lease = lease_port(hosts or (LOOPBACK,), preferred=[] if preferred is None else [preferred])
        self._cleanup.callback(lease.release)
        return lease

    def _new_folder(self, name: str) -> Path:
        if self._folder is None:
            self._folder = make_open_folder("datalayer-servers-")
            # Released last, the watchdog sweeps up what a failed start left and removes the folder.
            self._cleanup.callback(Watchdog(self._run, self._folder).release)
        # Numbered, because a server that failed to start may be asked for again.
        self._folders += 1
        folder = self._folder / f"{self._folders:02}-{name}"
        folder.mkdir()
        return folder
