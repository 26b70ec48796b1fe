"""PgBouncer in front of a Postgres cluster."""

from tests.servers.pgbouncer.install import PgBouncerInstall, install_pgbouncer
from tests.servers.pgbouncer.server import GivenPgBouncer, LocalPgBouncer

__all__ = ["GivenPgBouncer", "LocalPgBouncer", "PgBouncerInstall", "install_pgbouncer"]
