"""The tables of a search index in SQL, with what makes them quick to search, which each product has of its own.

They stand apart from ``metadata.PLACES``: an index is derived, so its tables are never altered. A new shape is a new
attempt, filled anew.

SQLite: FTS5 over the words, kept in step by triggers in the transaction of the row. Its rows are found by a number of
their own: an implicit rowid may change with VACUUM. (Deleting from an index that keeps no text of its own, without the
old text, needs SQLite 3.43.) The tokenizer ``ascii`` parts at everything in ASCII that is no letter or digit and leaves
all else together; with ``_`` that is exactly the spaces between our words.

Postgres: GIN over the words as lexemes. ``to_tsvector`` is not used: its parser cuts in its own way. Lexemes have no
positions (of which a word could have 255 only, up to the 16,383rd), so phrases are looked up in the text of what the
index finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from datalayer.schemas import metadata

if TYPE_CHECKING:
    import sqlalchemy as sa

    from datalayer.schemas.script import Dialect

WORDS_COLUMN: Final = {"search_messages": "body", "search_users": "names"}
_SQLITE: Final = {
    "search_messages": (
        "conversation_id BLOB NOT NULL, id BLOB NOT NULL, sender_id BLOB NOT NULL, body TEXT NOT NULL, "
        "deleted BOOLEAN NOT NULL, version BIGINT NOT NULL, UNIQUE (conversation_id, id)"
    ),
    "search_users": (
        "id BLOB NOT NULL UNIQUE, username TEXT NOT NULL, names TEXT NOT NULL, "
        "deleted BOOLEAN NOT NULL, version BIGINT NOT NULL"
    ),
}


def search_tables(attempt: int = 0) -> tuple[sa.Table, ...]:
    """The tables of a place."""
    return metadata.domain_tables("search", attempt)


def words_table(table: str) -> str:
    """The full-text index of a table in SQLite."""
    return f"{table}_words"


def lexemes(column: str) -> str:
    """What Postgres indexes of a column of words."""
    return f"array_to_tsvector(string_to_array({column}, ' '::text))"


def create_search(dialect: Dialect, attempt: int = 0, *, words: bool = True) -> list[str]:
    """DDL that makes a place where it is absent. ``words``: on Postgres, with the index of words."""
    made = []
    for table in search_tables(attempt):
        base = metadata.relation(table.name, 0).removesuffix(f"_{attempt}" if attempt else "")
        column = WORDS_COLUMN[base]
        if dialect == "sqlite":
            made += _in_sqlite(table.name, base, column)
            continue
        core = postgresql.dialect()  # type: ignore[no-untyped-call]
        made.append(str(CreateTable(table, if_not_exists=True).compile(dialect=core)).strip())
        if words:
            made.append(f"CREATE INDEX IF NOT EXISTS {table.name}_words ON {table.name} USING gin ({lexemes(column)})")
    return made


def drop_search(dialect: Dialect, attempt: int) -> list[str]:
    """DDL that drops a place where it exists."""
    names = [table.name for table in search_tables(attempt)]
    indexes = [words_table(name) for name in names] if dialect == "sqlite" else []
    return [f"DROP TABLE IF EXISTS {name}" for name in (*indexes, *names)]


def _in_sqlite(table: str, base: str, column: str) -> list[str]:
    index = words_table(table)
    take = f"INSERT INTO {index} ({index}, rowid, {column}) VALUES ('delete', old.doc, old.{column});"  # noqa: S608
    put = f"INSERT INTO {index} (rowid, {column}) VALUES (new.doc, new.{column});"  # noqa: S608
    options = f"content='{table}', content_rowid='doc', tokenize=\"ascii tokenchars '_'\", columnsize=0"
    events = {"insert": put, "update": f"{take} {put}", "delete": take}
    return [
        f"CREATE TABLE IF NOT EXISTS {table} (doc INTEGER PRIMARY KEY, {_SQLITE[base]})",
        f"CREATE VIRTUAL TABLE IF NOT EXISTS {index} USING fts5({column}, {options})",
        *(
            f"CREATE TRIGGER IF NOT EXISTS {table}_{event} AFTER {event.upper()} ON {table} BEGIN {action} END"
            for event, action in events.items()
        ),
    ]
