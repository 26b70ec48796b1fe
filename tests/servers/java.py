"""Java and jars, for the servers that are written in it."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.servers import cache, packages
from tests.servers.errors import InstallFailed, ServerError
from tests.servers.process import Command, clean_environment, run_tool

_JAVA = "17"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"
_MAVEN_TIMEOUT_S = 900.0
_COMPILE_TIMEOUT_S = 300.0


def install_java(*, reason: str, compiler: bool = False) -> Path:
    """The java command of a Java 17, with javac beside it if need be: found, else from apt.

    Raises:
        InstallFailed: none here, and apt cannot bring it; says what to install by hand.
    """
    found = find_java(compiler=compiler)
    if found is None:
        packages.apt_install((f"openjdk-{_JAVA}-{'jdk' if compiler else 'jre'}-headless",), reason=reason)
        found = find_java(compiler=compiler)
    if found is None:
        what = f"Java {_JAVA} with javac" if compiler else f"Java {_JAVA}"
        raise InstallFailed(f"apt brought no {what} to /usr/lib/jvm; set DATALAYER_SERVERS_JAVA_HOME")
    return found


def find_java(*, compiler: bool) -> Path | None:
    """The java command of a Java 17, with javac beside it if need be, where there is one."""
    for java in _candidates():
        if not java.exists() or (compiler and not java.resolve().with_name("javac").exists()):
            continue
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
        if re.search(rf'version "{_JAVA}\b', said):
            return java.resolve()
    return None


def classpath(lib: Path) -> str:
    """All jars of a folder, in a fixed order."""
    return ":".join(str(jar) for jar in sorted(lib.glob("*.jar")))


def installed_jars(product: str, pom: Path, *, needed: Sequence[str]) -> Path:
    """The cached folder of the jars that a pom names and those that they need; a changed pom is fetched anew.

    Raises:
        InstallFailed: no Maven, no way to Maven's repository, or a jar of `needed` is not among them.
    """
    key = cache.digest(pom.read_bytes())
    return cache.installed(f"{product}-{key}", lambda target: _fetch_jars(product, pom, needed, target)) / "lib"


def launcher_jar(product: str, source: Path, *, java: Path, lib: Path) -> Path:
    """A cached jar of one Java file that starts the product, compiled against its jars.

    Raises:
        InstallFailed: it does not compile.
    """
    key = cache.digest(source.read_bytes(), str(lib).encode())
    built = cache.installed(f"{product}-launcher-{key}", lambda target: _compile(source, java, lib, target))
    return built / "launcher.jar"


def _candidates() -> Iterator[Path]:
    for variable in ("DATALAYER_SERVERS_JAVA_HOME", "JAVA_HOME"):
        if home := os.environ.get(variable):
            yield Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield Path(found)
    yield from Path("/usr/lib/jvm").glob(f"*{_JAVA}*/bin/java")


def _fetch_jars(product: str, pom: Path, needed: Sequence[str], target: Path) -> None:
    if shutil.which("mvn") is None:
        packages.apt_install(("maven",), reason=f"Maven fetches the jars of {product} and is missing")
    lib = target / "lib"
    # Java asks the password file, not $HOME, where ~/.m2 is.
    maven = ("mvn", "-q", "-B", f"-Duser.home={Path.home()}", "-f", str(pom), _PLUGIN)
    command = Command(
        (*maven, "-DincludeScope=runtime", f"-DoutputDirectory={lib}"),
        folder=target,
        log=target / "maven.log",
        environment=clean_environment(HOME=str(Path.home())),
    )
    try:
        run_tool(command, timeout_s=_MAVEN_TIMEOUT_S)
    except ServerError as error:
        raise InstallFailed(f"the jars of {product} could not be fetched: {error}") from None
    missing = [name for name in needed if not (lib / name).exists()]
    if missing:
        raise InstallFailed(f"Maven ended well but brought no {' and no '.join(missing)} of {product}")


def _compile(source: Path, java: Path, lib: Path, target: Path) -> None:
    classes = target / "classes"
    compiled = (str(java.with_name("javac")), "-proc:none", "-cp", f"{lib}/*", "-d", str(classes), str(source))
    packed = (str(java.with_name("jar")), "--create", "--file", str(target / "launcher.jar"), "-C", str(classes), ".")
    for argv in (compiled, packed):
        command = Command(argv, folder=target, log=target / "build.log", environment=clean_environment())
        try:
            run_tool(command, timeout_s=_COMPILE_TIMEOUT_S)
        except ServerError as error:
            raise InstallFailed(f"{source.name} does not compile: {error}") from None
