"""Journal and fence of one place in SQLite, for one attempt of a migration.

Each step is one transaction, which begins by holding the coordinator's token. The write lock is the barrier: when a
step returns, every write that commits later has met its triggers and its state. ``triggers`` says what they do.

Not handled: a program that writes with ``PRAGMA writable_schema`` or into the file itself. VACUUM renumbers the
schema's rows and so counts as tampering: the engine then starts the copy again, which is safe and only slow.
"""

from __future__ import annotations

import hashlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from datalayer.clock import Deadline
from datalayer.errors import Fenced, MigrationError, StaleRoute
from datalayer.schemas.metadata import journal_tables
from datalayer.stores.base import FenceState, GuardState, Journal, Token
from datalayer.stores.sql.journal import TriggerJournal
from datalayer.stores.sql.meta import overtaken, raise_token_sql, token_values
from datalayer.stores.sql.statement import create_table, drop_table
from datalayer.stores.sqlite.triggers import NOW_US, fence_triggers, fenced_now, journal_triggers, prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datalayer.domains.record import Key, Record
    from datalayer.stores.sqlite.store import SqlitePlace

T = TypeVar("T")
_COLUMNS: Final = ("installed", "fence", "flip", "fingerprint", "place")
_STATE: Final = (
    "SELECT installed, fence, flip, fingerprint, place FROM datalayer_guard WHERE domain = ? AND attempt = ?"
)
_TRIGGERS: Final = "SELECT rowid, name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"


class SqliteJournal(TriggerJournal):
    """The shared journal, settled by one statement run for each key: SQLite takes no index for a list of triples."""

    def __init__(self, place: SqlitePlace, attempt: int) -> None:
        super().__init__(place, attempt)
        self._sqlite = place.sqlite
        journal = journal_tables(place.domain, attempt).journal.name
        self._settle = f"DELETE FROM {journal} WHERE kind = ? AND key = ? AND version = ?"  # noqa: S608 - our own words

    async def settle(self, seen: Sequence[Record]) -> None:
        if seen:
            items = [(record.kind, record.key, record.version) for record in seen]
            await self._sqlite.write(lambda connection: _many(connection, self._settle, items))


