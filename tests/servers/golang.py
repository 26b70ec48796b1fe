"""Go programs, built into the cache by the user's own Go."""

import logging
import os
import shutil
from pathlib import Path

from tests.servers import cache, packages
from tests.servers.errors import InstallFailed, ServerError
from tests.servers.process import Command, clean_environment, run_tool

# The oldest that fetches a newer one of itself when a program asks for it.
_WANTED = "Go 1.21 or newer"
_TIMEOUT_S = 1100.0
# Where Go's own archive puts it, and an ordinary PATH does not look.
_SYSTEM = Path("/usr/local/go/bin/go")
_logger = logging.getLogger(__name__)


def go_installed(module: str, version: str) -> Path:
    """The cached binary of a Go program; built once, which takes minutes where nothing was built before.

    Raises:
        InstallFailed: no Go, or it could not build the program; says what to install by hand.
    """
    name = module.rpartition("/")[2]
    key = f"{name}-{version.removeprefix('v')}"
    return cache.installed(key, lambda target: _build(f"{module}@{version}", target)) / name


def find_go() -> str | None:
    """The go command, where there is one."""
    return shutil.which("go") or (str(_SYSTEM) if _SYSTEM.exists() else None)


def _go_for(program: str) -> str:
    found = find_go()
    if found is None:
        packages.apt_install(("golang-go",), reason=f"{_WANTED} builds {program} and is missing")
        found = find_go()
    if found is None:
        raise InstallFailed(f"apt-get install golang-go brought no go to PATH; install {_WANTED} by hand")
    return found


def _build(program: str, target: Path) -> None:
    go = _go_for(program)
    _logger.info("building %s (minutes, once)", program)
    # Its own caches and proxies are the user's.
    kept = {
        name: value for name, value in os.environ.items() if name.startswith("GO") or name.lower().endswith("_proxy")
    }
    command = Command(
        (go, "install", program),
        folder=target,
        log=target / "go.log",
        environment=clean_environment(HOME=str(Path.home()), **kept, GOBIN=str(target), CGO_ENABLED="0"),
    )
    try:
        run_tool(command, timeout_s=_TIMEOUT_S)
    except ServerError as error:
        raise InstallFailed(f"{program} could not be built by {go}; it takes {_WANTED}: {error}") from None
