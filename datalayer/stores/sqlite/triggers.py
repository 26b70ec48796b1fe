"""The text of the guard's triggers in SQLite.

They are static: made once when the journal is put on, they read what is in force from ``datalayer_guard``. That is
exact here, and only here: writers follow one another, and a transaction whose snapshot is older than the last commit
cannot write (BUSY_SNAPSHOT), so no writer acts on a state that has changed.

- Fence: BEFORE INSERT, UPDATE, DELETE; refuses while sealed, or until a lapsing fence is over. A missing state row
  counts as fenced.
- Journal: AFTER triggers upsert the dirty key in the writer's transaction, with the version the row has in the end.
- A foreign program (any connection but the library's) does not know versions. BEFORE cannot change NEW, so an AFTER
  trigger lifts them; that would make RETURNING lie, which is why the library's own writes never need it. A hard
  delete leaves its tombstone, with FINAL_LEAD, in a table of its own.
- INSERT OR REPLACE removes a row without firing a DELETE trigger, unless recursive triggers are on. Only REPLACE
  fires AFTER INSERT for a key that BEFORE INSERT found taken; that pair is refused.
- A replayer passes by a row in ``datalayer_pass`` that it writes and deletes in its own transaction: nobody else ever
  sees it.

The library's connections are told from others by a function: they answer ``sqlite_source_id()`` with WRITER, every
other connection has SQLite's own. A function of a new name would break foreign programs ("no such function").
"""
# ruff: noqa: S608 - a trigger takes no parameters; every name here is made from a fixed word and a number

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from datalayer.domains.movement import INDEXED
from datalayer.domains.record import FINAL_LEAD
from datalayer.schemas.metadata import journal_tables, outbox_tables, relation
from datalayer.stores.sqlite.faults import FENCED, REPLACED

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITER: Final = "datalayer"
WRITER_FUNCTION: Final = "sqlite_source_id"
FOREIGN_NAME: Final = "a program other than datalayer"
"""What ``foreign_writers`` says: SQLite knows no names of programs."""

NOW_US: Final = "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"
"""Microseconds since 1970, to the millisecond: SQLite 3.40 has no unixepoch('subsec')."""
_FOREIGN: Final = f"{WRITER_FUNCTION}() <> '{WRITER}'"


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a kind's table spells its key, with {row} for NEW, OLD or the table."""

    kind: str
    table: str
    key: str
    routing: str
    match: str
    lead: int


def _shapes(domain: str, place: int) -> tuple[_Shape, ...]:
    if domain == "messages":
        # || of blobs is text of the same bytes; the cast makes it a blob again
        key = "CAST({row}.conversation_id || {row}.id AS BLOB)"
        match = "conversation_id = {row}.conversation_id AND id = {row}.id"
        return (_Shape("message", relation("messages", place), key, "{row}.conversation_id", match, FINAL_LEAD),)
    if domain == "listings":
        key = "CAST({row}.user_id || {row}.conversation_id AS BLOB)"
        match = "user_id = {row}.user_id AND conversation_id = {row}.conversation_id"
        return (_Shape("listed", relation(domain, place), key, "{row}.user_id", match, 0),)
    if domain == "catalogue":
        return (
            _pair("media", relation("media", place), ("owner_id", "id"), FINAL_LEAD),
            # the same content may come again
            _pair("object", relation("media_objects", place), ("owner_id", "content"), 0),
        )
    if domain == "conversations":
        key = "CAST({row}.conversation_id || {row}.user_id AS BLOB)"
        match = "conversation_id = {row}.conversation_id AND user_id = {row}.user_id"
        return (
            _Shape("conversation", relation(domain, place), "{row}.id", "{row}.id", "id = {row}.id", FINAL_LEAD),
            # a member may join again
            _Shape("member", relation("members", place), key, "{row}.conversation_id", match, 0),
        )
    if domain == "sessions":
        key = "CAST({row}.user_id || {row}.id AS BLOB)"
        match = "user_id = {row}.user_id AND id = {row}.id"
        user = "user_id = {row}.user_id"
        return (
            _Shape("session", relation(domain, place), key, "{row}.user_id", match, FINAL_LEAD),
            # the next cut replaces it
            _Shape("session_cut", relation("session_cuts", place), "{row}.user_id", "{row}.user_id", user, 0),
        )
    tag = "CASE {row}.kind WHEN 'username' THEN 'u' ELSE 'e' END"
    key = f"CAST({{row}}.routing || {tag} || {{row}}.value AS BLOB)"
    match = "kind = {row}.kind AND value = {row}.value"
    return (
        _Shape("user", relation("users", place), "{row}.id", "{row}.id", "id = {row}.id", FINAL_LEAD),
        # names are used again: a claim's tombstone has no lead
        _Shape("claim", relation("claims", place), key, "{row}.routing", match, 0),
    )


