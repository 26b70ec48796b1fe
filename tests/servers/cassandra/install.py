"""Java 17 and Cassandra's jars."""

from dataclasses import dataclass
from pathlib import Path

from tests.servers import java

VERSION = "5.0.9"
RESOURCES = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class CassandraInstall:
    """A Java that Cassandra runs on, and its jars."""

    java: Path
    lib: Path

    @property
    def classpath(self) -> str:
        """All jars, in a fixed order."""
        return java.classpath(self.lib)


def install_cassandra() -> CassandraInstall:
    """Cassandra ready to run: Java found or from apt, the jars from Maven's repository.

    Raises:
        InstallFailed: no Java 17, no Maven, or no way to Maven's repository.
    """
    command = java.install_java(reason=f"Cassandra {VERSION} needs Java 17")
    needed = (f"cassandra-all-{VERSION}.jar", "jamm-0.4.0.jar")
    return CassandraInstall(command, java.installed_jars(f"cassandra-{VERSION}", RESOURCES / "pom.xml", needed=needed))
