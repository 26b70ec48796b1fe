"""The text of journal and fence: tables, functions and triggers of one side of one attempt.

Per table of the domain there are, in the order in which they fire:

- ``datalayer_a_lapse_N``, ``datalayer_a_seal_N`` (BEFORE, each for statements and for rows): the fence. Statements, for
  an UPDATE that meets no row must be refused too; rows, for logical replication fires row triggers only.
- ``datalayer_b_lift_N`` (BEFORE row): gives a version to a write that brought none, or none above a tombstone.
- ``datalayer_c_note_N`` (AFTER row): the journal row, in the writer's own transaction.
- ``datalayer_d_truncate_N``: TRUNCATE is refused, for it fires no row trigger.

All are ENABLE ALWAYS: session_replication_role=replica bypasses ordinary ones. The attempt's own replayer is let past
by a setting that it makes with SET LOCAL.

The row triggers of a partitioned table are on its partitions by Postgres' own doing, also of later ones. Statement
triggers fire for the table alone that the statement names: each partition has its own.

The journal row is upserted first and the tombstones are read after it: two writers of one key meet at its journal row,
so the later one sees the tombstone that the earlier one left. A REPEATABLE READ writer gets 40001 from the upsert
only where a settle removed the very row between look-up and lock: then it is upserted once more. It rightly gets 40001
where a hard delete that its snapshot cannot see has left a tombstone: the probe insert asks the index, not the snapshot.
"""

# ruff: noqa: S608 - every name in these texts is made from constants and integers of this package

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from datalayer.domains.registry import DOMAINS
from datalayer.schemas import metadata
from datalayer.stores.postgres.faults import FENCED, TRUNCATE_REFUSED
from datalayer.stores.sql.statement import create_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FENCE_TABLE: Final = "datalayer_fence"
CREATE_FENCE_TABLE: Final = f"""
CREATE TABLE IF NOT EXISTS {FENCE_TABLE} (
  domain text NOT NULL,
  attempt integer NOT NULL,
  place integer NOT NULL,
  flip integer NOT NULL DEFAULT 0,
  fence text NOT NULL DEFAULT 'open',
  lapses_at timestamptz,
  ended boolean NOT NULL DEFAULT false,
  fingerprint text NOT NULL DEFAULT '',
  PRIMARY KEY (domain, attempt)
)"""
"""``fence``: open, lapsing or sealed. The refusing triggers consult it, so that opening is an UPDATE and no DDL."""

CLOCK: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_KEYS: Final = {
    "message": "uuid_send({row}.conversation_id) || uuid_send({row}.id)",
    "user": "uuid_send({row}.id)",
    "claim": "{row}.routing || (CASE {row}.kind WHEN 'username' THEN 'u' ELSE 'e' END::bytea"
    " || convert_to({row}.value, 'UTF8'))",
    "conversation": "uuid_send({row}.id)",
    "member": "uuid_send({row}.conversation_id) || uuid_send({row}.user_id)",
    "listed": "uuid_send({row}.user_id) || uuid_send({row}.conversation_id)",
    "media": "uuid_send({row}.owner_id) || uuid_send({row}.id)",
    "object": "uuid_send({row}.owner_id) || uuid_send({row}.content)",
    "session": "uuid_send({row}.user_id) || uuid_send({row}.id)",
    "session_cut": "uuid_send({row}.user_id)",
}
_PRIMARY: Final = {
    "message": ("conversation_id", "id"),
    "user": ("id",),
    "claim": ("kind", "value"),
    "conversation": ("id",),
    "member": ("conversation_id", "user_id"),
    "listed": ("user_id", "conversation_id"),
    "media": ("owner_id", "id"),
    "object": ("owner_id", "content"),
    "session": ("user_id", "id"),
    "session_cut": ("user_id",),
}
_BASES: Final = {
    "message": "messages",
    "user": "users",
    "claim": "claims",
    "conversation": "conversations",
    "member": "members",
    "listed": "listings",
    "media": "media",
    "object": "media_objects",
    "session": "sessions",
    "session_cut": "session_cuts",
}


