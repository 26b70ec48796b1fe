"""The suite of stores of media in memory, in a folder, and on a real S3 server."""

import itertools
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from datalayer.clock import SystemClock
from datalayer.settings import BackendUrl
from datalayer.stores.base import Backend
from datalayer.stores.filesystem.backend import FilesystemBackend
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.stores.s3.backend import create_backend
from datalayer.testing.contract import ObjectsFixture, ObjectsSuite
from tests.servers import Servers

_ATTEMPTS = itertools.count(1)


class TestMemory(ObjectsSuite):
    @pytest.fixture
    async def fixture(self, seed: int) -> AsyncIterator[ObjectsFixture]:
        server = MemoryServer("memory", SystemClock())

        async def connect() -> Backend:
            return MemoryBackend(server)

        async with ObjectsFixture(connect, _ATTEMPTS, seed) as fixture:
            yield fixture


class TestFilesystem(ObjectsSuite):
    @pytest.fixture
    async def fixture(self, seed: int, memory_path: Path) -> AsyncIterator[ObjectsFixture]:
        folder = Path(tempfile.mkdtemp(dir=memory_path)) / "media"

        async def connect() -> Backend:
            backend = FilesystemBackend("files", folder, clock=SystemClock())
            await backend.open()
            return backend

        async with ObjectsFixture(connect, _ATTEMPTS, seed) as fixture:
            yield fixture


@pytest.mark.servers
class TestS3(ObjectsSuite):
    @pytest.fixture
    async def fixture(self, seed: int, servers: Servers) -> AsyncIterator[ObjectsFixture]:
        url = BackendUrl.parse(servers.s3().create_bucket("contract"))

        async def connect() -> Backend:
            backend = create_backend("s3", url, pool_max=8, clock=SystemClock())
            await backend.open()
            return backend

        async with ObjectsFixture(connect, _ATTEMPTS, seed) as fixture:
            yield fixture