def _pair(kind: str, table: str, keys: tuple[str, str], lead: int) -> _Shape:
    """The shape of a table whose key is two ids."""
    first, second = keys
    # || of blobs is text of the same bytes; the cast makes it a blob again
    key = f"CAST({{row}}.{first} || {{row}}.{second} AS BLOB)"
    return _Shape(
        kind, table, key, f"{{row}}.{first}", f"{first} = {{row}}.{first} AND {second} = {{row}}.{second}", lead
    )


def prefix(domain: str, attempt: int) -> str:
    """What the names of this guard's triggers begin with."""
    return f"datalayer_{domain}_{attempt}_"


def fenced_now(domain: str, attempt: int) -> str:
    """The condition under which writes are refused now."""
    state = f"fence = 'sealed' OR (fence = 'lapsing' AND {NOW_US} < lapse_at)"
    return f"coalesce((SELECT {state} FROM datalayer_guard WHERE domain = '{domain}' AND attempt = {attempt}), 1)"


def fence_triggers(domain: str, place: int, attempt: int) -> list[str]:
    """The fence of a place."""
    refuse = f"BEGIN SELECT RAISE(ABORT, '{FENCED}'); END"
    when = f"WHEN NOT {_passing(domain, attempt)} AND {fenced_now(domain, attempt)}"
    return [
        f"CREATE TRIGGER {prefix(domain, attempt)}fence_{shape.kind}_{event.lower()} "
        f"BEFORE {event} ON {shape.table} {when} {refuse}"
        for shape in _shapes(domain, place)
        for event in ("INSERT", "UPDATE", "DELETE")
    ]


def journal_triggers(domain: str, place: int, attempt: int) -> list[str]:
    """The journal of a place."""
    when = f"NOT {_passing(domain, attempt)}"
    triggers = []
    for shape in _shapes(domain, place):
        for name, timing, condition, body in _Journal(domain, attempt, shape).triggers():
            head = f"CREATE TRIGGER {prefix(domain, attempt)}{name}_{shape.kind} {timing} ON {shape.table}"
            triggers.append(f"{head} WHEN {when}{condition} BEGIN {body} END")
    return triggers


def outbox_prefix(domain: str, place: int, index: int | str) -> str:
    """What the names of an outbox's triggers begin with."""
    return f"datalayer_outbox_{domain}_{place}_{index}_"


def outbox_triggers(domain: str, place: int, index: int) -> list[str]:
    """The outbox of a place: the journal's triggers, let past by every replayer."""
    when = "NOT EXISTS (SELECT 1 FROM datalayer_pass)"
    triggers = []
    for shape in _shapes(domain, place):
        if shape.kind in INDEXED[domain]:
            for name, timing, condition, body in _Outbox(domain, place, index, shape).triggers():
                head = f"CREATE TRIGGER {outbox_prefix(domain, place, index)}{name} {timing} ON {shape.table}"
                triggers.append(f"{head} WHEN {when}{condition} BEGIN {body} END")
    return triggers


def _passing(domain: str, attempt: int) -> str:
    return f"EXISTS (SELECT 1 FROM datalayer_pass WHERE domain = '{domain}' AND attempt = {attempt})"


