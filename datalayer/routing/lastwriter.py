"""The authority of a store without transactions: read, decide, intent, apply, answer.

While a migration lives, every write is admitted by the gate in the control store first: one function locks the gate
row, checks it, allots the version and stores the intent with its full payload. So the fence of such a side is as
exact as a trigger (I6), and a writer that dies after its intent leaves everything a replayer needs (I1). After an
intent the outcome is never "not applied".

At rest processes allot versions themselves: above the version seen and the clock, even, with a number of the process
in the low bits. Two edits that are truly concurrent may tie only across processes of one number; the greater bytes of
the one record cell win then, everywhere.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from datalayer.control.base import AdmitState
from datalayer.domains.record import FINAL_LEAD
from datalayer.errors import (
    AlreadyExists,
    DatalayerError,
    DeadlineExceeded,
    Fenced,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    Quarantine,
    StaleRoute,
)
from datalayer.routing.within import within
from datalayer.stores.base import Executed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datalayer.clock import Clock, Deadline
    from datalayer.control.base import Admitted, IntentLog
    from datalayer.domains.record import Key, Record
    from datalayer.domains.registry import Domain
    from datalayer.routing.indexes import Indexes, Leaf
    from datalayer.stores.base import GuardState, Journal, Port, Token

PROCESS_NUMBERS: Final = 1024


@dataclass(frozen=True, slots=True)
class Entering:
    """How what is written to a place without triggers becomes known to the indexes that follow it: they are told first.

    Told before the write, an index that looks at once finds the record not there yet, and looks again; told after it,
    a writer that dies in between would leave a record that no index ever hears of.
    """

    indexes: Indexes
    leaf: Leaf

    async def write(self, store: Port, records: Sequence[Record]) -> None:
        """Enter and apply, by what this process knows of the indexes."""
        with self.indexes.writing() as known:
            await self.indexes.enter(self.leaf, records, known)
            await store.apply(records)

    async def deliver(self, store: Port, records: Sequence[Record]) -> None:
        """As ``write``, for writers that may have died: by the control store, which is asked after they were read there."""
        await self.indexes.enter(self.leaf, records, await self.indexes.fresh())
        await store.apply(records)


class LastWriterAuthority:
    """Runs mutations of one domain on a last-writer store."""

    def __init__(
        self,
        store: Port,
        domain: Domain,
        clock: Clock,
        *,
        process_number: int,
        intents: IntentLog | None,
        check: Callable[[Record], str | None] | None,
        entering: Entering | None = None,
    ) -> None:
        self._store = store
        self._domain = domain
        self._clock = clock
        self._low_bits = (process_number % PROCESS_NUMBERS) << 1
        self._intents = intents
        self._check = check
        self._entering = entering
        self.under_way: set[asyncio.Future[None]] = set()
        """Puts at rest that the store has not answered yet, also those whose callers have left."""

    async def execute(self, mutation: Any, deadline: Deadline) -> Executed:
        """Run one mutation, as the domain's decide() says (see Transactional.execute)."""
        current: dict[Key, Record] = {}
        keys = self._domain.keys_of(mutation)
        if not mutation.fresh:
            current = await within(deadline, self._store.fetch(keys), DeadlineExceeded)
        entity, records = self._decide(mutation, current)
        if not records and self._intents is not None:
            # Nothing to admit, so the gate was not asked: a side that is closed would answer from what it once held.
            await self._ask_gate(self._intents, deadline)
            current = await within(deadline, self._store.fetch(keys), DeadlineExceeded)
            entity, records = self._domain.decide(mutation, current, self._clock.now_us())
        if not records:
            return Executed(entity, ())
        assert len(records) == 1, "a last-writer authority changes one record at a time"
        record = records[0]
        self._refuse_unstorable(record)
        create = mutation.creates
        if self._intents is None:
            record = record if create else self._allot(record, current.get(record.ident))
        else:
            lead = FINAL_LEAD if record.deleted else 0
            admitted = await self._intents.admit(record, lead=lead, create=create, deadline=deadline)
            if admitted.state is not AdmitState.ADMITTED:
                executed = self._not_admitted(mutation, admitted, entity)
                if admitted.record is not None:
                    # The writer before may have died between its intent and its write: what is answered must be there.
                    await self._put(admitted.record, deadline)
                return executed
            assert admitted.record is not None, "an admitted record comes back with its version"
            record = admitted.record
        await self._put(record, deadline)
        return Executed(self._domain.to_entity(record), (record,))

    def _decide(self, mutation: Any, current: dict[Key, Record]) -> tuple[Any, Sequence[Record]]:
        """As decide(); a refusal is no records, as long as the gate can still be asked."""
        try:
            return self._domain.decide(mutation, current, self._clock.now_us())
        except (NotFound, AlreadyExists):
            if self._intents is None:
                raise
            return None, ()

    async def _ask_gate(self, intents: IntentLog, deadline: Deadline) -> None:
        state = await within(deadline, intents.state(), DeadlineExceeded)
        if not state.installed:
            raise StaleRoute("the migration this write belonged to has moved on")
        if state.fence != "open":
            raise Fenced("writes are held during a cut-over")

    async def _put(self, record: Record, deadline: Deadline) -> None:
        entering = self._entering
        call: Any = self._store.apply((record,)) if entering is None else entering.write(self._store, (record,))
        if self._intents is None:
            # A process may say that its writes of before a migration have ended only when the store has answered them.
            put = asyncio.ensure_future(call)
            self.under_way.add(put)
            put.add_done_callback(self._answered)
            call = asyncio.shield(put)
        try:
            await within(deadline, call, OutcomeUnknown)
        except Quarantine as error:
            raise InvalidArgument(error.message) from error
        except (OutcomeUnknown, StaleRoute):
            raise
        except DatalayerError as error:
            if self._intents is None:
                raise
            message = f"the write was admitted but the store did not confirm it: {error.message}"
            raise OutcomeUnknown(message) from error

    def _answered(self, put: asyncio.Future[None]) -> None:
        self.under_way.discard(put)
        if not put.cancelled():
            put.exception()  # taken: its caller may have left

    def _allot(self, record: Record, seen: Record | None) -> Record:
        lead = FINAL_LEAD if record.deleted else 0
        base = max(0 if seen is None else seen.version + 2, self._clock.now_us())
        return record._replace(version=((base >> 11) + 1 << 11 | self._low_bits) + lead)

    def _refuse_unstorable(self, record: Record) -> None:
        reason = self._store.check(record) or (self._check(record) if self._check else None)
        if reason:
            raise InvalidArgument(reason)

    def _not_admitted(self, mutation: Any, admitted: Admitted, entity: Any) -> Executed:
        match admitted.state:
            case AdmitState.FENCED:
                raise Fenced("writes are held during a cut-over")
            case AdmitState.STALE:
                raise StaleRoute("the migration this write belonged to has moved on")
            case AdmitState.DELETED if mutation.deletes:
                return Executed(entity, ())
            case AdmitState.DELETED:
                return Executed(self._blocked(mutation, None), ())
            case _:
                assert admitted.record is not None, "EXISTS carries what is pending"
                return Executed(self._blocked(mutation, admitted.record), ())

    def _blocked(self, mutation: Any, pending: Record | None) -> Any:
        assert self._domain.blocked is not None, "a last-writer store holds no domain that needs compare-and-set"
        return self._domain.blocked(mutation, pending)


