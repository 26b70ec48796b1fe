"""The exact barrier: a lock that no writer holds, had without making anybody wait for long.

Order (each step was measured): SHARE UPDATE EXCLUSIVE first, which blocks no writer and makes autovacuum give way; then
SHARE ROW EXCLUSIVE for at most 200 ms, in which new writers queue; in the way: the transaction is given up, a pause,
again. lock_timeout below deadlock_timeout alone lost every try against autovacuum.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from datalayer.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from datalayer.stores.postgres.database import PostgresDatabase, PostgresTransaction

FIRST_LOCK_S: Final = 5.0
LOCK_MS: Final = 200
PAUSE_FIRST_S: Final = 0.02
PAUSE_MAX_S: Final = 0.4

_HOLDERS: Final = """
SELECT coalesce('pid ' || l.pid || ' (' || coalesce(nullif(a.application_name, ''), a.backend_type, '?') || ', '
         || coalesce(a.state, '?') || ')', 'prepared transaction ' || coalesce(p.gid, '?'))
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
  AND x.virtualtransaction = l.virtualtransaction
LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
WHERE l.locktype = 'relation' AND l.granted AND l.relation IN (
    WITH named AS (SELECT to_regclass(n)::oid AS oid FROM unnest(%s::text[]) n)
    SELECT oid FROM named UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN named ON named.oid = i.inhparent)
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.pid IS DISTINCT FROM pg_backend_pid()
GROUP BY l.pid, a.application_name, a.backend_type, a.state, a.xact_start, p.gid
ORDER BY bool_and(l.mode IN ('AccessShareLock', 'RowShareLock')), a.xact_start NULLS FIRST LIMIT 5"""


class Barrier:
    """Runs steps that need the data's tables, with their partitions, free of writers; ``alone``: of readers, too."""

    def __init__(self, db: PostgresDatabase, tables: tuple[str, ...], *, alone: bool = False) -> None:
        self._mode = "ACCESS EXCLUSIVE" if alone else "SHARE ROW EXCLUSIVE"
        self._db = db
        self._tables = tables
        self._names = ", ".join(tables)

    async def run(self, step: Callable[[PostgresTransaction], Awaitable[None]], timeout_s: float) -> None:
        """Run ``step`` in transactions until one commits.

        ``step`` calls ``lock`` where it needs the barrier; it is run again from its beginning after a try that failed.
        Raises Unavailable, naming who is in the way, when the lock cannot be had in ``timeout_s``.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                async with self._db.transaction() as tx:
                    await tx.run(f"SET LOCAL lock_timeout = {_first_ms(end - loop.time()):d}")
                    await step(tx)
                return
            except Unavailable as error:
                if not _is_lock_timeout(error):
                    raise
                left = end - loop.time()
                if left <= pause_s:
                    raise await self._refused(timeout_s) from error
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def lock(self, tx: PostgresTransaction) -> None:
        """On return no other transaction has written and not ended, and none can write until this one ends."""
        await tx.run_script(
            [
                f"LOCK TABLE {self._names} IN SHARE UPDATE EXCLUSIVE MODE",
                f"SET LOCAL lock_timeout = {LOCK_MS}",
                f"LOCK TABLE {self._names} IN {self._mode} MODE",
            ]
        )

    async def holders(self) -> list[str]:
        """Who holds locks on the tables: writers and DDL first, then readers; oldest transaction first."""
        return [str(row[0]) for row in await self._db.fetch(_HOLDERS, (list(self._tables),))]

    async def _refused(self, timeout_s: float) -> Unavailable:
        holders = await self.holders()
        who = ", ".join(holders) or "somebody who has ended since"
        return Unavailable(
            f"{self._names} could not be locked within {timeout_s:g} s: {who} in the way",
            hint="end that transaction, or try again",
        )


def _first_ms(left_s: float) -> int:
    return max(1, int(min(left_s, FIRST_LOCK_S) * 1000))


def _is_lock_timeout(error: Unavailable) -> bool:
    return getattr(error.__cause__, "sqlstate", None) in ("55P03", "40P01")
