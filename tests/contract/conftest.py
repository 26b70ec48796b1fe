import zlib

import pytest

pytest.register_assert_rewrite("datalayer.testing.contract")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test alone, the same in every run: a failure is found again."""
    return zlib.crc32(request.node.nodeid.encode())
