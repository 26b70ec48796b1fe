"""What the authors of revisions use beside Alembic's ``op``.

A revision is a file in ``revisions/versions``. ``upgrade()`` changes what a database has once; ``upgrade_place(base,
table)`` changes one table of a place (``base`` is one of ``metadata.PLACES``; ``table`` carries the attempt's number) and
is called for each that the database has - and again for a place that a process of the older version makes afterwards.
So it must be repeatable: IF NOT EXISTS, IF EXISTS. Statements are rendered, never run by Alembic: nothing can be asked
of a database here. ``WAIVED = {"rule": "reason"}`` turns a rule of ``schemas.lint`` off for the one revision.
"""

from __future__ import annotations

from alembic import op


def on_postgres() -> bool:
    """Whether the statements are for Postgres (else for SQLite)."""
    return op.get_context().dialect.name == "postgresql"


def build_index(table: str, *columns: str, unique: bool = False) -> None:
    """The index ``<table>_<columns>``: on Postgres CONCURRENTLY, outside of any transaction, writers go on."""
    name = f"{table}_{'_'.join(columns)}"
    if not on_postgres():
        op.create_index(name, table, list(columns), unique=unique, if_not_exists=True)
        return
    with op.get_context().autocommit_block():
        op.create_index(name, table, list(columns), unique=unique, postgresql_concurrently=True, if_not_exists=True)


def drop_index(table: str, *columns: str) -> None:
    """The end of what ``build_index`` built."""
    name = f"{table}_{'_'.join(columns)}"
    if not on_postgres():
        op.drop_index(name, table_name=table, if_exists=True)
        return
    with op.get_context().autocommit_block():
        op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)
