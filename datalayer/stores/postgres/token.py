"""The coordinator's fencing token: a database that has seen a newer one refuses every step of an older.

The value alone orders them: it comes from the one lease of the domain, whose number never falls. The attempt does not:
a purge of an earlier attempt is younger than the steps of a later one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.errors import LostLease

if TYPE_CHECKING:
    from datalayer.stores.base import Token
    from datalayer.stores.sql.database import SqlTransaction

_TAKE: Final = """
INSERT INTO datalayer_token AS t (domain, migration, attempt, value) VALUES (%s, %s, %s, %s)
ON CONFLICT (domain) DO UPDATE SET migration = excluded.migration, attempt = excluded.attempt, value = excluded.value
WHERE excluded.value >= t.value
RETURNING t.value"""

_HOLD: Final = "SELECT FROM datalayer_token WHERE (domain, migration, attempt, value) = (%s, %s, %s, %s) FOR SHARE"


async def take_token(tx: SqlTransaction, token: Token) -> None:
    """Lock the domain's token row for this transaction and raise it to ``token``; LostLease when it is newer.

    Steps that find their own token there share the lock: a domain in slot groups takes the same step in many tables of
    this database at once, and what each must keep out is only a raise.
    """
    if await tx.run(_HOLD, (token.domain, token.migration, token.attempt, token.value)):
        return
    if not await tx.run(_TAKE, (token.domain, token.migration, token.attempt, token.value)):
        raise LostLease(f"a newer coordinator of {token.domain} has been at work in this database")
