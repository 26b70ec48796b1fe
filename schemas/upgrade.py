"""Bringing a SQL database's schema up to date with Alembic, for people who run schema changes by hand or by a job.

The library itself does not need Alembic: a store compares the revision in ``datalayer_schema`` with the newest one it
knows, and makes a missing schema when it is told to.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from datalayer.schemas.metadata import SCHEMA_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

_REVISIONS: Final = Path(__file__).parent / "revisions"
_DRIVERS: Final = {"postgresql": "postgresql+psycopg"}


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at a ``sqlite:///`` or ``postgresql://`` URL to a revision, in one transaction.

    Idempotent; tables that exist already are left as they are. Raises SQLAlchemy's errors: this is a tool for
    operators, not a path of the library.
    """
    config = Config()
    config.set_main_option("script_location", str(_REVISIONS).replace("%", "%%"))
    with _connected(url) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def current(url: str) -> str | None:
    """The revision of the database's schema; None when it has none."""
    with _connected(url) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": SCHEMA_TABLE})
        return context.get_current_revision()


@contextmanager
def _connected(url: str) -> Iterator[sa.Connection]:
    parsed = sa.engine.make_url(url)
    engine = sa.create_engine(parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername)))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()
