"""One OpenSearch node as a child process, or given by URL."""

import http
import signal
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers import web
from tests.servers.given import Given
from tests.servers.local import LocalServer
from tests.servers.opensearch.install import OpenSearchInstall, configure
from tests.servers.ports import LOOPBACK, PortLease
from tests.servers.process import Command, ServerProcess
from tests.servers.watchdog import MARK

FIRST_PREFIX = "datalayer"
HEAP = "512m"
_START_TIMEOUT_S = 300.0
# 408 until every shard is assigned.
_READY = "/_cluster/health?wait_for_status=yellow&timeout=1s"


class _Prefixes:
    """What is the same for a node of our own and a given one."""

    url: str

    @property
    def endpoint(self) -> str:
        """Its address: http://host:port, or https."""
        parts = urlsplit(self.url)
        return f"{parts.scheme.removeprefix('opensearch+')}://{parts.netloc.rpartition('@')[2]}"

    def url_of(self, prefix: str) -> str:
        """The URL of a backend whose indexes begin with that prefix."""
        return urlsplit(self.url)._replace(path=f"/{prefix}").geturl()


class LocalOpenSearch(_Prefixes, LocalServer):
    """An OpenSearch node of our own, without security; what it acknowledged survives kill9()."""

    def __init__(
        self,
        name: str,
        *,
        install: OpenSearchInstall,
        folder: Path,
        leases: tuple[PortLease, PortLease],
        mark: str,
        jvm_options: Sequence[str] = (),
        heap: str = HEAP,
    ) -> None:
        super().__init__(name, leases[0].port)
        self.url = f"opensearch+http://{LOOPBACK}:{self.port}/{FIRST_PREFIX}"
        self._folder = folder
        self._ports = [lease.port for lease in leases]
        argv = install.argv(folder, heap, *jvm_options)
        self.process = ServerProcess(
            name,
            Command(argv, folder, folder / "stdout.log", install.environment(folder, **{MARK: mark})),
            ready=self._is_ready,
            listens=[(LOOPBACK, port) for port in self._ports],
            start_timeout_s=_START_TIMEOUT_S,
            stop_signal=signal.SIGTERM,
        )

    def start(self) -> None:
        """Starts over the same data and waits until every index can be read and written."""
        configure(self._folder, http_port=self._ports[0], transport_port=self._ports[1])
        self.process.start()

    def _is_ready(self, _pid: int) -> bool:
        return web.status_of(self.host, self.port, _READY) == http.HTTPStatus.OK


class GivenOpenSearch(_Prefixes, Given):
    """An OpenSearch given by URL; the indexes that tests make stay behind."""
