"""Journal and fence of one side of one attempt, as triggers (``triggers``) behind an exact barrier (``barrier``).

What is in force stands in one row of datalayer_fence per (domain, attempt). It is written in the transaction of each
step, together with a fingerprint of our triggers and functions, the server's system identifier and its timeline:
whoever changes them, and every failover, makes ``state`` say ``tampered``, and no step that builds on the journal runs.

A table may be partitioned, one level deep. Partitions are guarded like their parent and belong into the fingerprint with
their bounds: whoever attaches, detaches or drops one is seen as well. Our own changes of them (``partitions``) go through
``live_guards`` and write the fingerprint anew in their own transaction.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from datalayer.errors import Fenced, MigrationError, PreconditionFailed, StaleRoute
from datalayer.schemas.metadata import journal_tables
from datalayer.stores.base import FenceState, GuardState
from datalayer.stores.postgres.barrier import Barrier
from datalayer.stores.postgres.journal import PostgresJournal
from datalayer.stores.postgres.token import take_token
from datalayer.stores.postgres.triggers import CREATE_FENCE_TABLE, FENCE_TABLE, GuardText
from datalayer.stores.sql.journal import journal_statements
from datalayer.stores.sql.store import Undo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.domains.record import Key, Record
    from datalayer.stores.base import Journal, Token
    from datalayer.stores.postgres.database import PostgresDatabase, PostgresTransaction
    from datalayer.stores.sql.store import SqlStore

INSTALL_TIMEOUT_S: Final = 30.0
DROP_TIMEOUT_S: Final = 5.0
SEAL_TIMEOUT_S: Final = 10.0

_COLUMNS: Final = "place, flip, fence, ended, fingerprint, coalesce(lapses_at > clock_timestamp(), false)"
_ROW: Final = f"SELECT {_COLUMNS} FROM {FENCE_TABLE} WHERE domain = %s AND attempt = %s"  # noqa: S608
# Statements over the catalogue: what the guard consists of, and which life of the server made it.
_FINGERPRINT: Final = """
WITH named AS (SELECT to_regclass(n)::oid AS oid FROM unnest(%s::text[]) n),
  parts AS (SELECT i.inhrelid AS oid, i.inhdetachpending AS leaving FROM pg_inherits i JOIN named ON named.oid = i.inhparent)
SELECT coalesce((
    SELECT string_agg(concat_ws(':', c.relname, t.tgrelid, t.oid, t.xmin, t.tgenabled), ' ' ORDER BY t.oid)
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE (NOT t.tgisinternal OR t.tgparentid <> 0)
      AND (t.tgrelid IN (SELECT oid FROM named) OR t.tgrelid IN (SELECT oid FROM parts)) AND t.tgname ~ %s), '')
  || coalesce((
    SELECT ' ' || string_agg(concat_ws(':', c.oid, parts.leaving, pg_get_expr(c.relpartbound, c.oid)), ' ' ORDER BY c.oid)
    FROM parts JOIN pg_class c ON c.oid = parts.oid), '')
  || ' ' || coalesce((
    SELECT string_agg(concat_ws(':', p.oid, p.xmin), ' ' ORDER BY p.oid) FROM pg_proc p
    WHERE p.proname = ANY (%s::text[]) AND p.pronamespace = current_schema()::regnamespace), '')
  || ' ' || (SELECT system_identifier FROM pg_control_system())
  || ' ' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"""
_SOUND: Final = f"SELECT ({_FINGERPRINT}), {_COLUMNS} FROM {FENCE_TABLE} WHERE domain = %s AND attempt = %s"  # noqa: S608
"""The row, and what is there now."""
_SET: Final = f"UPDATE {FENCE_TABLE} SET fingerprint = ({_FINGERPRINT}), "  # noqa: S608
_PRESENT: Final = "SELECT n FROM unnest(%s::text[]) n WHERE to_regclass(n) IS NOT NULL"
_CROSSING_KEYS: Final = """
SELECT c.conname, c.conrelid::regclass::text, c.confrelid::regclass::text
FROM pg_constraint c
WHERE c.contype = 'f' AND c.conrelid <> c.confrelid
  AND (c.conrelid = ANY (%s::text[]::regclass[]::oid[])) <> (c.confrelid = ANY (%s::text[]::regclass[]::oid[]))
