"""Where downloads are kept: outside the checkout, complete or absent, safe for two installers at once."""

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.errors import InstallFailed

_LOCK_TIMEOUT_S = 1200.0
_POLL_S = 0.1


def cache_dir() -> Path:
    """$DATALAYER_SERVERS_CACHE, else ~/.cache/datalayer-servers; made when absent."""
    given = os.environ.get("DATALAYER_SERVERS_CACHE")
    folder = Path(given).absolute() if given else Path.home() / ".cache" / "datalayer-servers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(*parts: bytes) -> str:
    """A short name for content, so that a changed recipe is installed anew."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Holds the cache's lock of that name; other processes wait.

    Raises:
        InstallFailed: another process kept the lock for 20 minutes.
    """
    path = cache_dir() / f"{name}.lock"
    # Opened for appending: the file is never removed, so all installers lock the same inode.
    with path.open("a") as lock:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InstallFailed(f"another process has held {path} for {_LOCK_TIMEOUT_S:.0f} s") from None
                time.sleep(_POLL_S)
        yield


def installed(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder of that name, built once.

    `build` fills an empty folder which is then renamed into place, so a folder that is there is complete.
    After a crash in the middle the next installer clears the leftovers and begins again.
    """
    folder = cache_dir() / name
    if folder.is_dir():
        return folder
    with exclusive(name):
        if folder.is_dir():
            return folder
        for leftover in cache_dir().glob(f"{name}.partial-*"):
            shutil.rmtree(leftover)
        partial = cache_dir() / f"{name}.partial-{uuid.uuid4().hex[:8]}"
        partial.mkdir()
        try:
            build(partial)
            partial.rename(folder)
        finally:
            if partial.exists():
                shutil.rmtree(partial)
    return folder
