"""Gate and journal of a side whose store has no transactions of its own.

The gate is a row behind a lock. Every admission takes the lock shared and checks the row in one round trip; whoever
closes the gate takes it exclusively, so that on return no admission is running (I6). On Postgres that is a function
(schema.py says why); on SQLite, where a writing statement is alone from its beginning, one statement that inserts from
the gate's row.

The journal is the table of intents: the full payload under the allotted version, durable before the data is written
(I1). It has no cursor that could pass a late commit: a replayer goes round it in key order and begins again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import BigInteger, Boolean, bindparam, case, column, delete, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from datalayer.control.base import AdmitState, Admitted
from datalayer.control.journal import DROP_INTENTS, SqlIntentJournal
from datalayer.control.rules import decode_payload, encode_payload, log_name, spread_of
from datalayer.control.schema import ADMIT, GATE_LOCK, GATES, INTENTS
from datalayer.control.statements import LONG_CALL_S, SqlPart, StoreClock, blob, number, text
from datalayer.errors import MigrationError, Unavailable
from datalayer.stores.base import GuardState
from datalayer.stores.sql.statement import greatest

if TYPE_CHECKING:
    from sqlalchemy import Executable

    from datalayer.clock import Clock, Deadline
    from datalayer.domains.record import Record
    from datalayer.stores.base import FenceState, Journal, Token
    from datalayer.stores.sql.database import Row, SqlDatabase, SqlTransaction

ADMIT_ROUNDS: Final = 100
_NOW: Final = StoreClock()
_ADMIT_PG: Final[Executable] = select(
    column("out_state"), column("out_version"), column("out_deleted"), column("out_payload")
).select_from(
    getattr(func, ADMIT)(
        text("log"),
        number("spread"),
        text("kind"),
        blob("key"),
        blob("routing"),
        number("version"),
        number("deleted"),
        text("payload"),
        number("lead"),
        bindparam("p_create", type_=Boolean()),
    ).table_valued("out_state", "out_version", "out_deleted", "out_payload")
)
_OPEN_NOW: Final = or_(GATES.c.fence == "open", (GATES.c.fence == "lapsing") & (GATES.c.until_us <= _NOW))
_INTENT: Final = insert(INTENTS).from_select(
    [c.name for c in INTENTS.c],
    select(
        GATES.c.log,
        number("spread"),
        text("kind"),
        blob("key"),
        blob("routing"),
        case(
            (number("create") == 1, number("version")),
            else_=greatest(number("version"), GATES.c.floor + 2 + number("lead")),
        ),
        number("deleted"),
        text("payload"),
    ).where(GATES.c.log == text("log"), GATES.c.installed == 1, _OPEN_NOW),
)
_ADMIT_LITE: Final = _INTENT.on_conflict_do_update(
    index_elements=[INTENTS.c.log, INTENTS.c.spread, INTENTS.c.kind, INTENTS.c.key],
    set_={
        "version": greatest(
            _INTENT.excluded.version, INTENTS.c.version + 2 + case((INTENTS.c.deleted == 1, 0), else_=number("lead"))
        ),
        "deleted": _INTENT.excluded.deleted,
        "payload": _INTENT.excluded.payload,
    },
    where=(number("create") == 0) & or_(INTENTS.c.deleted == 0, _INTENT.excluded.deleted == 1),
).returning(INTENTS.c.version)
_REFUSED: Final = (
    select(GATES.c.installed, case((_OPEN_NOW, 1), else_=0), INTENTS.c.version, INTENTS.c.deleted, INTENTS.c.payload)
    .select_from(
        GATES.outerjoin(
            INTENTS,
            (INTENTS.c.log == GATES.c.log)
            & (INTENTS.c.spread == number("spread"))
            & (INTENTS.c.kind == text("kind"))
            & (INTENTS.c.key == blob("key")),
        )
    )
    .where(GATES.c.log == text("log"))
)
_GATE_COLUMNS: Final = (GATES.c.installed, GATES.c.fence, GATES.c.flip, GATES.c.until_us - _NOW)
_READ: Final = select(*_GATE_COLUMNS).where(GATES.c.log == text("log"))
_LOCK: Final = _READ.with_for_update()
_NEW: Final = insert(GATES).values(log=text("log"), installed=1, fence=text("fence"), flip=0, until_us=0, floor=0)
_INSTALL: Final = _NEW.on_conflict_do_update(
    index_elements=[GATES.c.log],
    set_={"installed": 1, "fence": _NEW.excluded.fence},
    where=GATES.c.installed == 0,
)
_FENCE: Final = (
    update(GATES)
    .where(GATES.c.log == text("log"))
    .values(fence="lapsing", flip=number("flip"), until_us=_NOW + number("lapse_us"))
)
_SEAL: Final = update(GATES).where(GATES.c.log == text("log")).values(fence="sealed")
_OPEN: Final = (
    update(GATES)
    .where(GATES.c.log == text("log"), GATES.c.flip <= number("flip"), GATES.c.installed == 1)
    .values(fence="open", flip=number("flip"))
    .returning(GATES.c.flip)
)
_RETIRE: Final = update(GATES).where(GATES.c.log == text("log")).values(fence="sealed", installed=0)
_FORGET: Final = delete(GATES).where(GATES.c.log == text("log"))
_FLOOR: Final = (
    update(GATES)
    .where(GATES.c.log == text("log"), GATES.c.installed == 1)
    .values(floor=greatest(GATES.c.floor, number("floor")))
    .returning(GATES.c.floor)
)
_ALONE: Final = select(func.pg_advisory_xact_lock(func.hashtextextended(text("lock"), literal(0, BigInteger))))
_LOCK_TIMEOUT: Final = select(func.set_config("lock_timeout", text("lock_timeout"), True))


class SqlIntents(SqlPart):
    """Gate and journal of (domain, attempt, side)."""

    def __init__(
        self, database: SqlDatabase, clock: Clock, domain: str, attempt: int, side: Literal["source", "target"]
    ) -> None:
        super().__init__(database, clock)
        self._log = log_name(domain, attempt, side)
        self.journal: Journal = SqlIntentJournal(database, clock, self._log)

    async def admit(self, record: Record, *, lead: int, create: bool, deadline: Deadline | None) -> Admitted:
        """One round trip: lock and check the gate, allot the version, store the intent (see IntentLog.admit)."""
        values = {
            "log": self._log,
            "spread": spread_of(record.routing),
            "kind": record.kind,
            "key": record.key,
            "routing": record.routing,
            "version": record.version,
            "deleted": int(record.deleted),
            "payload": encode_payload(record),
            "lead": lead,
        }
        deadline = deadline or self._deadline()
        if self._database.dialect == "sqlite":
            return await self._admit_lite(record, values, create=create, deadline=deadline)
        sql, params = self._bind(_ADMIT_PG, {**values, "create": create})
        state, version, deleted, payload = (await self._database.run(sql, params, deadline=deadline))[0]
        if state == "admitted":
            return Admitted(AdmitState.ADMITTED, record._replace(version=version))
        pending = None if version is None else decode_payload(record.kind, record.key, version, deleted, payload)
        return Admitted(AdmitState(state), pending)

    async def _admit_lite(
        self, record: Record, values: dict[str, Any], *, create: bool, deadline: Deadline
    ) -> Admitted:
        values["create"] = int(create)
        for _ in range(ADMIT_ROUNDS):
            sql, params = self._bind(_ADMIT_LITE, values)
            rows = await self._database.run(sql, params, deadline=deadline)
            if rows:
                return Admitted(AdmitState.ADMITTED, record._replace(version=rows[0][0]))
            sql, params = self._bind(_REFUSED, values)
            refused = await self._database.fetch(sql, params, deadline=deadline)
            if not refused or not refused[0][0]:
                return Admitted(AdmitState.STALE, None)
            _, opened, version, deleted, payload = refused[0]
            if not opened:
                return Admitted(AdmitState.FENCED, None)
            if version is not None and (create or (deleted and not record.deleted)):
                pending = decode_payload(record.kind, record.key, version, deleted, payload)
                return Admitted(AdmitState.EXISTS if create else AdmitState.DELETED, pending)
            # What refused the intent has gone since (the fence lapsed, the pending one was settled): once more.
        raise Unavailable(f"the gate of {self._log} kept changing")

    async def install(self, token: Token, *, sealed: bool) -> None:
        """Make the gate row, open or sealed. Idempotent: a gate that is on is left as it is."""
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            await self._hold(transaction, token)
            await self._do(transaction, _INSTALL, log=self._log, fence="sealed" if sealed else "open")

    async def fence(self, token: Token, flip: int, lapse_s: float, lock_timeout_s: float) -> None:
        """Close the gate FOR UPDATE until it lapses; no admission is running on return. A seal is never weakened."""
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            await self._hold(transaction, token)
            if self._database.dialect == "postgresql":
                await self._do(transaction, _LOCK_TIMEOUT, lock_timeout=f"{max(round(lock_timeout_s * 1000), 1)}ms")
            state = await self._alone(transaction)
            if not state.installed or flip < state.flip:
                raise MigrationError(f"{self._log} has no gate to close for flip {flip}")
            if state.fence != "sealed":
                await self._do(transaction, _FENCE, log=self._log, flip=flip, lapse_us=round(lapse_s * 1e6))

    async def seal(self, token: Token, flip: int) -> None:
        """Close the gate for good; MigrationError when the lapsing fence of this flip is over already."""
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            await self._hold(transaction, token)
            state = await self._alone(transaction)
            if state.fence == "open" or flip != state.flip:
                raise MigrationError(f"the fence of flip {flip} on {self._log} had lapsed before it was sealed")
            await self._do(transaction, _SEAL, log=self._log)

    async def open(self, flip: int) -> None:
        """Open the gate, unless a later flip has fenced since. Idempotent; may be done by any process."""
        if not await self._run(_OPEN, log=self._log, flip=flip) and not (await self.state()).installed:
            raise MigrationError(f"{self._log} has no gate to open")

    async def state(self) -> GuardState:
        """What is in force now."""
        return _state(await self._fetch(_READ, log=self._log))

    async def set_floor(self, version: int) -> None:
        """Versions allotted from now on are above this one (never lowers it)."""
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            await self._alone(transaction)
            if not await self._do(transaction, _FLOOR, log=self._log, floor=version):
                raise MigrationError(f"{self._log} has no gate")

    async def remove(self, token: Token, *, keep_fence: bool) -> None:
        """Forget the intents; the gate row goes too unless ``keep_fence`` (then it stays, sealed). Idempotent."""
        async with self._database.transaction(deadline=self._deadline(LONG_CALL_S)) as transaction:
            await self._hold(transaction, token)
            await self._alone(transaction)
            await self._do(transaction, _RETIRE if keep_fence else _FORGET, log=self._log)
            await self._do(transaction, DROP_INTENTS, log=self._log)

    async def _alone(self, transaction: SqlTransaction) -> GuardState:
        """Wait until no admission is running and let none begin before the end; then the state, by the clock of now."""
        if self._database.dialect == "postgresql":
            await self._do(transaction, _ALONE, lock=f"{GATE_LOCK}{self._log}")
        # Locked by one statement and read by the next: the time waited for the row counts as well.
        await self._do(transaction, _LOCK, log=self._log)
        return _state(await self._do(transaction, _READ, log=self._log))


def _state(rows: list[Row]) -> GuardState:
    if not rows:
        return GuardState(False, "open", 0)
    installed, fence, flip, left_us = rows[0]
    now: FenceState = "open" if fence == "lapsing" and left_us <= 0 else fence
    return GuardState(installed == 1, now, flip)