def quoted(name: str) -> str:
    """An identifier as SQL text."""
    return '"' + name.replace('"', '""') + '"'


def key_of(kind: str, row: str) -> str:
    """SQL for the record's key of a row variable or alias."""
    return "(" + _KEYS[kind].format(row=row) + ")"


@dataclass(frozen=True, slots=True)
class GuardedTable:
    """One table under guard, and its functions."""

    kind: str
    name: str
    lift: str
    note: str
    primary: tuple[str, ...]
    lead: int


class GuardText:
    """Every statement of one guard. ``schema`` is where the tables are, ``parts`` are their partitions."""

    def __init__(
        self, domain: str, place: int, attempt: int, schema: str, parts: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.parts = parts or {}
        self.domain = domain
        self.attempt = attempt
        self.pass_value = f"{domain}_{attempt}"
        tables = metadata.journal_tables(domain, attempt)
        self.journal, self.tombs, self.foreign = (table.name for table in tables.all)
        self._journal_ddl = [ddl for table in tables.all for ddl in create_table("postgresql", table)]
        self._schema = quoted(schema)
        # Of this attempt alone: making them again would change the fingerprint of every other guard in the database.
        self.refuse_function = f"datalayer_refuse_{domain}_{attempt}"
        self.truncate_function = f"datalayer_truncate_{domain}_{attempt}"
        self.tables = tuple(
            GuardedTable(
                kind.name,
                metadata.relation(_BASES[kind.name], place),
                f"datalayer_lift_{domain}_{attempt}_{kind.name}",
                f"datalayer_note_{domain}_{attempt}_{kind.name}",
                _PRIMARY[kind.name],
                kind.lead,
            )
            for kind in DOMAINS[domain].kinds
        )
        self.lock_names = ", ".join(table.name for table in self.tables)
        self._passes_not = f"current_setting('datalayer.pass', true) IS DISTINCT FROM '{self.pass_value}'"

    def prepare(self) -> Iterator[str]:
        """Tables and functions: what needs no lock on the data."""
        yield from self._journal_ddl
        if self.refuse_function:
            yield self._function(self.refuse_function, _REFUSE)
        yield self._function(self.truncate_function, _REFUSE_TRUNCATE)
        for table in self.tables:
            yield self._function(table.lift, self._lift_body(table))
            yield self._function(table.note, self._note_body(table))

    def install(self) -> Iterator[str]:
        """The journal's triggers."""
        for table in self.tables:
            lift, note, truncate = self.journal_triggers()
            head = f"FOR EACH ROW WHEN ({self._passes_not}) EXECUTE FUNCTION"
            yield f"CREATE TRIGGER {lift} BEFORE INSERT OR UPDATE ON {table.name} {head} {table.lift}()"
            yield f"CREATE TRIGGER {note} AFTER INSERT OR UPDATE OR DELETE ON {table.name} {head} {table.note}()"
            for trigger in (lift, note):
                yield f"ALTER TABLE {table.name} ENABLE ALWAYS TRIGGER {trigger}"
            for name in (table.name, *self.parts.get(table.name, ())):
                yield (
                    f"CREATE TRIGGER {truncate} BEFORE TRUNCATE ON {name} "
                    f"FOR EACH STATEMENT EXECUTE FUNCTION {self.truncate_function}()"
                )
                yield f"ALTER TABLE ONLY {name} ENABLE ALWAYS TRIGGER {truncate}"

    def journal_triggers(self) -> tuple[str, str, str]:
        """Names of the triggers that ``install`` makes on each table."""
        return (
            f"datalayer_b_lift_{self.attempt}",
            f"datalayer_c_note_{self.attempt}",
            f"datalayer_d_truncate_{self.attempt}",
        )

    def fence_triggers(self, form: str) -> tuple[str, str]:
        """Names of the fence's triggers on each table; ``form`` is lapse or seal."""
        return (f"datalayer_a_{form}_{self.attempt}", f"datalayer_a_{form}_{self.attempt}_row")

    def refuse(self, form: str, flip: int, until: str | None) -> Iterator[str]:
        """The fence: ``until`` is a timestamptz literal made by the server, or None for a fence without expiry.

        Slot-limited fences will add a condition on the row's slot to the row trigger, and have no statement trigger.
        """
        lapse = "" if until is None else f"clock_timestamp() < '{until}'::timestamptz AND "
        call = f"WHEN ({lapse}{self._passes_not}) EXECUTE FUNCTION {self.refuse_function}"
        arguments = f"('{self.domain}', '{self.attempt}', '{flip:d}')"
        for table in self.tables:
            statement, row = self.fence_triggers(form)
            parts = self.parts.get(table.name, ())
            named = [(statement, "STATEMENT", name) for name in (table.name, *parts)]
            for trigger, level, name in (*named, (row, "ROW", table.name)):
                yield (
                    f"CREATE OR REPLACE TRIGGER {trigger} BEFORE INSERT OR UPDATE OR DELETE ON {name} "
                    f"FOR EACH {level} {call}{arguments}"
                )
                yield f"ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}"

    def switched_off(self, triggers: Sequence[str]) -> str:
        """DISABLE, never DROP: DROP TRIGGER waits behind pg_dump and blocks every reader meanwhile.

        Found by the server itself: another round trip would be one more that writers wait for.
        """
        names = ", ".join(f"'{name}'" for name in triggers)
        tables = ", ".join(f"to_regclass('{table.name}')" for table in self.tables)
        return f"""DO $datalayer$
DECLARE
  one record;
BEGIN
  FOR one IN SELECT tgrelid::regclass AS place, tgname FROM pg_trigger WHERE tgname IN ({names}) AND tgenabled <> 'D'
    AND (tgrelid IN ({tables}) OR tgrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent IN ({tables})))
  LOOP
    EXECUTE format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', one.place, one.tgname);
  END LOOP;
END $datalayer$"""

    def _function(self, name: str, body: str) -> str:
        return (
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            f"SET search_path = {self._schema}, pg_temp AS $datalayer${body}$datalayer$"
        )

    def _lift_body(self, table: GuardedTable) -> str:
        old, new = key_of(table.kind, "OLD"), key_of(table.kind, "NEW")
        # A user's tombstone that names a region is a pointer: the user lies elsewhere, and may come back.
        final = "NEW.deleted AND NEW.region IS NULL" if table.kind == "user" else "NEW.deleted"
        return f"""
DECLARE
  lowest bigint := 0;
  lead bigint := 0;
BEGIN
  IF TG_OP = 'UPDATE' THEN
    lowest := OLD.version;
    IF {final} AND NOT OLD.deleted THEN
      lead := {table.lead};
    END IF;
  END IF;
  IF TG_OP = 'INSERT' OR {old} IS DISTINCT FROM {new} THEN
    lowest := greatest(lowest, (SELECT t.version FROM {self.tombs} t WHERE t.kind = '{table.kind}' AND t.key = {new}));
  END IF;
  IF NEW.version IS NULL OR NEW.version <= lowest OR lead > 0 AND NEW.version < lowest + 2 + lead THEN
    NEW.version := greatest(lowest + 2, {CLOCK}) + lead;
  END IF;
  RETURN NEW;
END"""

    def _note_body(self, table: GuardedTable) -> str:
        old, new = key_of(table.kind, "OLD"), key_of(table.kind, "NEW")
        kind, tombs = f"'{table.kind}'", self.tombs
        primary = " AND ".join(f"t.{column} = NEW.{column}" for column in table.primary)
        return f"""
DECLARE
  snapshot boolean := current_setting('transaction_isolation') <> 'read committed';
  writer text := current_setting('application_name', true);
  changed bytea;
  stamp bigint;
BEGIN
  {self._foreign()}
  IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND {old} IS DISTINCT FROM {new} THEN
    changed := {old};
    INSERT INTO {tombs} AS t (kind, key, version)
      VALUES ({kind}, changed, greatest(OLD.version + 2, {CLOCK}) + {table.lead})
      ON CONFLICT (kind, key) DO UPDATE SET version = greatest(t.version, excluded.version)
      RETURNING version INTO stamp;
    {self._upsert(kind, gone=True)}
  END IF;
  IF TG_OP = 'DELETE' THEN
    RETURN NULL;
  END IF;
  changed := {new};
  stamp := NEW.version;
  {self._upsert(kind, gone=False)}
  IF TG_OP = 'INSERT' OR {old} IS DISTINCT FROM changed THEN
    IF snapshot THEN
      INSERT INTO {tombs} (kind, key, version) VALUES ({kind}, changed, 0) ON CONFLICT (kind, key) DO NOTHING;
      DELETE FROM {tombs} t WHERE t.kind = {kind} AND t.key = changed AND t.version = 0;
    END IF;
    SELECT t.version INTO stamp FROM {tombs} t WHERE t.kind = {kind} AND t.key = changed;
    IF NEW.version <= stamp THEN
      UPDATE {table.name} t SET version = greatest(stamp + 2, {CLOCK}) WHERE {primary};
    END IF;
  END IF;
  RETURN NULL;
END"""

    def _entry(self, kind: str, *, gone: bool) -> str:
        del gone  # a journal's replayer finds the tombstone
        return (
            f"INSERT INTO {self.journal} (kind, key, routing, version) VALUES ({kind}, changed, substring(changed FROM 1 FOR 16), stamp) "
            "ON CONFLICT (kind, key) DO UPDATE SET version = excluded.version;"
        )

    def _upsert(self, kind: str, *, gone: bool) -> str:
        insert = self._entry(kind, gone=gone)
        return f"""
    IF snapshot THEN
      BEGIN
        {insert}
      EXCEPTION WHEN serialization_failure THEN
        {insert}
      END;
    ELSE
      {insert}
    END IF;"""

    def _foreign(self) -> str:
        """Enter the program's name once. Never waits: whoever cannot have the lock leaves it to who has it."""
        return f"""
    IF writer NOT LIKE 'datalayer/%' AND NOT EXISTS (SELECT FROM {self.foreign} f WHERE f.name = writer)
      AND pg_try_advisory_xact_lock(hashtextextended('{self.foreign} ' || writer, 0)) THEN
      BEGIN
        INSERT INTO {self.foreign} (name) VALUES (writer);
      EXCEPTION WHEN unique_violation OR serialization_failure THEN
        NULL;  -- entered since this snapshot
      END;
    END IF;"""


_REFUSE: Final = f"""
BEGIN
  IF EXISTS (
    SELECT FROM {FENCE_TABLE} f
    WHERE f.domain = TG_ARGV[0] AND f.attempt = TG_ARGV[1]::integer AND f.flip >= TG_ARGV[2]::integer AND f.fence = 'open'
  ) THEN
    IF TG_OP = 'DELETE' THEN
      RETURN OLD;
    END IF;
    RETURN NEW;
  END IF;
  RAISE EXCEPTION USING ERRCODE = '{FENCED}',
    MESSAGE = 'writes of ' || TG_ARGV[0] || ' are held: the data is moving to another store',
    HINT = 'datalayer migrations status';
END"""
_REFUSE_TRUNCATE: Final = f"""
BEGIN
  RAISE EXCEPTION USING ERRCODE = '{TRUNCATE_REFUSED}',
    MESSAGE = 'TRUNCATE of ' || TG_TABLE_NAME || ' is refused while a migration journals it',
    HINT = 'delete the rows, or cancel the migration';
END"""
