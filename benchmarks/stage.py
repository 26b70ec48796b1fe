"""The servers of a run and what lies on them: databases, a keyspace, the configuration that names them."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from datalayer.clock import SystemClock
from datalayer.layer import make_backends
from datalayer.settings import BackendUrl, Settings, parse_settings
from tests.servers import Servers
from tests.servers.errors import NotControllable
from tests.servers.postgres.install import install_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from datalayer.stores.base import Backend

POSTGRES_SETTINGS = {"shared_buffers": "256MB", "max_wal_size": "4GB", "autovacuum": "off"}
"""Checkpoints and vacuums fall between rounds or not at all, for both sides alike; fsync stays on."""
PEER_ATTEMPT = 9001
"""The number of the tables that peers write: no migration ever has it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a run takes place. Domains start on ``main``; ``copy`` is another database of the same server."""

    folder: Path
    main: str
    copy: str
    cassandra: str

    @property
    def settings(self) -> Settings:
        backends = {"main": self.main, "copy": self.copy, "cassandra": self.cassandra}
        return settings_of(backends, self.main)

    def config(self, target: str) -> Path:
        """A configuration file for child processes that move messages to ``target``; it names no other store."""
        path = self.folder / f"datalayer-{target}.toml"
        urls = {"copy": self.copy, "cassandra": self.cassandra}
        blocks = [f'[backends.{name}]\nurl = "{url}"\n' for name, url in (("main", self.main), (target, urls[target]))]
        blocks.append('[routes]\nusers = "main"\nmessages = "main"\n')
        blocks.append(f'[control]\nurl = "{self.main}"\n')
        path.write_text("\n".join(blocks))
        return path

    @property
    def cassandra_url(self) -> BackendUrl:
        url = self.settings.backends["cassandra"].url
        assert url is not None, "the stage's backends have a url each"
        return url

    def log(self, name: str) -> Path:
        """A file for what a child says."""
        return self.folder / f"{name}-{uuid4().hex[:6]}.log"


def settings_of(
    backends: dict[str, str], control: str, *, messages: str = "main", users: str = "main", **routes: str
) -> Settings:
    """Settings over these places; ``routes`` are those of other domains."""
    return parse_settings(
        {
            "backends": {name: {"url": url} for name, url in backends.items() if url},
            "routes": {"users": users, "messages": messages, **routes},
            "control": {"url": control},
        },
        directory=Path.cwd(),
    )


class Ground:
    """Servers started once for a whole run; a stage is a set of empty places on them."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self._servers = servers
        self._postgres: Any = None
        self.folder = folder

    def database(self) -> str:
        """The URL of an empty Postgres database."""
        if self._postgres is None:
            try:
                self._postgres = self._servers.fresh_postgres("bench", settings=POSTGRES_SETTINGS)
            except NotControllable:
                self._postgres = self._servers.postgres(1)[0]
        return str(self._postgres.create_database(_name()))

    def keyspace(self) -> str:
        """The URL of an empty keyspace."""
        return self._servers.cassandra().create_keyspace(_name())

    def opensearch(self, prefix: str) -> str:
        """The URL of a prefix of indexes that nobody else uses."""
        return self._servers.opensearch().url_of(prefix)

    def empty_folder(self) -> Path:
        """A folder that nobody else uses."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def sqlite(self) -> str:
        """The URL of a file that is not there yet, in a folder of its own."""
        return f"sqlite:///{self.empty_folder()}/main.sqlite"

    def redis(self) -> str:
        """The URL of an empty database of Redis."""
        return self._servers.redis().create_database()

    def bucket(self) -> str:
        """The URL of an empty bucket."""
        return self._servers.s3().create_bucket(_name().replace("_", "-"))

    async def stage(self, *, copy: bool = True, cassandra: bool = True) -> Stage:
        """Empty places with their schema."""
        folder = self.empty_folder()
        stage = Stage(
            folder,
            self.database(),
            self.database() if copy else "",
            self.keyspace() if cassandra else "",
        )
        await create_schemas(stage.settings)
        return stage


def _name() -> str:
    return f"bench_{uuid4().hex[:12]}"


@contextmanager
def ground() -> Iterator[Ground]:
    """Servers for one run, gone at its end; Cassandra with 1 GiB of heap and its optimising compiler."""
    with Servers(cassandra_heap="1G") as servers, tempfile.TemporaryDirectory(prefix="datalayer-bench-") as folder:
        yield Ground(servers, Path(folder))


async def create_schemas(settings: Settings) -> None:
    """What ``datalayer schema upgrade`` does, on every backend."""
    async with opened(settings) as backends:
        for backend in backends.values():
            await backend.ensure_schema(create=True)


@asynccontextmanager
async def opened(settings: Settings, *names: str) -> "AsyncIterator[dict[str, Backend]]":
    """The backends of these names (default: all), connected."""
    backends = make_backends(settings, SystemClock())
    chosen = {name: backend for name, backend in backends.items() if not names or name in names}
    try:
        for backend in chosen.values():
            await backend.open()
        yield chosen
    finally:
        for backend in chosen.values():
            await backend.close()


def psql() -> str:
    """The path of psql."""
    return shutil.which("psql") or str(install_postgres().bin / "psql")


def psql_run(url: str, sql: str) -> str:
    """Run SQL by psql; what it printed."""
    argv = [psql(), "--no-psqlrc", "-qtAX", "-v", "ON_ERROR_STOP=1", "-c", sql, url]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
