"""What the tests of schema upgrades on real servers share: old databases, test-only revisions, an upgrade of one backend."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datalayer.clock import SystemClock
from datalayer.migrators.options import Silent
from datalayer.migrators.schema_upgrade import Upgrade, UpgradeOptions
from datalayer.migrators.schemas import SchemaState
from datalayer.schemas import history
from datalayer.schemas.history import History
from datalayer.schemas.render import VERSIONS, Revisions
from datalayer.settings import BackendUrl, Settings, parse_settings
from datalayer.stores.postgres.backend import PostgresBackend, create_backend

CLOCK = SystemClock()
OWNER_INDEX = '''"""Claims are found by their owner."""
from datalayer.schemas.steps import build_index
revision, down_revision, branch_labels, depends_on = "0903_pre", "0007_pre", None, None
def upgrade():
    pass
def upgrade_place(base, table):
    if base == "claims":
        build_index(table, "owner")
'''
REGION = '''"""Users have a country, found by it; messages have a language."""
import sqlalchemy as sa
from alembic import op
from datalayer.schemas.steps import build_index
revision, down_revision, branch_labels, depends_on = "0903_pre", "0007_pre", None, None
def upgrade():
    op.create_table("countries", sa.Column("name", sa.Text, primary_key=True), if_not_exists=True)
def upgrade_place(base, table):
    if base == "users":
        op.add_column(table, sa.Column("country", sa.Text, nullable=False, server_default="eu"), if_not_exists=True)
        build_index(table, "country")
    if base == "messages":
        op.add_column(table, sa.Column("language", sa.Text), if_not_exists=True)
'''
NO_REGION = '''"""Users have no country, messages no language any more."""
from alembic import op
from datalayer.schemas.steps import drop_index
revision, down_revision, branch_labels, depends_on = "0904_post", None, ("post",), None
def upgrade():
    op.drop_table("countries", if_exists=True)
def upgrade_place(base, table):
    if base == "users":
        drop_index(table, "country")
        op.drop_column(table, "country", if_exists=True)
    if base == "messages":
        op.drop_column(table, "language", if_exists=True)
'''


def revision_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    """A folder with a further revision, which this version then knows."""
    folder = tmp_path / "versions"
    folder.mkdir()
    (folder / "r0903.py").write_text(text)
    monkeypatch.setattr(history, "THIS", History((*history.THIS.pre, "0903_pre"), (), history.THIS.needed))
    return folder


def make_old(url: str, *, stamped: bool = False) -> None:
    """The schema of the first version of the library, which wrote no revision into Postgres."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((VERSIONS / "r0001_postgresql.sql").read_bytes())
        if stamped:
            connection.execute("CREATE TABLE datalayer_schema (version_num VARCHAR(32) PRIMARY KEY)")
            connection.execute("INSERT INTO datalayer_schema VALUES ('0001')")


def one_backend(url: str) -> Settings:
    return parse_settings({"backends": {"main": {"url": url}}})


def ask(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Rows of one statement of a program that does not know the library."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


async def upgraded(settings: Settings, *locations: Path, **options: Any) -> list[SchemaState]:
    return await Upgrade(settings, CLOCK, Revisions(*locations), Silent(), UpgradeOptions(**options)).run()


async def upgraded_main(url: str, *locations: Path, **options: Any) -> SchemaState:
    return (await upgraded(one_backend(url), *locations, only="main", **options))[0]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresBackend]:
    backend = create_backend("main", BackendUrl.parse(url), pool_max=8, clock=CLOCK)
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()
