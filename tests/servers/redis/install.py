"""Redis's binary: found, else from apt."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.servers import packages
from tests.servers.errors import InstallFailed

BINARY_VARIABLE = "DATALAYER_REDIS"
# The cluster's bus gets a port of its own choice from here on.
_OLDEST = 7


def install_redis() -> Path:
    """The binary of a Redis 7 or newer.

    Raises:
        InstallFailed: not here, or too old, and apt cannot bring it; says what to install by hand.
    """
    return _find() or _fetch()


def _find() -> Path | None:
    if given := os.environ.get(BINARY_VARIABLE):
        if not Path(given).is_file():
            raise InstallFailed(f"{BINARY_VARIABLE}={given} is no file")
        return Path(given)
    found = shutil.which("redis-server")
    if found is None:
        return None
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v=(\d+)", said)
    if version is None or int(version.group(1)) < _OLDEST:
        raise InstallFailed(
            f"{found} is not Redis {_OLDEST} or newer; it said {said.strip()!r}; name another by {BINARY_VARIABLE}"
        )
    return Path(found)


def _fetch() -> Path:
    packages.mask_service("redis-server")
    packages.apt_install(("redis-server",), reason="Redis is missing")
    found = _find()
    if found is None:
        raise InstallFailed("apt-get install redis-server brought no binary to PATH")
    return found
