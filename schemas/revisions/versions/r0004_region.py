"""The home region of a user."""

import sqlalchemy as sa
from alembic import op

revision = "0004_pre"
down_revision = "0003_pre"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing but the places."""


def upgrade_place(base: str, table: str) -> None:
    """A column without a default: the catalogue alone changes, no row is touched."""
    if base == "users":
        op.add_column(table, sa.Column("region", sa.Text), if_not_exists=True)
