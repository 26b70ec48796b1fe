"""Postgres clusters: binaries, a template of the data folder, servers."""

from tests.servers.postgres.install import PostgresInstall, install_postgres
from tests.servers.postgres.server import LocalPostgres

__all__ = ["LocalPostgres", "PostgresInstall", "install_postgres"]
