"""Sessions, and the cuts that revoke all of a user's at once."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007_pre"
down_revision = "0006_pre"
branch_labels = None
depends_on = None

UUID = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")
JSON = sa.Text().with_variant(sa.JSON(), "postgresql")


def upgrade() -> None:
    """New tables only; their indexes are built while they are empty."""
    op.create_table(
        "sessions",
        sa.Column("user_id", UUID, nullable=False),
        sa.Column("id", UUID, nullable=False),
        sa.Column("proof", UUID, nullable=False),
        *(_number(name) for name in ("created_at", "mark", "ends_at", "expires_at")),
        *_state(),
        sa.Column("attributes", JSON, nullable=False, server_default="{}"),
        sa.PrimaryKeyConstraint("user_id", "id"),
        if_not_exists=True,
    )
    op.create_table(
        "session_cuts",
        sa.Column("user_id", UUID, nullable=False),
        *(_number(name) for name in ("mark", "expires_at")),
        *_state(),
        sa.PrimaryKeyConstraint("user_id"),
        if_not_exists=True,
    )
    for table in ("sessions", "session_cuts"):
        op.create_index(f"{table}_expiry", table, ["expires_at"], if_not_exists=True)


def _number(name: str) -> "sa.Column[Any]":
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _state() -> "tuple[sa.Column[Any], ...]":
    return (sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()), _number("version"))
