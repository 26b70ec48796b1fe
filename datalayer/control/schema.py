"""The tables of the control store, for both dialects, and the function that is the gate on Postgres.

They carry a prefix of their own because the control store may live in an application's database. ``VERSION`` rises
with every change of a table; a store of a newer version is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text

from datalayer.stores.sql.statement import create_table

if TYPE_CHECKING:
    from datalayer.stores.sql.database import Dialect

VERSION: Final = 1
PREFIX: Final = "datalayer_control"
CHANNEL: Final = f"{PREFIX}_news"
METADATA: Final = MetaData()


def _text(name: str, *, key: bool = False, null: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=null)


def _number(name: str, *, key: bool = False, null: bool = False) -> Column[int]:
    return Column(name, BigInteger, primary_key=key, nullable=null, autoincrement=False)


def _bytes(name: str, *, key: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, primary_key=key, nullable=False)


def _serial(name: str) -> Column[int]:
    # SQLite numbers rows by itself only in a column declared INTEGER.
    return Column(name, BigInteger().with_variant(Integer, "sqlite"), primary_key=True)


def _table(name: str, *columns: Column[Any] | Index, **options: Any) -> Table:
    return Table(f"{PREFIX}_{name}", METADATA, *columns, **options)


def _place(prefix: str, *, null: bool = False) -> tuple[Column[Any], Column[Any]]:
    return _text(f"{prefix}_backend", null=null), _number(f"{prefix}_attempt", null=null)


STATE: Final = _table("state", _number("id", key=True), _number("version"), _text("deployment"), _number("news"))
ROUTES: Final = _table(
    "routes",
    _text("domain", key=True),
    _number("epoch"),
    _text("phase"),
    *_place("source"),
    *_place("target", null=True),
    _number("attempt"),
    _number("canary_pct"),
    _number("floor"),
)
PROCESSES: Final = _table(
    "processes",
    _text("id", key=True),
    _text("host"),
    _number("pid"),
    _text("boot_id"),
    _text("name"),
    _text("epochs"),
    _number("seen_us"),
    _number("lease_us"),
)
LEASES: Final = _table("leases", _text("name", key=True), _number("token"), _text("holder"), _number("until_us"))
MIGRATIONS: Final = _table(
    "migrations",
    _text("id", key=True),
    _text("domain"),
    _number("attempt"),
    *_place("source"),
    *_place("target"),
    _text("phase"),
    _text("milestones"),
    _text("options"),
    _number("flips"),
    _number("paused"),
    _number("finished"),
    _number("started_us"),
    _number("updated_us"),
)
ATTEMPTS: Final = _table("attempts", _text("domain", key=True), _number("last"))
STEPS: Final = _table(
    "steps",
    _serial("seq"),
    _text("migration"),
    _text("action"),
    _text("state"),
    _text("detail"),
    _number("token"),
    _number("at_us"),
    sqlite_autoincrement=True,
)
RUNS: Final = _table("runs", _text("run", key=True))
CHUNKS: Final = _table(
    "chunks",
    _text("run", key=True),
    _number("number", key=True),
    _text("range"),
    _text("after", null=True),
    _number("rows"),
    _text("payload"),
    _number("done"),
    _number("token"),
    _text("holder"),
    _number("until_us"),
)
QUARANTINE: Final = _table(
    "quarantine",
    _text("migration", key=True),
    _text("kind", key=True),
    _bytes("key", key=True),
    _number("version"),
    _text("reason"),
    _number("at_us"),
)
DOCUMENTS: Final = _table("documents", _text("migration", key=True), _text("name", key=True), _text("value"))
AUDIT: Final = _table(
    "audit",
    _serial("seq"),
    _number("at_us"),
    _text("actor"),
    _text("action"),
    _text("detail"),
    sqlite_autoincrement=True,
)
GATES: Final = _table(
    "gates",
    _text("log", key=True),
    _number("installed"),
    _text("fence"),
    _number("flip"),
    _number("until_us"),
    _number("floor"),
)
# The hash of the routing key leads the primary key: one index spreads the replayers, and finds a routing key.
INTENTS: Final = _table(
    "intents",
    _text("log", key=True),
    _number("spread", key=True),
    _text("kind", key=True),
    _bytes("key", key=True),
    _bytes("routing"),
    _number("version"),
    _number("deleted"),
    _text("payload"),
)
Index(f"{PREFIX}_steps_migration", STEPS.c.migration, STEPS.c.seq)
Index(
    f"{PREFIX}_migrations_unfinished",
    MIGRATIONS.c.domain,
    unique=True,
    postgresql_where=MIGRATIONS.c.finished == 0,
    sqlite_where=MIGRATIONS.c.finished == 0,
)

ADMIT: Final = f"{PREFIX}_admit"
# One round trip, three statements. In READ COMMITTED the snapshot of a statement is older than a lock it waits for:
# so the lock is taken first, and the gate read by a second statement. ON CONFLICT locks the key and computes the
# version from its newest row.
# An advisory lock, not FOR SHARE of the gate's row: lockers that overlap on a row make a multixact of all of them.
# Measured on Postgres 15, 2,000 admissions: 9,113 multixact members with 8 writers, 23,066 with 40, and none this way,
# at the same speed. A gate stays in use for as long as the target rules with its reverse journal on; at 3,000 a second
# the 2^32 members there are would last one to four days.
GATE_LOCK: Final = f"{PREFIX}:"
"""Before the name of a log: the text whose hash is the key of its advisory lock."""
_ADMIT_FUNCTION: Final = f"""
CREATE OR REPLACE FUNCTION {ADMIT}(
    in_log text, in_spread bigint, in_kind text, in_key bytea, in_routing bytea, in_version bigint,
    in_deleted bigint, in_payload text, in_lead bigint, in_create boolean,
    OUT out_state text, OUT out_version bigint, OUT out_deleted bigint, OUT out_payload text)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    gate {GATES.name}%ROWTYPE;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the gate needs READ COMMITTED' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('{GATE_LOCK}' || in_log, 0));
    SELECT * INTO gate FROM {GATES.name} AS g WHERE g.log = in_log;
    IF NOT FOUND OR gate.installed = 0 THEN
        out_state := 'stale';
        RETURN;
    END IF;
    IF gate.fence = 'sealed' OR (gate.fence = 'lapsing'
        AND (extract(epoch from clock_timestamp()) * 1000000)::bigint < gate.until_us) THEN
        out_state := 'fenced';
        RETURN;
    END IF;
    INSERT INTO {INTENTS.name} AS i (log, spread, kind, key, routing, version, deleted, payload)
    VALUES (in_log, in_spread, in_kind, in_key, in_routing,
        CASE WHEN in_create THEN in_version ELSE greatest(in_version, gate.floor + 2 + in_lead) END,
        in_deleted, in_payload)
    ON CONFLICT (log, spread, kind, key) DO UPDATE
    SET version = greatest(excluded.version, i.version + 2 + CASE WHEN i.deleted = 1 THEN 0 ELSE in_lead END),
        deleted = excluded.deleted, payload = excluded.payload
    WHERE NOT in_create AND (i.deleted = 0 OR excluded.deleted = 1)
    RETURNING i.version INTO out_version;
    IF FOUND THEN
        out_state := 'admitted';
        RETURN;
    END IF;
    SELECT CASE WHEN in_create THEN 'exists' ELSE 'deleted' END, i.version, i.deleted, i.payload
    INTO out_state, out_version, out_deleted, out_payload FROM {INTENTS.name} AS i
    WHERE i.log = in_log AND i.spread = in_spread AND i.kind = in_kind AND i.key = in_key;
END
$$"""  # noqa: S608 - composed of this module's own names


def statements(dialect: Dialect) -> list[str]:
    """What makes the tables, each statement harmless where its object exists."""
    made = [ddl for table in METADATA.sorted_tables for ddl in create_table(dialect, table)]
    return [*made, _ADMIT_FUNCTION] if dialect == "postgresql" else made
