"""One DynamoDB Local as a child process, or a service given by URL."""

import signal
from dataclasses import dataclass
from pathlib import Path

from tests.servers import java, web
from tests.servers.aws import Account, Service
from tests.servers.given import Given
from tests.servers.local import LocalServer
from tests.servers.ports import LOOPBACK, PortLease
from tests.servers.process import Command, ServerProcess, clean_environment
from tests.servers.watchdog import MARK

VERSION = "2.6.1"
FIRST_PREFIX = "datalayer"
_RESOURCES = Path(__file__).parent
_NEEDED = (f"DynamoDBLocal-{VERSION}.jar", "libsqlite4java-linux-amd64-1.0.392.so")
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class DynamoDBInstall:
    """A Java that DynamoDB Local runs on, its jars and its launcher."""

    java: Path
    lib: Path
    launcher: Path


def install_dynamodb() -> DynamoDBInstall:
    """DynamoDB Local ready to run: Java found or from apt, the jars from Maven's repository, the launcher compiled.

    Raises:
        InstallFailed: no Java 17 with javac, no Maven, or no way to Maven's repository.
    """
    command = java.install_java(reason=f"DynamoDB Local {VERSION} needs a JDK 17", compiler=True)
    product = f"dynamodb-{VERSION}"
    lib = java.installed_jars(product, _RESOURCES / "pom.xml", needed=_NEEDED)
    launcher = java.launcher_jar(product, _RESOURCES / "Launcher.java", java=command, lib=lib)
    return DynamoDBInstall(command, lib, launcher)


class _Prefixes(Service):
    """What is the same for a server of our own and a given one."""

    def url_of(self, prefix: str) -> str:
        """The URL of a backend whose tables begin with that prefix."""
        return self.account.url("dynamodb", prefix)


class LocalDynamoDB(_Prefixes, LocalServer):
    """A DynamoDB Local of our own, on a free port of 127.0.0.1; what it acknowledged survives kill9()."""

    def __init__(self, name: str, *, install: DynamoDBInstall, folder: Path, lease: PortLease, mark: str) -> None:
        super().__init__(name, lease.port)
        # It takes any keys of letters and digits.
        self.account = Account(f"http://{LOOPBACK}:{lease.port}", "datalayer", "secret", "local")
        self.url = self.url_of(FIRST_PREFIX)
        self._data = folder / "data"
        flags = ("-Xms32m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        places = (f"-Dsqlite4java.library.path={install.lib}", f"-Djava.io.tmpdir={folder}")
        # One database for all keys and regions, on the disk.
        options = ("-port", str(lease.port), "-dbPath", str(self._data), "-sharedDb", "-disableTelemetry")
        # The jars go by environment: dozens of paths would drown the command line in every process list.
        jars = f"{install.launcher}:{java.classpath(install.lib)}"
        self.process = ServerProcess(
            name,
            Command(
                (str(install.java), *flags, *places, "Launcher", *options),
                folder,
                folder / "dynamodb.log",
                clean_environment(HOME=str(folder), CLASSPATH=jars, **{MARK: mark}),
            ),
            ready=self._is_ready,
            listens=[(LOOPBACK, lease.port)],
            start_timeout_s=_START_TIMEOUT_S,
            stop_signal=signal.SIGTERM,
        )

    def start(self) -> None:
        """Starts over the same data and waits until it serves."""
        self._data.mkdir(exist_ok=True)
        self.process.start()

    def _is_ready(self, _pid: int) -> bool:
        # An unsigned request is refused by a server that serves.
        return web.status_of(self.host, self.port, "/") is not None


class GivenDynamoDB(_Prefixes, Given):
    """A service given by URL, which names its endpoint; the tables that tests make stay behind."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.account = Account.of(url)
