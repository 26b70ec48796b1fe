"""PgBouncer's binary: found, else from apt."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.servers import packages
from tests.servers.errors import InstallFailed
from tests.servers.postgres.install import unprivileged
from tests.servers.process import Account

BINARY_VARIABLE = "DATALAYER_PGBOUNCER"
# Debian keeps it where an ordinary user's PATH does not look.
_SYSTEM = Path("/usr/sbin/pgbouncer")


@dataclass(frozen=True, slots=True)
class PgBouncerInstall:
    """The binary, and whom it runs as: it refuses root as Postgres does."""

    binary: Path
    account: Account | None


def install_pgbouncer() -> PgBouncerInstall:
    """PgBouncer ready to run.

    Raises:
        InstallFailed: not here, and apt cannot bring it; says what to install by hand.
    """
    return PgBouncerInstall(_find() or _fetch(), unprivileged())


def _find() -> Path | None:
    if given := os.environ.get(BINARY_VARIABLE):
        if not Path(given).is_file():
            raise InstallFailed(f"{BINARY_VARIABLE}={given} is no file")
        return Path(given)
    if found := shutil.which("pgbouncer"):
        return Path(found)
    return _SYSTEM if _SYSTEM.exists() else None


def _fetch() -> Path:
    packages.mask_service("pgbouncer")
    packages.apt_install(("pgbouncer",), reason="PgBouncer is missing")
    found = _find()
    if found is None:
        raise InstallFailed("apt-get install pgbouncer brought no binary")
    return found
