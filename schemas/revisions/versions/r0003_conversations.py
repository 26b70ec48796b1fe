"""Conversations, their members, and users' lists of conversations."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003_pre"
down_revision = "0002_pre"
branch_labels = None
depends_on = None

UUID = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")
JSON = sa.Text().with_variant(sa.JSON(), "postgresql")


def upgrade() -> None:
    """New tables only; their indexes are built while they are empty."""
    op.create_table(
        "conversations",
        sa.Column("id", UUID, nullable=False),
        sa.Column("title", sa.Text, nullable=False, server_default=""),
        sa.Column("kind", sa.Text, nullable=False, server_default="group"),
        _number("updated_at"),
        *_state(),
        sa.Column("attributes", JSON, nullable=False, server_default="{}"),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_table(
        "members",
        sa.Column("conversation_id", UUID, nullable=False),
        sa.Column("user_id", UUID, nullable=False),
        sa.Column("role", sa.Text, nullable=False, server_default="member"),
        _number("joined_at"),
        sa.Column("read_up_to", UUID),
        _number("listed"),
        *_state(),
        sa.PrimaryKeyConstraint("conversation_id", "user_id"),
        if_not_exists=True,
    )
    behind = sa.text("listed < version")
    op.create_index(
        "members_unlisted",
        "members",
        ["conversation_id", "user_id"],
        sqlite_where=behind,
        postgresql_where=behind,
        if_not_exists=True,
    )
    op.create_table(
        "listings",
        sa.Column("user_id", UUID, nullable=False),
        sa.Column("conversation_id", UUID, nullable=False),
        sa.Column("role", sa.Text, nullable=False, server_default="member"),
        _number("joined_at"),
        sa.Column("read_up_to", UUID),
        sa.Column("newest", UUID),
        _number("last_activity"),
        _number("shown"),
        *_state(),
        sa.PrimaryKeyConstraint("user_id", "conversation_id"),
        if_not_exists=True,
    )
    op.create_index("listings_recent", "listings", ["user_id", "last_activity", "conversation_id"], if_not_exists=True)


def _number(name: str) -> "sa.Column[Any]":
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _state() -> "tuple[sa.Column[Any], ...]":
    return (sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()), _number("version"))
