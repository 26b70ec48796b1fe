"""The revisions of the SQL schema lead to the tables that the stores expect."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from datalayer.clock import SystemClock
from datalayer.errors import SchemaBehind
from datalayer.schemas import metadata
from datalayer.schemas.upgrade import current, upgrade
from datalayer.stores.sql.statement import create_table
from datalayer.stores.sqlite.backend import SqliteBackend

VERSIONS = Path(metadata.__file__).parent / "revisions" / "versions"


def shape(path: Path) -> set[tuple[str, ...]]:
    """Tables, columns, types, defaults and keys of a file."""
    with closing(sqlite3.connect(path)) as file:
        tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {
            (table, *map(str, column)) for table in tables for column in file.execute(f"PRAGMA table_info({table})")
        }
        return columns | {(f"index {row[0]}",) for row in file.execute("SELECT name FROM sqlite_master")}


async def test_alembic_and_the_backend_make_the_same_schema(tmp_path: Path) -> None:
    by_alembic, by_backend = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    url = f"sqlite:///{by_alembic}"
    assert current(url) is None
    upgrade(url)
    upgrade(url)
    assert current(url) == metadata.REVISIONS[-1]
    made = SqliteBackend("b", by_backend, clock=SystemClock())
    await made.ensure_schema(create=True)
    await made.close()
    assert current(f"sqlite:///{by_backend}") == metadata.REVISIONS[-1]
    assert shape(by_alembic) == shape(by_backend)
    upgrade(f"sqlite:///{by_backend}")
    opened = SqliteBackend("a", by_alembic, clock=SystemClock())
    await opened.ensure_schema(create=False)
    await opened.close()


async def test_a_schema_of_an_older_revision_is_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.sqlite"
    upgrade(f"sqlite:///{path}")
    monkeypatch.setattr("datalayer.stores.sql.meta.REVISIONS", (*metadata.REVISIONS, "9999"))
    backend = SqliteBackend("a", path, clock=SystemClock())
    with pytest.raises(SchemaBehind, match="9999"):
        await backend.ensure_schema(create=True)
    await backend.close()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_first_revision_is_what_the_metadata_says_until_a_second_one_changes_it(dialect: str) -> None:
    assert metadata.REVISIONS == ("0001",), "freeze the metadata of the first revision in this test"
    tables = (*metadata.base_tables(), *(metadata.sqlite_tables() if dialect == "sqlite" else ()))
    ddl = [text for table in tables for text in create_table("sqlite" if dialect == "sqlite" else "postgresql", table)]
    recorded = (VERSIONS / f"r0001_{dialect}.sql").read_text().split(";\n")
    assert [" ".join(one.split()) for one in recorded if one.strip()] == [" ".join(one.split()) for one in ddl]


def test_each_revision_has_its_file() -> None:
    files = {path.name[1:5] for path in VERSIONS.glob("r[0-9]*.py")}
    assert files == set(metadata.REVISIONS)
