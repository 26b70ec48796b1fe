"""One Cassandra node as a child process."""

import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.servers.cassandra import probe
from tests.servers.cassandra.install import RESOURCES, CassandraInstall
from tests.servers.cassandra.keyspace import cassandra_url, create_keyspace
from tests.servers.errors import ServerError
from tests.servers.ports import LOOPBACK
from tests.servers.process import Command, ServerProcess, clean_environment
from tests.servers.watchdog import MARK

HEAP = "512M"
_START_TIMEOUT_S = 300.0
_NODETOOL_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class NodePlan:
    """Where a node listens and which part of the ring it owns."""

    name: str
    cluster: str
    host: str
    native_port: int
    storage_port: int
    jmx_port: int
    seeds: Sequence[str]
    tokens: Sequence[int]
    jvm_options: Sequence[str] = ()
    heap: str = HEAP


class LocalCassandra:
    """A Cassandra node of our own; alone, or one of a cluster."""

    controllable = True

    def __init__(self, plan: NodePlan, *, install: CassandraInstall, folder: Path, mark: str) -> None:
        self.name = plan.name
        self.host = plan.host
        self.port = plan.native_port
        self.url = cassandra_url([plan.host], plan.native_port, replication=1)
        self.folder = folder
        self._plan = plan
        self._install = install
        # The jars go by environment: a hundred paths would drown the command line in every process list.
        environment = clean_environment(HOME=str(folder), CLASSPATH=install.classpath, **{MARK: mark})
        self.process = ServerProcess(
            plan.name,
            Command(self._argv(), folder, folder / "stdout.log", environment),
            ready=self._is_ready,
            listens=[(plan.host, plan.native_port), (plan.host, plan.storage_port), (LOOPBACK, plan.jmx_port)],
            start_timeout_s=_START_TIMEOUT_S,
            stop_signal=signal.SIGTERM,
        )

    @property
    def pid(self) -> int:
        """The JVM's process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the JVM is alive."""
        return self.process.running

    def configure(self) -> None:
        """Writes the node's configuration."""
        plan = self._plan
        values = {
            "CLUSTER": plan.cluster,
            "TOKEN_COUNT": str(len(plan.tokens)),
            "TOKENS": ",".join(map(str, plan.tokens)),
            "SEEDS": ",".join(f"{host}:{plan.storage_port}" for host in plan.seeds),
            "HOST": plan.host,
            "NATIVE_PORT": str(plan.native_port),
            "STORAGE_PORT": str(plan.storage_port),
        }
        text = (RESOURCES / "cassandra.yaml").read_text(encoding="utf-8")
        for word, value in values.items():
            text = text.replace(f"@{word}@", value)
        (self.folder / "cassandra.yaml").write_text(text, encoding="utf-8")

    def start(self) -> None:
        """Starts over the same data and waits until CQL is served."""
        self.configure()
        self.process.start()

    def stop(self) -> None:
        """An orderly stop: the node says goodbye to the others and flushes."""
        self.process.stop()

    def kill9(self) -> None:
        """A crash."""
        self.process.kill9()

    def pause(self) -> None:
        """Stops the JVM in its tracks; connections hang."""
        self.process.pause()

    def resume(self) -> None:
        """Lets the JVM go on."""
        self.process.resume()

    def create_keyspace(self, name: str) -> str:
        """Makes a keyspace with one replica, when there is none of that name, and returns its URL."""
        return create_keyspace(self.url, name)

    def nodetool(self, *arguments: str) -> str:
        """Runs nodetool against the node (about two seconds) and returns what it printed.

        Raises:
            ServerError: nodetool failed; the message holds its output.
        """
        options = [line for line in _jvm_options() if line.startswith("--add") or "allowAttachSelf" in line]
        java = [str(self._install.java), "-Xmx64m", "-Xshare:auto", "-XX:TieredStopAtLevel=1", *options]
        java += [f"-Dlogback.configurationFile=file://{RESOURCES / 'logback-tools.xml'}"]
        java += [f"-Dcassandra.logdir={self.folder}", f"-Dcassandra.storagedir={self.folder / 'store'}"]
        java += [f"-Dcassandra.config=file://{self.folder / 'cassandra.yaml'}"]
        tool = ["org.apache.cassandra.tools.NodeTool", "-h", LOOPBACK, "-p", str(self._plan.jmx_port), *arguments]
        done = subprocess.run(
            [*java, *tool],
            cwd=self.folder,
            env=clean_environment(HOME=str(self.folder), CLASSPATH=self._install.classpath),
            capture_output=True,
            text=True,
            check=False,
            timeout=_NODETOOL_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise ServerError(f"nodetool {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _argv(self) -> list[str]:
        folder = self.folder
        return [
            str(self._install.java),
            f"@{RESOURCES / 'jvm.options'}",
            *self._plan.jvm_options,
            f"-Xms{self._plan.heap}",
            f"-Xmx{self._plan.heap}",
            f"-javaagent:{self._install.lib / 'jamm-0.4.0.jar'}",
            "-Dcassandra-foreground=yes",
            f"-Dcassandra.config=file://{folder / 'cassandra.yaml'}",
            f"-Dcassandra.storagedir={folder / 'store'}",
            f"-Dcassandra.logdir={folder}",
            f"-Dlogback.configurationFile=file://{RESOURCES / 'logback.xml'}",
            f"-Dcassandra.jmx.local.port={self._plan.jmx_port}",
            "-Dcassandra.skip_wait_for_gossip_to_settle=0",
            # How long a stopping node waits for the others to hear of it; two seconds by default.
            "-Dcassandra.shutdown_announce_in_ms=200",
            f"-Djava.io.tmpdir={folder}",
            f"-XX:HeapDumpPath={folder}",
            f"-XX:ErrorFile={folder / 'hs_err.log'}",
            "org.apache.cassandra.service.CassandraDaemon",
        ]

    def _is_ready(self, _pid: int) -> bool:
        return probe.serves(self.host, self.port)


def _jvm_options() -> list[str]:
    return (RESOURCES / "jvm.options").read_text(encoding="utf-8").splitlines()
