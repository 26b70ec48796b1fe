"""datalayer_schema_log: what was done to the schema of this database, when, and with which text."""

import sqlalchemy as sa
from alembic import op

revision = "0002_pre"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The table that upgrades write to from now on; nothing reads it but ``schema status``."""
    op.create_table(
        "datalayer_schema_log",
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("took_ms", sa.BigInteger, nullable=False),
        sa.Column("library", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("revision", "target", "at_us"),
        if_not_exists=True,
    )
