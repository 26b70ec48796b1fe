"""Debian packages, where the machine is ours to install on."""

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.servers.cache import exclusive
from tests.servers.errors import InstallFailed, ServerError
from tests.servers.process import Command, clean_environment, run_tool

_TIMEOUT_S = 900.0
_UNITS = Path("/etc/systemd/system")
_logger = logging.getLogger(__name__)


def mask_service(name: str) -> None:
    """Keeps a Debian package from starting a service of its own when it is installed; harmless where it cannot."""
    mask = _UNITS / f"{name}.service"
    if can_apt() and mask.parent.is_dir() and not mask.is_symlink():
        mask.symlink_to("/dev/null")


def can_apt() -> bool:
    """Whether apt packages can be installed: root on a Debian-like system."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(packages: Sequence[str], *, reason: str) -> None:
    """Installs packages, one installer at a time.

    Raises:
        InstallFailed: not possible here, or apt failed; says what to install by hand.
    """
    by_hand = f"{reason}; install by hand: apt-get install {' '.join(packages)}"
    if not can_apt():
        raise InstallFailed(by_hand)
    _logger.info("installing %s (%s)", " ".join(packages), reason)
    with exclusive("apt"), tempfile.TemporaryDirectory(prefix="datalayer-apt-") as folder:
        for arguments in (("update",), ("install", "--no-install-recommends", *packages)):
            command = Command(
                ("apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300", *arguments),
                folder=Path(folder),
                log=Path(folder) / "apt.log",
                environment=clean_environment(DEBIAN_FRONTEND="noninteractive"),
            )
            try:
                run_tool(command, timeout_s=_TIMEOUT_S)
            except ServerError as error:
                raise InstallFailed(f"{by_hand}\n{error}") from None
