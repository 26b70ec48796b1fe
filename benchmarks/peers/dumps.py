"""Tools that copy the tables of one Postgres database to another: pg_dump | psql, and pgcopydb. Whole processes."""

import shlex
import shutil
from pathlib import Path

from benchmarks.processes import Ended, run
from benchmarks.stage import psql
from tests.servers import packages
from tests.servers.errors import InstallFailed
from tests.servers.postgres.install import install_postgres

TABLES = "--table 'users_*' --table 'claims_*'"


def dump_pipe(source: str, target: str, log: Path, *, schema: bool) -> Ended:
    """The tables of all slot groups; without ``schema`` into tables that are there, with it indexes are built after the rows are in."""
    dump = shutil.which("pg_dump") or str(install_postgres().bin / "pg_dump")
    only = "" if schema else "--data-only "
    out = f"{shlex.quote(dump)} --no-owner --no-privileges {only}{TABLES} {shlex.quote(source)}"
    into = f"{shlex.quote(psql())} --no-psqlrc -q -o /dev/null -v ON_ERROR_STOP=1 {shlex.quote(target)}"
    return run(["bash", "-o", "pipefail", "-c", f"{out} | {into}"], log)


def install_pgcopydb() -> str | None:
    """The path of pgcopydb; None where it cannot be had."""
    if shutil.which("pgcopydb") is None:
        try:
            packages.apt_install(("pgcopydb",), reason="pgcopydb is missing")
        except InstallFailed:
            return None
    return shutil.which("pgcopydb")


def pgcopydb(source: str, target: str, log: Path) -> Ended:
    """``pgcopydb clone`` with its defaults: four tables and four indexes at a time."""
    folder = log.with_suffix(".pgcopydb")
    argv = ["pgcopydb", "clone", "--source", source, "--target", target, "--dir", str(folder)]
    return run([*argv, "--no-owner", "--no-acl", "--skip-large-objects"], log)