class _Journal:
    """The statements of one table's journal triggers."""

    def __init__(self, domain: str, attempt: int, shape: _Shape) -> None:
        tables = journal_tables(domain, attempt)
        self._journal = tables.journal.name
        self._tombs = tables.tombs.name
        self._foreign = tables.foreign.name
        self._spell(shape)

    def _spell(self, shape: _Shape) -> None:
        self._shape = shape
        self._new = shape.key.format(row="NEW")
        self._old = shape.key.format(row="OLD")
        self._at_new = shape.match.format(row="NEW")

    def triggers(self) -> Iterator[tuple[str, str, str, str]]:
        """(name, timing, further condition, body) of each."""
        table = self._shape.table
        taken = f"EXISTS (SELECT 1 FROM {table} WHERE {self._at_new})"
        moved = f"{self._old} <> {self._new}"
        met = f"DELETE FROM datalayer_replaced; INSERT INTO datalayer_replaced SELECT {self._new} WHERE {taken};"
        yield "meet", "BEFORE INSERT", f" AND {_FOREIGN}", met
        yield "move", "BEFORE UPDATE", f" AND {moved} AND {taken}", f"SELECT RAISE(ABORT, '{REPLACED}');"
        yield "insert", "AFTER INSERT", "", self._inserted()
        yield "update", "AFTER UPDATE", "", self._updated(moved)
        yield "delete", "AFTER DELETE", "", self._gone("1") + self._named()

    def _inserted(self) -> str:
        replaced = f"SELECT RAISE(ABORT, '{REPLACED}') FROM datalayer_replaced WHERE key = {self._new} AND {_FOREIGN};"
        # A foreign program that knows nothing of versions leaves the default.
        low = f"NEW.version <= {self._tomb()} OR (NEW.version <= 0 AND {_FOREIGN})"
        lifted = f"max(NEW.version, {self._tomb()} + 2, {NOW_US})"
        return replaced + self._lift(lifted, low) + self._dirty() + self._named()

    def _updated(self, moved: str) -> str:
        died = "NEW.deleted AND NOT OLD.deleted"
        unraised = f"NEW.version <= OLD.version OR ({died} AND NEW.version < OLD.version + {self._shape.lead})"
        low = f"NEW.version <= {self._tomb()} OR (({unraised}) AND {_FOREIGN})"
        lead = f"(CASE WHEN {died} THEN {self._shape.lead} ELSE 0 END)"
        lifted = f"max(OLD.version + 2, {self._tomb()} + 2, {NOW_US}) + {lead}"
        return self._gone(moved) + self._lift(lifted, low) + self._dirty() + self._named()

    def _tomb(self) -> str:
        """The version of the hard delete of this key, or less than any version."""
        where = f"kind = '{self._shape.kind}' AND key = {self._new}"
        return f"coalesce((SELECT version FROM {self._tombs} WHERE {where}), -3)"

    def _lift(self, version: str, when: str) -> str:
        return f"UPDATE {self._shape.table} SET version = {version} WHERE {self._at_new} AND ({when});"

    def _dirty(self) -> str:
        """Enter the row's key at the version it has by now."""
        routing = self._shape.routing.format(row="NEW")
        row = f"SELECT '{self._shape.kind}', {self._new}, {routing}, version FROM {self._shape.table}"
        return f"INSERT INTO {self._journal} {row} WHERE {self._at_new} {self._upsert('excluded.version')};"

    def _gone(self, when: str) -> str:
        """Enter OLD's key as removed for good."""
        kind = self._shape.kind
        version = f"max(OLD.version + 2, {NOW_US}) + {self._shape.lead}"
        tomb = f"SELECT '{kind}', {self._old}, {version} WHERE {when}"
        at = f"kind = '{kind}' AND key = {self._old} AND ({when})"
        return f"INSERT INTO {self._tombs} {tomb} {self._upsert('max(version, excluded.version)')};" + self._entered(at)

    def _entered(self, at: str) -> str:
        """Enter what the tombstones hold there."""
        routing = self._shape.routing.format(row="OLD")
        entry = f"SELECT kind, key, {routing}, version FROM {self._tombs}"
        return f"INSERT INTO {self._journal} {entry} WHERE {at} {self._upsert('excluded.version')};"

    def _named(self) -> str:
        name = f"SELECT '{FOREIGN_NAME}', 1 WHERE {_FOREIGN}"
        return f"INSERT INTO {self._foreign} {name} ON CONFLICT (name) DO UPDATE SET writes = writes + 1;"

    @staticmethod
    def _upsert(version: str) -> str:
        return f"ON CONFLICT (kind, key) DO UPDATE SET version = {version}"


class _Outbox(_Journal):
    """As of a journal; an entry says whether its row is gone, and since when it waits."""

    def __init__(self, domain: str, place: int, index: int, shape: _Shape) -> None:
        self._journal, self._tombs = (table.name for table in outbox_tables(domain, place, index).all)
        self._spell(shape)

    def _dirty(self) -> str:
        row = f"SELECT '{self._shape.kind}', {self._new}, version, 0, {NOW_US} FROM {self._shape.table}"
        upsert = "ON CONFLICT (kind, key) DO UPDATE SET version = excluded.version, gone = 0"
        return f"INSERT INTO {self._journal} {row} WHERE {self._at_new} {upsert};"

    def _entered(self, at: str) -> str:
        entry = f"SELECT kind, key, version, 1, {NOW_US} FROM {self._tombs}"
        upsert = "ON CONFLICT (kind, key) DO UPDATE SET version = excluded.version, gone = 1"
        return f"INSERT INTO {self._journal} {entry} WHERE {at} {upsert};"

    def _named(self) -> str:
        return ""
