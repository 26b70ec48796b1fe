"""The catalogue of media: items, and the objects that hold their bytes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006_pre"
down_revision = "0005_pre"
branch_labels = None
depends_on = None

UUID = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")
JSON = sa.Text().with_variant(sa.JSON(), "postgresql")


def upgrade() -> None:
    """Add the two tables."""
    op.create_table(
        "media",
        sa.Column("owner_id", UUID, nullable=False),
        sa.Column("id", UUID, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="ready"),
        sa.Column("upload", UUID),
        sa.Column("sha256", sa.Text, nullable=False, server_default=""),
        sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("content_type", sa.Text, nullable=False, server_default=""),
        sa.Column("filename", sa.Text),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("attributes", JSON, nullable=False, server_default="{}"),
        sa.PrimaryKeyConstraint("owner_id", "id"),
        if_not_exists=True,
    )
    waiting = sa.text("upload IS NOT NULL")
    op.create_index("media_upload", "media", ["id"], sqlite_where=waiting, postgresql_where=waiting, if_not_exists=True)
    op.create_table(
        "media_objects",
        sa.Column("owner_id", UUID, nullable=False),
        sa.Column("content", UUID, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False, server_default=""),
        sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("content_type", sa.Text, nullable=False, server_default=""),
        sa.Column("name", UUID, nullable=False),
        sa.Column("held", sa.Text, nullable=False, server_default=""),
        sa.Column("refs", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("delete_after", sa.BigInteger),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("owner_id", "content"),
        if_not_exists=True,
    )
    due = sa.text("delete_after IS NOT NULL")
    op.create_index(
        "media_objects_due",
        "media_objects",
        ["delete_after"],
        sqlite_where=due,
        postgresql_where=due,
        if_not_exists=True,
    )
    op.create_index("media_objects_name", "media_objects", ["owner_id", "name"], if_not_exists=True)
