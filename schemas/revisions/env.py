"""Run by Alembic; the connection comes from ``datalayer.schemas.upgrade``."""

from alembic import context

from datalayer.schemas.metadata import SCHEMA_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=SCHEMA_TABLE)
with context.begin_transaction():
    context.run_migrations()
