"""SQLite takes an index for (a, b) IN (SELECT ..) but scans the table for (a, b) IN (VALUES ..)."""

import sqlite3

import sqlalchemy as sa

from datalayer.stores.sql.statement import expanded

TABLE = sa.table("rows", sa.column("a"), sa.column("b"), sa.column("c"))
KEYS: sa.BindParameter[object] = sa.bindparam("keys", expanding=True)


def plan(sql: str, parameters: int) -> str:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE rows (a BLOB, b BLOB, c TEXT, PRIMARY KEY (a, b))")
        found = connection.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * parameters).fetchall()
    connection.close()
    return str(found[0][3])


def test_a_look_up_of_pairs_takes_the_primary_key() -> None:
    select = sa.select(TABLE.c.c).where(sa.tuple_(TABLE.c.a, TABLE.c.b).in_(KEYS))
    assert plan(expanded("sqlite", select, "keys", (None, None), 4), 8).startswith("SEARCH rows USING INDEX")


def test_a_delete_of_pairs_takes_the_primary_key() -> None:
    delete = sa.delete(TABLE).where(sa.tuple_(TABLE.c.a, TABLE.c.b).in_(KEYS))
    assert plan(expanded("sqlite", delete, "keys", (None, None), 4), 8).startswith("SEARCH rows USING")


def test_the_look_at_plans_can_fail() -> None:
    assert plan("SELECT c FROM rows WHERE (a, b) IN (VALUES (?, ?), (?, ?))", 4).startswith("SCAN rows")
