"""The same servers as containers, where a Docker engine answers and testcontainers is installed.

Only the shared single servers come this way; rings and clusters with settings of their own are always started
locally. testcontainers removes the containers however the run ends (its "ryuk" container sees to that).
"""

import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from tests.servers.cassandra import probe
from tests.servers.cassandra.keyspace import cassandra_url, create_keyspace
from tests.servers.errors import StartFailed
from tests.servers.ports import LOOPBACK, PortLease
from tests.servers.postgres.install import PASSWORD, SUPERUSER, WANTED
from tests.servers.postgres.server import create_database

_CHOICE_VARIABLE = "DATALAYER_TEST_SERVERS"
_START_TIMEOUT_S = 300.0
_PING_TIMEOUT_S = 5
_POLL_S = 0.2


@cache
def engine_answers() -> bool:
    """Whether to use containers: an engine answers, testcontainers is there, and the environment does not say local."""
    if os.environ.get(_CHOICE_VARIABLE) == "local":
        return False
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return False
    if importlib.util.find_spec("testcontainers") is None:
        return False
    docker = importlib.import_module("docker")
    try:
        client = docker.from_env(timeout=_PING_TIMEOUT_S)
        client.ping()
        client.close()
    except docker.errors.DockerException:
        return False
    return True


class Container:
    """One container, its port bound to the same port of this machine across restarts."""

    controllable = True

    def __init__(self, image: str, port: int, lease: PortLease) -> None:
        core = importlib.import_module("testcontainers.core.container")
        self.host = LOOPBACK
        self.port = lease.port
        self.image = image
        self._container: Any = core.DockerContainer(image).with_bind_ports(port, lease.port)
        self._created = False
        self._paused = False

    def start(self) -> None:
        if self._created:
            self.resume()
            self._container.get_wrapped_container().start()
        else:
            self._container.start()
            self._created = True
        self._await(self._is_ready)

    def stop(self) -> None:
        self.resume()
        self._container.get_wrapped_container().stop()

    def kill9(self) -> None:
        # Docker answers 409 for one that does not run, which may be so here.
        wrapped = self._container.get_wrapped_container()
        wrapped.reload()
        if wrapped.status in {"running", "paused"}:
            self.resume()
            wrapped.kill("SIGKILL")
            wrapped.wait()

    def pause(self) -> None:
        if not self._paused:
            self._container.get_wrapped_container().pause()
            self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._container.get_wrapped_container().unpause()
            self._paused = False

    def remove(self) -> None:
        if self._created:
            self._container.stop()

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _await(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not ready():
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.image} did not answer on port {self.port} within {_START_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)


class DockerPostgres(Container):
    """A Postgres container."""

    def __init__(self, lease: PortLease) -> None:
        super().__init__(f"postgres:{WANTED}", 5432, lease)
        self._container.with_env("POSTGRES_PASSWORD", PASSWORD).with_command(
            "postgres -c wal_level=logical -c max_connections=200 -c max_prepared_transactions=64"
        )
        self.url = f"postgresql://{SUPERUSER}:{PASSWORD}@{LOOPBACK}:{lease.port}/postgres"

    def create_database(self, name: str) -> str:
        """Makes an empty database and returns its URL."""
        return create_database(self.url, name)

    def _is_ready(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=_PING_TIMEOUT_S).close()
        except psycopg.OperationalError:
            return False
        return True


class DockerCassandra(Container):
    """A Cassandra container."""

    def __init__(self, lease: PortLease) -> None:
        super().__init__("cassandra:5.0", 9042, lease)
        self._container.with_env("MAX_HEAP_SIZE", "512M").with_env("HEAP_NEWSIZE", "128M")
        self.url = cassandra_url([LOOPBACK], lease.port, replication=1)

    def create_keyspace(self, name: str) -> str:
        """Makes a keyspace, when there is none of that name, and returns its URL."""
        return create_keyspace(self.url, name)

    def _is_ready(self) -> bool:
        return probe.serves(self.host, self.port)
