"""Postgres clusters: binaries, a template of the data folder, servers, replicas."""

from tests.servers.postgres.install import PostgresInstall, install_postgres
from tests.servers.postgres.replica import LocalReplica
from tests.servers.postgres.server import LocalPostgres

__all__ = ["LocalPostgres", "LocalReplica", "PostgresInstall", "install_postgres"]
