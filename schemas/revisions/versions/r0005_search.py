"""The index of search."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from datalayer.schemas.steps import on_postgres

revision = "0005_pre"
down_revision = "0004_pre"
branch_labels = None
depends_on = None

UUID = postgresql.UUID()


def upgrade() -> None:
    """New tables only; their indexes are built while they are empty. A place of another attempt is its store's affair."""
    if not on_postgres():
        for table, columns, words in (
            (
                "search_messages",
                "conversation_id BLOB NOT NULL, id BLOB NOT NULL, sender_id BLOB NOT NULL, body",
                "body",
            ),
            ("search_users", "id BLOB NOT NULL UNIQUE, username TEXT NOT NULL, names", "names"),
        ):
            unique = ", UNIQUE (conversation_id, id)" if words == "body" else ""
            _in_sqlite(
                table, f"{columns} TEXT NOT NULL, deleted BOOLEAN NOT NULL, version BIGINT NOT NULL{unique}", words
            )
        return
    op.create_table(
        "search_messages",
        sa.Column("conversation_id", UUID, nullable=False),
        sa.Column("id", UUID, nullable=False),
        sa.Column("sender_id", UUID, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", "id"),
        if_not_exists=True,
    )
    op.create_table(
        "search_users",
        sa.Column("id", UUID, nullable=False),
        sa.Column("username", sa.Text(collation="C"), nullable=False),
        sa.Column("names", sa.Text, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    for table, column in (("search_messages", "body"), ("search_users", "names")):
        op.execute(
            f"CREATE INDEX IF NOT EXISTS {table}_words ON {table} "
            f"USING gin (array_to_tsvector(string_to_array({column}, ' '::text)))"
        )


def _in_sqlite(table: str, columns: str, words: str) -> None:
    index = f"{table}_words"
    take = f"INSERT INTO {index} ({index}, rowid, {words}) VALUES ('delete', old.doc, old.{words});"  # noqa: S608
    put = f"INSERT INTO {index} (rowid, {words}) VALUES (new.doc, new.{words});"  # noqa: S608
    op.execute(f"CREATE TABLE IF NOT EXISTS {table} (doc INTEGER PRIMARY KEY, {columns})")
    op.execute(
        f"CREATE VIRTUAL TABLE IF NOT EXISTS {index} USING fts5("
        f"{words}, content='{table}', content_rowid='doc', tokenize=\"ascii tokenchars '_'\", columnsize=0)"
    )
    for event, action in {"insert": put, "update": f"{take} {put}", "delete": take}.items():
        op.execute(f"CREATE TRIGGER IF NOT EXISTS {table}_{event} AFTER {event.upper()} ON {table} BEGIN {action} END")
