"""The journal of intents: which keys of a last-writer authority may be missing on the other side, and what they hold.

``pending`` goes round the keys in order and never remembers a position for good: what is committed behind it is found
in the next round, and keys that cannot be settled (quarantined ones) do not hide those after them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ARRAY, BigInteger, LargeBinary, Text, bindparam, delete, exists, func, select, tuple_
from sqlalchemy import any_ as sql_any

from datalayer.control.rules import decode_payload, spread_of
from datalayer.control.schema import GATES, INTENTS
from datalayer.control.statements import SqlPart, blob, number, text
from datalayer.errors import StaleRoute
from datalayer.stores.sql.journal import UNSYNCED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Executable, Select

    from datalayer.clock import Clock
    from datalayer.domains.record import Key, Record
    from datalayer.stores.sql.database import Dialect, Row, SqlDatabase

Position = tuple[int, str, bytes]
START: Final[Position] = (-1, "", b"")

_I: Final = INTENTS.c
_ORDER: Final = (_I.spread, _I.kind, _I.key)
_COLUMNS: Final = (_I.spread, _I.kind, _I.key, _I.version, _I.deleted, _I.payload)
_POSITION: Final = tuple_(number("spread"), text("kind"), blob("key"))
_PAGE: Final = (
    select(*_COLUMNS)
    .where(_I.log == text("log"), _I.spread % number("parts") == number("part"))
    .order_by(*_ORDER)
    .limit(number("limit"))
)
_ONWARD: Final = _PAGE.where(tuple_(*_ORDER) > _POSITION)
_UP_TO: Final = _PAGE.where(tuple_(*_ORDER) <= _POSITION)
_COUNT: Final = select(
    GATES.c.installed, select(func.count()).select_from(INTENTS).where(_I.log == GATES.c.log).scalar_subquery()
).where(GATES.c.log == text("log"))
_SETTLE_ONE: Final = delete(INTENTS).where(
    _I.log == text("log"),
    _I.spread == number("spread"),
    _I.kind == text("kind"),
    _I.key == blob("key"),
    _I.version == number("version"),
)
DROP_INTENTS: Final = delete(INTENTS).where(_I.log == text("log"))


def _array(name: str, type_: Any) -> Any:
    return bindparam(f"p_{name}", type_=ARRAY(type_))


def _settle_many() -> Executable:
    # Rows that somebody has locked are about to get a newer version: they are skipped, and stay dirty.
    seen = (
        func.unnest(
            _array("spreads", BigInteger),
            _array("kinds", Text),
            _array("keys", LargeBinary),
            _array("versions", BigInteger),
        )
        .table_valued("spread", "kind", "key", "version")
        .render_derived("seen")
    )
    ours = INTENTS.alias("ours")
    found = (
        select(ours.c.spread, ours.c.kind, ours.c.key, ours.c.version)
        .join_from(
            ours,
            seen,
            (ours.c.spread == seen.c.spread)
            & (ours.c.kind == seen.c.kind)
            & (ours.c.key == seen.c.key)
            & (ours.c.version == seen.c.version),
        )
        .where(ours.c.log == text("log"))
        .order_by(ours.c.spread, ours.c.kind, ours.c.key)
        .with_for_update(of=ours, skip_locked=True)
    )
    return delete(INTENTS).where(_I.log == text("log"), tuple_(*_ORDER, _I.version).in_(found), UNSYNCED)


def _dirty(dialect: Dialect, column: ColumnElement[bytes]) -> Select[Any]:
    if dialect == "postgresql":
        hit = (_I.spread == sql_any(_array("spreads", BigInteger))) & (column == sql_any(_array("values", LargeBinary)))
    else:
        spreads = func.json_each(text("spreads")).table_valued("value", name="spreads")
        values = func.json_each(text("values")).table_valued("value", name="given")
        hit = _I.spread.in_(select(spreads.c.value)) & func.hex(column).in_(select(values.c.value))
    return select(GATES.c.installed, exists().where(_I.log == GATES.c.log, hit)).where(GATES.c.log == text("log"))


_SETTLE_MANY: Final = _settle_many()
_DIRTY_ROUTING: Final = {dialect: _dirty(dialect, _I.routing) for dialect in ("postgresql", "sqlite")}
_DIRTY_KEY: Final = {dialect: _dirty(dialect, _I.key) for dialect in ("postgresql", "sqlite")}


class SqlIntentJournal(SqlPart):
    """The journal of one log of intents."""

    def __init__(self, database: SqlDatabase, clock: Clock, log: str) -> None:
        super().__init__(database, clock)
        self._log = log
        self._positions: dict[tuple[int, int], Position] = {}

    async def pending(self, limit: int, *, part: tuple[int, int] = (0, 1)) -> list[Record]:
        """At most ``limit`` intents with their full payload, going on behind those of the last call, round and round.

        Empty only when there is none; StaleRoute when the gate of the attempt is gone.
        """
        after = self._positions.get(part, START)
        values = {"log": self._log, "parts": part[1], "part": part[0]}
        place = dict(zip(("spread", "kind", "key"), after, strict=True))
        rows = await self._fetch(_ONWARD, **values, **place, limit=limit)
        if len(rows) < limit and after != START:
            rows += await self._fetch(_UP_TO, **values, **place, limit=limit - len(rows))
        if not rows:
            self._positions.pop(part, None)
            await self.backlog()
            return []
        self._positions[part] = (rows[-1][0], rows[-1][1], rows[-1][2])
        return [decode_payload(*row[1:]) for row in rows]

    async def settle(self, seen: Sequence[Record]) -> None:
        """Clear each key whose intent is at exactly the version of the record applied."""
        rows = sorted((spread_of(record.routing), record.kind, record.key, record.version) for record in seen)
        if not rows:
            return
        if self._database.dialect == "postgresql":
            spreads, kinds, keys, versions = (list(each) for each in zip(*rows, strict=True))
            await self._run(_SETTLE_MANY, log=self._log, spreads=spreads, kinds=kinds, keys=keys, versions=versions)
            return
        names = ("spread", "kind", "key", "version")
        bound = [{"log": self._log, **dict(zip(names, row, strict=True))} for row in rows]
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            await self._do_many(transaction, _SETTLE_ONE, bound)

    async def backlog(self) -> int:
        """How many keys are dirty; StaleRoute when the gate of the attempt is gone."""
        return int(self._live(await self._fetch(_COUNT, log=self._log)))

    async def dirty(self, routings: Sequence[bytes], keys: Sequence[Key] | None = None) -> bool:
        """Whether an intent lies under one of these routing keys (or is of one of ``keys``).

        Raises StaleRoute when the gate of the attempt is gone: a missing journal never means clean.
        """
        dialect = self._database.dialect
        wanted = list(routings) if keys is None else [key for _, key in keys]
        spreads = sorted({spread_of(value[:16]) for value in wanted})
        core = (_DIRTY_ROUTING if keys is None else _DIRTY_KEY)[dialect]
        values: Any = wanted
        if dialect == "sqlite":
            rows = await self._fetch(
                core, log=self._log, spreads=json.dumps(spreads), values=json.dumps([v.hex().upper() for v in wanted])
            )
        else:
            rows = await self._fetch(core, log=self._log, spreads=spreads, values=values)
        return bool(self._live(rows))

    async def foreign_writers(self) -> list[str]:
        """None: whoever does not ask the gate is not seen by it."""
        return []

    def _live(self, rows: list[Row]) -> Any:
        if not rows or rows[0][0] == 0:
            raise StaleRoute(f"there is no journal {self._log} any more")
        return rows[0][1]