LIMIT 1"""
_UNGUARDABLE: Final = """
SELECT c.relname FROM pg_class c
WHERE c.oid = ANY (%s::text[]::regclass[]::oid[]) AND (c.relkind NOT IN ('r', 'p') OR c.relispartition
  OR c.relkind = 'r' AND c.relhassubclass
  OR EXISTS (SELECT FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid
    WHERE i.inhparent = c.oid AND (p.relkind <> 'r' OR p.relhassubclass OR i.inhdetachpending))) LIMIT 1"""
_PARTS: Final = """
SELECT current_schema()::text, c.relname::text, i.inhrelid::regclass::text FROM (SELECT 1) one
LEFT JOIN (pg_class c JOIN pg_inherits i ON i.inhparent = c.oid)
  ON c.oid = ANY (SELECT to_regclass(n)::oid FROM unnest(%s::text[]) n) ORDER BY i.inhrelid"""
"""The schema, and the partitions, if there are any."""
_LIVE: Final = (
    f"SELECT attempt FROM {FENCE_TABLE} WHERE domain = %s AND place = %s AND NOT ended ORDER BY attempt FOR UPDATE"  # noqa: S608
)
GUARD_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('datalayer_guard', 0))"
"""Had by whoever installs a guard, or changes the partitions under one."""


class _Row(NamedTuple):
    place: int
    flip: int
    fence: FenceState
    ended: bool
    fingerprint: str
    running: bool

    @property
    def now(self) -> FenceState:
        """What is in force: a lapsed fence is open."""
        return "open" if self.fence == "lapsing" and not self.running else self.fence


class PostgresGuard:
    """The Guard of a Postgres side."""

    def __init__(self, db: PostgresDatabase, store: SqlStore, attempt: int) -> None:
        self.journal: Journal = PostgresJournal(store, attempt)
        self._db = db
        self._store = store
        self._attempt = attempt
        self._key = (store.domain, attempt)
        self._tombs = journal_statements(store, attempt).tombs
        self._tables = tuple(relation.name for relation in store.relations.values())
        self._barrier = Barrier(db, self._tables)
        self._apply_lock = f"datalayer_apply_{store.domain}_{attempt}"
        """Shared by applies; whoever ends the attempt has it alone, so that none lands afterwards."""
        self._journal_tables = tuple(table.name for table in journal_tables(store.domain, attempt).all)
        self._leftovers = Barrier(db, self._journal_tables)

    # --- steps of a coordinator ------------------------------------------------------------------------------------

    async def install(self, token: Token, *, sealed: bool) -> None:
        async def step(tx: PostgresTransaction) -> None:
            await tx.run(GUARD_LOCK)
            await tx.run(CREATE_FENCE_TABLE)
            row = await self._row(tx, token)
            if row is not None and row.ended and row.place != self._store.attempt:
                # A slot group was here before and has come back, to other tables: its domain's guard comes with it.
                await self._drop_tables(tx)
                await tx.run(f"DELETE FROM {FENCE_TABLE} WHERE domain = %s AND attempt = %s", self._key)  # noqa: S608
            elif row is not None:
                self._check_sound(row, await self._fingerprint(tx))
                return
            await self._check_tables(tx)
            text = await self._text(tx)
            await tx.run_script(text.prepare())
            await self._barrier.lock(tx)
            if text.parts:
                await self._check_tables(tx)
                text = await self._text(tx)
            await tx.run_script([*text.install(), *(text.refuse("seal", 0, None) if sealed else ())])
            await tx.run(
                f"INSERT INTO {FENCE_TABLE} (domain, attempt, place, fence) VALUES (%s, %s, %s, %s)",  # noqa: S608
                (*self._key, self._store.attempt, "sealed" if sealed else "open"),
            )
            await self.remember(tx)

        await self._barrier.run(step, INSTALL_TIMEOUT_S)

    async def fence(self, token: Token, flip: int, lapse_s: float, lock_timeout_s: float) -> None:
        async def step(tx: PostgresTransaction) -> None:
            await self._row(tx, token)
            await self._barrier.lock(tx)
            row = await self._sound_row(tx)
            if flip < row.flip:
                raise MigrationError(f"flip {flip} is over: flip {row.flip} has fenced since")
            if row.fence == "sealed":
                return  # a seal is never weakened
            text = await self._text(tx)
            until = (await tx.run("SELECT (clock_timestamp() + make_interval(secs => %s))::text", (lapse_s,)))[0][0]
            # Not waited for on the disk: a server that crashes and forgets this fence has ended every writer, too, and
            # the seal of this flip will be refused.
            await tx.run_script(
                [
                    "SET LOCAL synchronous_commit = off",
                    *text.refuse("lapse", flip, until),
                    text.switched_off(text.fence_triggers("seal")),
                ]
            )
            await self._set(tx, flip, "lapsing", until)

        await self._barrier.run(step, lock_timeout_s)

    async def seal(self, token: Token, flip: int) -> None:
        """Every round trip counts: from the fence on everybody's writes wait for this."""

        async def step(tx: PostgresTransaction) -> None:
            await self._row(tx, token)
            await self._barrier.lock(tx)
            # compared under the lock: from here to the commit no writer can slip in, whatever the clock does
            row = await self._sound_row(tx)
            if row.flip == flip and row.fence == "sealed":
                return
            if row.flip != flip or row.now != "lapsing":
                raise MigrationError(f"the fence of flip {flip} had lapsed before it was sealed")
            text = await self._text(tx)
            await tx.run_script([*text.refuse("seal", flip, None), text.switched_off(text.fence_triggers("lapse"))])
            await self._set(tx, flip, "sealed", None)

        await self._barrier.run(step, SEAL_TIMEOUT_S)

    async def remove(self, token: Token, *, keep_fence: bool) -> None:
        """Two transactions: the mark that ends the attempt, with its triggers off; then its tables, when they can go.

        A reader of the journal's tables that does not end (pg_dump) keeps the tables, not the mark: Unavailable names
        it, everything else is done by then, and a repeat takes up here.
        """
        with suppress(StaleRoute):  # no guard was ever made in this database
            await self._barrier.run(lambda tx: self._end(tx, token, keep_fence=keep_fence), INSTALL_TIMEOUT_S)
            await self._leftovers.run(lambda tx: self._drop_journal(tx, token), DROP_TIMEOUT_S)

    async def _end(self, tx: PostgresTransaction, token: Token, *, keep_fence: bool) -> None:
        row = await self._row(tx, token)
        if row is None or row.place != self._store.attempt or (row.ended and (keep_fence or row.fence == "open")):
            return
        # before the tables' locks, in the order in which an apply has them
        await tx.run("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (self._apply_lock,))
        text = await self._text(tx)
        fences = () if keep_fence else (*text.fence_triggers("lapse"), *text.fence_triggers("seal"))
        present = await tx.run(_PRESENT, (list(self._tables),))
        if len(present) == len(self._tables):
            await self._barrier.lock(tx)
            await tx.run_script([text.switched_off((*text.journal_triggers(), *fences))])
        await tx.run(
            f"UPDATE {FENCE_TABLE} SET ended = true, fence = CASE WHEN %s THEN fence ELSE 'open' END "  # noqa: S608
            "WHERE domain = %s AND attempt = %s",
            (keep_fence, *self._key),
        )

    async def _drop_journal(self, tx: PostgresTransaction, token: Token) -> None:
        row = await self._row(tx, token)
        if row is not None and row.place == self._store.attempt:
            await self._drop_tables(tx)

    async def _drop_tables(self, tx: PostgresTransaction) -> None:
        await tx.run("SET LOCAL lock_timeout = 200")
        await tx.run(f"DROP TABLE IF EXISTS {', '.join(self._journal_tables)}")

    # --- what any process may do -----------------------------------------------------------------------------------

    async def open(self, flip: int) -> None:
        """One UPDATE: the refusing triggers consult the row."""
        with suppress(StaleRoute):
            rows = await self._db.run(
                f"UPDATE {FENCE_TABLE} SET fence = CASE WHEN flip <= %s THEN 'open' ELSE fence END, "  # noqa: S608
                "flip = greatest(flip, %s) WHERE domain = %s AND attempt = %s AND NOT ended RETURNING flip",
                (flip, flip, *self._key),
            )
            if rows:
                return
        raise MigrationError(f"attempt {self._attempt} of {self._store.domain} has no guard here: nothing to open")

    async def state(self) -> GuardState:
        row = await self._look()
        if row is None:
            return GuardState(installed=False, fence="open", flip=0)
        tampered = False
        while not row.ended:
            found = await self._db.fetch(_FINGERPRINT, self._catalogue())
            tampered = str(found[0][0]) != row.fingerprint
            again = await self._look() if tampered else row
            if again is None or again.fingerprint == row.fingerprint:
                break
            row = again  # a step, or a new partition, came between the two looks
        return GuardState(not row.ended and row.place == self._store.attempt, row.now, row.flip, tampered)

    async def apply(self, records: Sequence[Record]) -> None:
        await self._store.apply_through(self._apply_all, records)

    async def repair(self, keys: Sequence[Key], ghosts: Sequence[Record], now_us: int) -> None:
        """Each key in a transaction of its own: a repair holds no row that a writer waits for."""
        text = GuardText(self._store.domain, self._store.attempt, self._attempt, "public")
        tables = {table.kind: table for table in text.tables}
        for kind, key in keys:
            table = tables[kind]
            relation = self._store.relations[kind]
            at = " AND ".join(f"{name} = %s" for name in relation.key_names)
            await self._db.run(
                f"UPDATE {table.name} SET version = greatest(version + 2, %s) "  # noqa: S608
                f"+ CASE WHEN deleted THEN {table.lead} ELSE 0 END WHERE {at}",
                (now_us, *relation.position(key)),
            )
        for ghost in ghosts:
            with suppress(Undo):
                await self._bury(text, ghost)

    # --- what changes partitions under a guard ---------------------------------------------------------------------

    async def sound(self, tx: PostgresTransaction) -> bool:
        """Whether nobody else has changed anything; of a guard whose row this transaction has locked."""
        row = _Row(*(await tx.run(_ROW, self._key))[0])
        return row.fingerprint == await self._fingerprint(tx)

    async def remember(self, tx: PostgresTransaction) -> None:
        """Take what is there now for sound."""
        await tx.run(
            f"UPDATE {FENCE_TABLE} SET fingerprint = %s WHERE domain = %s AND attempt = %s",  # noqa: S608
            (await self._fingerprint(tx), *self._key),
        )

    # --- parts -----------------------------------------------------------------------------------------------------

    async def _apply_all(self, records: Sequence[Record]) -> None:
        try:
            async with self._db.transaction() as tx:
                # SET LOCAL: a session's setting would reach another client through PgBouncer. An advisory lock, not
                # FOR SHARE of the row: sharers that overlap make a multixact (2,000 applies of 8 tasks: 10,400 members).
                # The row is read by the next statement: this one's snapshot is older than the lock it waits for.
                await tx.run(
                    "SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0)), "
                    "set_config('datalayer.pass', %s, true)",
                    (self._apply_lock, f"{self._store.domain}_{self._attempt}"),
                )
                rows = await tx.run(
                    f"SELECT ended, EXISTS (SELECT FROM datalayer_tombs_{self._store.domain}_{self._attempt}) "  # noqa: S608
                    f"FROM {FENCE_TABLE} WHERE domain = %s AND attempt = %s AND place = %s",
                    (*self._key, self._store.attempt),
                )
                if not rows or rows[0][0]:
                    raise StaleRoute(f"attempt {self._attempt} of {self._store.domain} has ended")
                landing = await self._above_tombs(tx, records) if rows[0][1] else records
                await self._store.apply_in(tx, landing)
        except Fenced as error:
            raise StaleRoute(f"{self._store.domain} is sealed here by another attempt") from error

    async def _above_tombs(self, tx: PostgresTransaction, records: Sequence[Record]) -> list[Record]:
        tombs: dict[Key, int] = {}
        for sql, params in self._tombs.calls([record.ident for record in records]):
            tombs |= {(kind, key): version for kind, key, version in await tx.run(sql, params)}
        return [record for record in records if record.version > tombs.get(record.ident, -1)]

    async def _bury(self, text: GuardText, ghost: Record) -> None:
        """Enter a tombstone for a key that is absent here. Undo when the key has appeared."""
        key = (ghost.kind, ghost.key)
        async with self._db.transaction() as tx:
            rows = await tx.run(
                f"INSERT INTO {text.tombs} AS t (kind, key, version) VALUES (%s, %s, %s) "  # noqa: S608
                "ON CONFLICT (kind, key) DO UPDATE SET version = greatest(t.version + 2, excluded.version) "
                "RETURNING t.version",
                (*key, ghost.version),
            )
            # journal row first, then the look: a writer of this key is before us, or waits here and sees the tombstone
            await tx.run(
                f"INSERT INTO {text.journal} (kind, key, routing, version) VALUES (%s, %s, %s, %s) "  # noqa: S608
                "ON CONFLICT (kind, key) DO UPDATE SET version = excluded.version",
                (*key, ghost.routing, rows[0][0]),
            )
            relation = self._store.relations[ghost.kind]
            sql, params = next(iter(relation.look_up.calls([relation.item(ghost.key)])))
            if await tx.run(sql, params):
                raise Undo

    async def _look(self) -> _Row | None:
        try:
            rows = await self._db.fetch(_ROW, self._key)
        except StaleRoute:
            return None
        return _Row(*rows[0]) if rows else None

    async def _row(self, tx: PostgresTransaction, token: Token) -> _Row | None:
        await take_token(tx, token)
        rows = await tx.run(f"{_ROW} FOR UPDATE", self._key)
        return _Row(*rows[0]) if rows else None

    async def _sound_row(self, tx: PostgresTransaction) -> _Row:
        """The row, which this transaction has locked; whoever else changed what it describes is found out."""
        rows = await tx.run(_SOUND, (*self._catalogue(), *self._key))
        if not rows:
            raise MigrationError(f"attempt {self._attempt} of {self._store.domain} has no guard here")
        found, *columns = rows[0]
        row = _Row(*columns)
        self._check_sound(row, str(found))
        return row

    def _check_sound(self, row: _Row, found: str) -> None:
        what = f"the guard of attempt {self._attempt} of {self._store.domain}"
        if row.place != self._store.attempt:
            raise PreconditionFailed(f"{what} is the other side's: source and target are one database")
        if row.ended:
            raise MigrationError(f"{what} was removed")
        if row.fingerprint != found:
            raise MigrationError(
                f"{what} was changed by another program, or the server failed over: its journal cannot be trusted",
                hint="cancel the migration and start it again",
            )

    async def _check_tables(self, tx: PostgresTransaction) -> None:
        names = list(self._tables)
        for name, inside, outside in await tx.run(_CROSSING_KEYS, (names, names)):
            raise PreconditionFailed(
                f"the foreign key {name} from {inside} to {outside} crosses the border of {self._store.domain}",
                hint="drop it: the two sides will be in different stores",
            )
        for (name,) in await tx.run(_UNGUARDABLE, (names,)):
            raise PreconditionFailed(
                f"{name} is a partition or inherited from, or a partition of it is no plain table of its own: its guard "
                "could be walked around"
            )

    async def _text(self, tx: PostgresTransaction) -> GuardText:
        schema, parts = await layout_of(tx, self._tables)
        return GuardText(self._store.domain, self._store.attempt, self._attempt, schema, parts)

    async def _set(self, tx: PostgresTransaction, flip: int, fence: FenceState, lapses_at: str | None) -> None:
        """Write what is in force, and take what is there now for sound."""
        await tx.run(
            f"{_SET} flip = %s, fence = %s, lapses_at = %s::timestamptz WHERE domain = %s AND attempt = %s",
            (*self._catalogue(), flip, fence, lapses_at, *self._key),
        )

    async def _fingerprint(self, tx: PostgresTransaction) -> str:
        return str((await tx.run(_FINGERPRINT, self._catalogue()))[0][0])

    def _catalogue(self) -> tuple[Any, ...]:
        text = GuardText(self._store.domain, self._store.attempt, self._attempt, "public")
        functions = [name for table in text.tables for name in (table.lift, table.note)]
        pattern = f"^datalayer_[abcd]_[a-z]+_{self._attempt}(_row)?$"
        return (list(self._tables), pattern, [*functions, text.refuse_function, text.truncate_function])


async def layout_of(tx: PostgresTransaction, tables: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """The schema that tables are in, and the partitions of those that have some."""
    rows = await tx.run(_PARTS, (list(tables),))
    parts: dict[str, list[str]] = {}
    for _, table, part in rows:
        if part is not None:
            parts.setdefault(str(table), []).append(str(part))
    return str(rows[0][0]), parts


async def live_guards(tx: PostgresTransaction, db: PostgresDatabase, store: SqlStore) -> list[PostgresGuard]:
    """The guards of a store's tables that have not ended; none can be installed, and none of them takes a step, until
    the transaction ends. Call it before the tables are locked, as the guards' own steps do.
    """
    await tx.run(GUARD_LOCK)
    if not await tx.run(_PRESENT, ([FENCE_TABLE],)):
        return []
    rows = await tx.run(_LIVE, (store.domain, store.attempt))
    return [PostgresGuard(db, store, int(row[0])) for row in rows]
