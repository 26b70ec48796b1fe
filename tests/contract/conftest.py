import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("datalayer.testing.contract")


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the machine has one: these tests prove behaviour, not durability, and a disk is slow."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test alone, the same in every run: a failure is found again."""
    return zlib.crc32(request.node.nodeid.encode())
