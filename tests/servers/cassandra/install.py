"""Java 17 and Cassandra's jars."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers import cache, packages
from tests.servers.errors import InstallFailed, ServerError
from tests.servers.process import Command, clean_environment, run_tool

VERSION = "5.0.9"
RESOURCES = Path(__file__).parent
_JAVA = "17"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"
_MAVEN_TIMEOUT_S = 900.0
_NEEDED = (f"cassandra-all-{VERSION}.jar", "jamm-0.4.0.jar")


@dataclass(frozen=True, slots=True)
class CassandraInstall:
    """A Java that Cassandra runs on, and its jars."""

    java: Path
    lib: Path

    @property
    def classpath(self) -> str:
        """All jars, in a fixed order."""
        return ":".join(str(jar) for jar in sorted(self.lib.glob("*.jar")))


def install_cassandra() -> CassandraInstall:
    """Cassandra ready to run: Java found or from apt, the jars from Maven's repository.

    Raises:
        InstallFailed: no Java 17, no Maven, or no way to Maven's repository.
    """
    java = _find_java() or _fetch_java()
    key = cache.digest((RESOURCES / "pom.xml").read_bytes())
    return CassandraInstall(java, cache.installed(f"cassandra-{VERSION}-{key}", _fetch_jars) / "lib")


def _candidates() -> Iterator[Path]:
    for variable in ("DATALAYER_SERVERS_JAVA_HOME", "JAVA_HOME"):
        if home := os.environ.get(variable):
            yield Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield Path(found)
    yield from Path("/usr/lib/jvm").glob(f"*{_JAVA}*/bin/java")


def _find_java() -> Path | None:
    for java in _candidates():
        if not java.exists():
            continue
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
        if re.search(rf'version "{_JAVA}\b', said):
            return java.resolve()
    return None


def _fetch_java() -> Path:
    packages.apt_install((f"openjdk-{_JAVA}-jre-headless",), reason=f"Cassandra {VERSION} needs Java {_JAVA}")
    found = _find_java()
    if found is None:
        raise InstallFailed(f"apt brought no Java {_JAVA} to /usr/lib/jvm; set DATALAYER_SERVERS_JAVA_HOME")
    return found


def _fetch_jars(target: Path) -> None:
    if shutil.which("mvn") is None:
        packages.apt_install(("maven",), reason="Maven fetches Cassandra's jars and is missing")
    lib = target / "lib"
    command = Command(
        (
            "mvn",
            "-q",
            "-B",
            # Java asks the password file, not $HOME, where ~/.m2 is.
            f"-Duser.home={Path.home()}",
            "-f",
            str(RESOURCES / "pom.xml"),
            _PLUGIN,
            "-DincludeScope=runtime",
            f"-DoutputDirectory={lib}",
        ),
        folder=target,
        log=target / "maven.log",
        environment=clean_environment(HOME=str(Path.home())),
    )
    try:
        run_tool(command, timeout_s=_MAVEN_TIMEOUT_S)
    except ServerError as error:
        raise InstallFailed(f"Cassandra's jars could not be fetched: {error}") from None
    missing = [name for name in _NEEDED if not (lib / name).exists()]
    if missing:
        raise InstallFailed(f"Maven ended well but brought no {' and no '.join(missing)}")
