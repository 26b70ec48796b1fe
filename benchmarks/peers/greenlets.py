"""greenlet, which SQLAlchemy's asyncio side needs and nothing else here: kept in the cache of the test servers."""

import subprocess
import sys
from pathlib import Path

from tests.servers import cache
from tests.servers.errors import InstallFailed

GREENLET = "greenlet>=3,<4"


def install_greenlet() -> None:
    """Make greenlet importable, before sqlalchemy.ext.asyncio is imported."""

    def build(folder: Path) -> None:
        argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), GREENLET]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            raise InstallFailed(f"greenlet cannot be installed: {done.stderr[-1000:]}")

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache.installed(f"bench-{cache.digest(GREENLET.encode())}-greenlet-{version}", build)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