class SqliteGuard:
    """``Guard`` over a place of a SQLite database."""

    def __init__(self, place: SqlitePlace, attempt: int) -> None:
        self._place = place
        self._db = place.sqlite
        self._domain = place.domain
        self._attempt = attempt
        self._clock = place.product.clock
        self._tables = journal_tables(place.domain, attempt)
        self._key = (self._domain, attempt)
        self._token = raise_token_sql("sqlite")
        self.journal: Journal = SqliteJournal(place, attempt)

    async def install(self, token: Token, *, sealed: bool) -> None:
        def work(connection: sqlite3.Connection) -> None:
            self._hold(connection, token)
            state = self._row(connection)
            if state is not None and state["installed"]:
                if state["place"] != self._place.attempt:
                    raise MigrationError(f"attempt {self._attempt} of {self._domain} guards another place already")
                return
            self._drop_triggers(connection)
            for sql in (
                *fence_triggers(self._domain, self._place.attempt, self._attempt),
                *journal_triggers(self._domain, self._place.attempt, self._attempt),
            ):
                connection.execute(sql)
            # After the triggers: a trigger that is dropped and made again gets a higher row number than these.
            for table in self._tables.all:
                for ddl in create_table("sqlite", table):
                    connection.execute(ddl)
            fence = "sealed" if sealed else "open"
            values = (*self._key, self._place.attempt, 1, fence, 0, 0, self._fingerprint(connection))
            connection.execute("INSERT OR REPLACE INTO datalayer_guard VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

        await self._db.write(work)

    async def apply(self, records: Sequence[Record]) -> None:
        await self._place.apply_through(self._apply_all, records)

    async def _apply_all(self, records: Sequence[Record]) -> None:
        batches = self._place.batches(records)

        def work(connection: sqlite3.Connection) -> None:
            self._live(connection)
            connection.execute("INSERT INTO datalayer_pass VALUES (?, ?)", self._key)
            dead = self._hard_deleted(connection, records)
            for relation, rows in batches if not dead else self._place.batches(_newer(records, dead)):
                connection.executemany(relation.upsert, rows)
            connection.execute("DELETE FROM datalayer_pass WHERE domain = ? AND attempt = ?", self._key)

        try:
            await self._db.write(work)
        except Fenced as error:
            raise StaleRoute(f"{self._domain} is sealed here by another attempt") from error

    async def fence(self, token: Token, flip: int, lapse_s: float, lock_timeout_s: float) -> None:
        lapse_us = int(lapse_s * 1_000_000)

        def work(connection: sqlite3.Connection) -> None:
            self._hold(connection, token)
            state = self._row(connection)
            if state is None or not state["installed"] or flip < state["flip"]:
                raise MigrationError(f"there is no guard to fence for flip {flip}")
            if state["fence"] != "sealed":
                self._set(connection, f"fence = 'lapsing', flip = ?, lapse_at = {NOW_US} + ?", flip, lapse_us)

        await self._db.write(work, deadline=Deadline(self._clock, lock_timeout_s))

    async def seal(self, token: Token, flip: int) -> None:
        def work(connection: sqlite3.Connection) -> None:
            self._hold(connection, token)
            state = self._row(connection)
            if state is None or state["flip"] != flip or not self._fenced(connection):
                raise MigrationError(f"the fence of flip {flip} had lapsed before it was sealed")
            self._set(connection, "fence = 'sealed'")

        await self._db.write(work)

    async def open(self, flip: int) -> None:
        def work(connection: sqlite3.Connection) -> None:
            state = self._row(connection)
            if state is None or not state["installed"]:
                raise MigrationError(f"attempt {self._attempt} of {self._domain} has no guard here: nothing to open")
            if flip >= state["flip"]:
                self._set(connection, "fence = 'open', flip = ?", flip)

        await self._db.write(work)

    async def state(self) -> GuardState:
        def work(connection: sqlite3.Connection) -> GuardState:
            state = self._row(connection)
            if state is None:
                return GuardState(installed=False, fence="open", flip=0)
            fence = cast("FenceState", state["fence"] if self._fenced(connection) else "open")
            installed = bool(state["installed"])
            tampered = installed and state["fingerprint"] != self._fingerprint(connection)
            return GuardState(installed, fence, state["flip"], tampered)

        return await self._db.read(_in_one_snapshot(work))

    async def repair(self, keys: Sequence[Key], ghosts: Sequence[Record], now_us: int) -> None:
        def work(connection: sqlite3.Connection) -> None:
            self._live(connection)
            if self._fenced(connection):
                raise Fenced
            for kind, key in keys:
                relation = self._place.relations[kind]
                lead = relation.kind.lead
                # The journal trigger enters it at the version it gets.
                connection.execute(relation.lift, (now_us, lead, *relation.position(key)))
            for ghost in ghosts:
                relation = self._place.relations[ghost.kind]
                if not connection.execute(relation.one, relation.position(ghost.key)).fetchall():
                    self._bury(connection, ghost)

        await self._db.write(work)

    async def remove(self, token: Token, *, keep_fence: bool) -> None:
        def work(connection: sqlite3.Connection) -> None:
            self._hold(connection, token)
            state = self._row(connection)
            if state is not None and state["place"] != self._place.attempt:
                return
            self._drop_triggers(connection, keep_fence=keep_fence)
            for table in self._tables.all:
                connection.execute(drop_table("sqlite", table))
            if keep_fence:
                self._set(connection, "installed = 0, fingerprint = ''")
            else:
                connection.execute("DELETE FROM datalayer_guard WHERE domain = ? AND attempt = ?", self._key)

        await self._db.write(work)

    # --- parts of a step, on the writer's thread -------------------------------------------------------------------

    def _hold(self, connection: sqlite3.Connection, token: Token) -> None:
        if not connection.execute(self._token, token_values(token)).fetchall():
            raise overtaken(token)

    def _row(self, connection: sqlite3.Connection) -> dict[str, Any] | None:
        rows = connection.execute(_STATE, self._key).fetchall()
        return dict(zip(_COLUMNS, rows[0], strict=True)) if rows else None

    def _live(self, connection: sqlite3.Connection) -> None:
        state = self._row(connection)
        if state is None or not state["installed"] or state["place"] != self._place.attempt:
            raise StaleRoute(f"attempt {self._attempt} of {self._domain} has ended here, or never began")

    def _set(self, connection: sqlite3.Connection, change: str, *values: int) -> None:
        sql = f"UPDATE datalayer_guard SET {change} WHERE domain = ? AND attempt = ?"  # noqa: S608 - our own words
        connection.execute(sql, (*values, *self._key))

    def _fenced(self, connection: sqlite3.Connection) -> bool:
        return bool(connection.execute(f"SELECT {fenced_now(self._domain, self._attempt)}").fetchone()[0])

    def _fingerprint(self, connection: sqlite3.Connection) -> str:
        """What the triggers are now: numbers, names, tables and text."""
        start = prefix(self._domain, self._attempt)
        mine = [row for row in connection.execute(_TRIGGERS).fetchall() if row[1].startswith(start)]
        return hashlib.sha256(repr(mine).encode()).hexdigest()

    def _drop_triggers(self, connection: sqlite3.Connection, *, keep_fence: bool = False) -> None:
        start = prefix(self._domain, self._attempt)
        for _, name, _, _ in connection.execute(_TRIGGERS).fetchall():
            if name.startswith(start) and not (keep_fence and name.startswith(f"{start}fence_")):
                connection.execute(f'DROP TRIGGER "{name}"')

    def _hard_deleted(self, connection: sqlite3.Connection, records: Sequence[Record]) -> dict[Key, int]:
        """The versions of the hard deletes of these keys."""
        tombs = self._tables.tombs.name
        if not connection.execute(f"SELECT 1 FROM {tombs} LIMIT 1").fetchall():  # noqa: S608 - as in _set
            return {}
        sql = f"SELECT version FROM {tombs} WHERE kind = ? AND key = ?"  # noqa: S608 - as in _set
        found = {record.ident: connection.execute(sql, record.ident).fetchone() for record in records}
        return {ident: row[0] for ident, row in found.items() if row is not None}

    def _bury(self, connection: sqlite3.Connection, ghost: Record) -> None:
        values = (ghost.kind, ghost.key, ghost.version)
        upsert = "ON CONFLICT (kind, key) DO UPDATE SET version = max(version, excluded.version)"
        tombs, journal = self._tables.tombs.name, self._tables.journal.name
        connection.execute(f"INSERT INTO {tombs} (kind, key, version) VALUES (?, ?, ?) {upsert}", values)  # noqa: S608
        entry = f"SELECT kind, key, ?, version FROM {tombs} WHERE kind = ? AND key = ?"  # noqa: S608 - as in _set
        sql = f"INSERT INTO {journal} (kind, key, routing, version) {entry} {upsert}"
        connection.execute(sql, (ghost.routing, ghost.kind, ghost.key))


def _newer(records: Sequence[Record], dead: dict[Key, int]) -> list[Record]:
    return [record for record in records if dead.get(record.ident, record.version - 1) < record.version]


def _in_one_snapshot(work: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
    def read(connection: sqlite3.Connection) -> T:
        connection.execute("BEGIN")
        try:
            return work(connection)
        finally:
            connection.execute("ROLLBACK")

    return read


def _many(connection: sqlite3.Connection, sql: str, items: Sequence[tuple[Any, ...]]) -> None:
    connection.executemany(sql, items)
