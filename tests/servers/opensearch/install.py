"""Java 17, OpenSearch's jars, the launcher, and an archive of their classes that makes starts faster."""

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.servers import cache, java
from tests.servers.errors import InstallFailed, ServerError
from tests.servers.ports import lease_port
from tests.servers.process import Command, clean_environment, run_tool

VERSION = "2.19.5"
RESOURCES = Path(__file__).parent
_ARCHIVE = "classes.jsa"
_ARCHIVE_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class OpenSearchInstall:
    """A Java that OpenSearch runs on, its jars and the archive of their classes."""

    java: Path
    classpath: str
    archive: Path | None = None

    def argv(self, folder: Path, heap: str, *options: str) -> list[str]:
        """The command of a node whose data, logs and configuration are in that folder."""
        cds = [f"-XX:SharedArchiveFile={self.archive}", "-Xshare:auto"] if self.archive else []
        return [
            str(self.java),
            f"@{RESOURCES / 'jvm.options'}",
            *cds,
            f"-Xms{heap}",
            f"-Xmx{heap}",
            f"-Djava.io.tmpdir={folder}",
            f"-Djna.tmpdir={folder}",
            f"-XX:ErrorFile={folder / 'hs_err.log'}",
            *options,
            "Launcher",
            str(folder),
            str(folder / "config"),
        ]

    def environment(self, folder: Path, **extra: str) -> dict[str, str]:
        """The jars go by environment: dozens of paths would drown the command line in every process list."""
        return clean_environment(HOME=str(folder), CLASSPATH=self.classpath, **extra)


def install_opensearch() -> OpenSearchInstall:
    """OpenSearch ready to run: Java found or from apt, the jars from Maven's repository, the launcher compiled.

    Raises:
        InstallFailed: no Java 17 with javac, no Maven, or no way to Maven's repository.
    """
    command = java.install_java(reason=f"OpenSearch {VERSION} needs a JDK 17", compiler=True)
    product = f"opensearch-{VERSION}"
    lib = java.installed_jars(product, RESOURCES / "pom.xml", needed=(f"opensearch-{VERSION}.jar",))
    launcher = java.launcher_jar(product, RESOURCES / "Launcher.java", java=command, lib=lib)
    install = OpenSearchInstall(command, f"{launcher}:{java.classpath(lib)}")
    said = subprocess.run([command, "-version"], capture_output=True, check=False).stderr
    key = cache.digest(said, install.classpath.encode())
    archive = cache.installed(f"{product}-archive-{key}", lambda target: _archive(install, target))
    return OpenSearchInstall(command, install.classpath, archive / _ARCHIVE)


def configure(folder: Path, *, http_port: int, transport_port: int) -> None:
    """Writes the configuration of a node into its folder."""
    config = folder / "config"
    config.mkdir(exist_ok=True)
    text = (RESOURCES / "opensearch.yml").read_text(encoding="utf-8")
    text = text.replace("@HTTP_PORT@", str(http_port)).replace("@TRANSPORT_PORT@", str(transport_port))
    (config / "opensearch.yml").write_text(text, encoding="utf-8")
    (config / "log4j2.properties").write_bytes((RESOURCES / "log4j2.properties").read_bytes())


def _archive(install: OpenSearchInstall, target: Path) -> None:
    """Starts a node once and ends it, which leaves the archive; half a minute."""
    leases = [lease_port(), lease_port()]
    try:
        with tempfile.TemporaryDirectory(prefix="datalayer-opensearch-") as name:
            folder = Path(name)
            configure(folder, http_port=leases[0].port, transport_port=leases[1].port)
            argv: Sequence[str] = [
                *install.argv(folder, "512m", f"-XX:ArchiveClassesAtExit={target / _ARCHIVE}"),
                "once",
            ]
            run_tool(
                Command(argv, folder, target / "archive.log", install.environment(folder)), timeout_s=_ARCHIVE_TIMEOUT_S
            )
    except ServerError as error:
        raise InstallFailed(f"a first OpenSearch node did not start: {error}") from None
    finally:
        for lease in leases:
            lease.release()