class IntentGuard:
    """Journal and fence of a last-writer side: the intents in the control store, plus applies into the store."""

    def __init__(self, store: Port, intents: IntentLog, entering: Entering | None = None) -> None:
        self._store = store
        self._intents = intents
        self._entering = entering
        self.journal: Journal = intents.journal

    async def install(self, token: Token, *, sealed: bool) -> None:
        await self._intents.install(token, sealed=sealed)

    async def apply(self, records: Sequence[Record]) -> None:
        # A late apply cannot resurrect anything here: tombstones stay in the data, above every edit in flight.
        await self._store.apply(records)

    async def deliver(self, records: Sequence[Record]) -> None:
        """Bring admitted writes to the store that they are the authority's own writes of."""
        if self._entering is None:
            await self._store.apply(records)
        else:
            await self._entering.deliver(self._store, records)

    async def fence(self, token: Token, flip: int, lapse_s: float, lock_timeout_s: float) -> None:
        await self._intents.fence(token, flip, lapse_s, lock_timeout_s)

    async def seal(self, token: Token, flip: int) -> None:
        await self._intents.seal(token, flip)

    async def open(self, flip: int) -> None:
        await self._intents.open(flip)

    async def set_floor(self, version: int) -> None:
        """Versions allotted from now on are above this one."""
        await self._intents.set_floor(version)

    async def state(self) -> GuardState:
        return await self._intents.state()

    async def remove(self, token: Token, *, keep_fence: bool) -> None:
        await self._intents.remove(token, keep_fence=keep_fence)

    async def repair(self, keys: Sequence[Key], ghosts: Sequence[Record], now_us: int) -> None:
        # Both become intents: the replayer brings them to this store first, then to the mirror. As a create: where an
        # intent is pending the key is dirty already, and what it holds is newer than what is read here.
        for key in keys:
            for record in (await self._store.fetch([key])).values():
                version = max(record.version + 2, now_us) + (FINAL_LEAD if record.deleted else 0)
                await self._enter(record._replace(version=version))
        for ghost in ghosts:
            if not await self._store.fetch([ghost.ident]):
                await self._enter(ghost)

    async def _enter(self, record: Record) -> None:
        admitted = await self._intents.admit(record, lead=0, create=True, deadline=None)
        if admitted.state is AdmitState.FENCED:
            raise Fenced("writes are held during a cut-over")
        if admitted.state is AdmitState.STALE:
            raise StaleRoute("the migration of this repair has moved on")
