"""The mistakes of the protocol's last section, each as a patch of the real engine or of the stores' guard.

``MUTANTS`` names for each what must notice it: whole lives (``lives``) or the crash matrix (``matrix``), and for which
pair. Not here, because this engine has no such part: replicas as scan sources, search deletes, claims over shards; the
lease, the look-up that finds no journal and the one-directional verification are judged in the race table.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from datalayer.control.memory_log import MemoryLog
from datalayer.control.memory_server import MemoryControlServer
from datalayer.domains.record import Record
from datalayer.migrators import hold, run
from datalayer.migrators.backfill import Backfill
from datalayer.migrators.plan import PLAN, Action, Stage
from datalayer.routing import flip, places
from datalayer.routing.lastwriter import LastWriterAuthority
from datalayer.routing.replay import Replayer
from datalayer.stores.memory.server import MemoryServer
from datalayer.stores.memory.side import Side
from datalayer.stores.memory.store import TransactionalMessages
from datalayer.stores.memory.table import Table
from datalayer.testing.simulation.world import Pair

Patch = Callable[[pytest.MonkeyPatch], None]
SQL = Pair("transactional", "transactional")
OUT = Pair("transactional", "last_writer")
BACK = Pair("last_writer", "transactional")


@dataclass(frozen=True)
class Mutant:
    name: str
    patch: Patch
    pair: Pair
    killed_by: Literal["lives", "matrix"] = "lives"
    foreign: bool = False
    how: str | None = None
    """Which cases of the matrix only."""


def _without(patch: pytest.MonkeyPatch, *actions: Action) -> None:
    for stage, planned in list(PLAN.items()):
        patch.setitem(PLAN, stage, tuple(action for action in planned if action not in actions))


def journal_after_the_scan_began(patch: pytest.MonkeyPatch) -> None:
    _without(patch, Action.ARM_JOURNAL)
    patch.setitem(PLAN, Stage.BACKFILL, (Action.BACKFILL, Action.ARM_JOURNAL, Action.CATCH_UP))


def journal_row_outside_the_transaction(patch: pytest.MonkeyPatch) -> None:
    inner = MemoryServer._journal

    def later(self: MemoryServer, place: Any, record: Record) -> None:
        asyncio.get_running_loop().call_later(0.3, inner, self, place, record)

    patch.setattr(MemoryServer, "_journal", later)


def ungated_apply(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Table, "wins", lambda _self, _record, _stored: True)


def journal_cleared_without_compare(patch: pytest.MonkeyPatch) -> None:
    def settle(self: MemoryServer, place: Any, attempt: int, seen: Any) -> None:
        for record in seen:
            self.live_side(place, attempt).journal.pop(record.ident, None)

    patch.setattr(MemoryServer, "settle", settle)


def intents_cleared_without_compare(patch: pytest.MonkeyPatch) -> None:
    def settle(self: MemoryLog, seen: Any) -> None:
        for record in seen:
            self.intents.pop(record.ident, None)

    patch.setattr(MemoryLog, "settle", settle)


def no_tombstones(patch: pytest.MonkeyPatch) -> None:
    inner = MemoryServer.apply_as

    def apply_as(self: MemoryServer, place: Any, attempt: int, records: Any) -> None:
        inner(self, place, attempt, records)
        for record in records:
            if record.deleted:
                self.table(place).remove(record.ident)

    patch.setattr(MemoryServer, "apply_as", apply_as)


def hold_before_all_readers_acknowledged(patch: pytest.MonkeyPatch) -> None:
    _without(patch, Action.AWAIT_READERS)


def only_the_first_coordinator_awaits_readers(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(PLAN, Stage.FLIP, tuple(a for a in PLAN[Stage.FLIP] if a is not Action.AWAIT_READERS))


def writers_not_awaited(patch: pytest.MonkeyPatch) -> None:
    _without(patch, Action.AWAIT_WRITERS)


def armed_skipped(patch: pytest.MonkeyPatch) -> None:
    inner = places.Places.compile

    def compile_(self: places.Places, routing: Any) -> Any:
        route = inner(self, routing)
        route.journal_first = False
        return route

    patch.setattr(places.Places, "compile", compile_)


def no_drain(patch: pytest.MonkeyPatch) -> None:
    async def drained(_: Any) -> Any:
        return "0 replayed"

    patch.setattr(flip, "drain", drained)
    patch.setitem(run.HANDLERS, Action.DRAIN, drained)
    patch.setitem(run.HANDLERS, Action.CHECK_CHANGED, drained)


def fence_by_a_state_row(patch: pytest.MonkeyPatch) -> None:
    """The writer reads whether it may write, then writes: what a state row in another snapshot comes down to."""
    inner = TransactionalMessages.execute
    refuse = MemoryServer._refuse_fenced
    run_it = MemoryServer.execute
    blind: list[bool] = []

    def unfenced(self: MemoryServer, place: Any, mutation: Any) -> Any:
        blind.append(True)
        try:
            return run_it(self, place, mutation)
        finally:
            blind.pop()

    async def execute(self: TransactionalMessages, mutation: Any, deadline: Any) -> Any:
        await self._call("look", lambda: refuse(self._server, self.place), deadline, write=False)
        # The rest of a transaction whose snapshot is as old as that look.
        await asyncio.sleep(0.05)
        return await inner(self, mutation, deadline)

    patch.setattr(TransactionalMessages, "execute", execute)
    patch.setattr(MemoryServer, "execute", unfenced)
    patch.setattr(MemoryServer, "_refuse_fenced", lambda self, place: None if blind else refuse(self, place))


def lapsing_fence_not_made_permanent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Side, "seal", lambda _self, _flip, _now: None)
    source = flip.finish_flip

    async def finish(places_: Any, routing: Any, *more: Any, **named: Any) -> Any:
        sealed, _ = places_.sides(routing)
        honest = type(sealed).state

        async def state(self: Any) -> Any:
            found = await honest(self)
            return found if found.fence == "open" else type(found)(found.installed, "sealed", found.flip)

        patch.setattr(type(sealed), "state", state)
        try:
            return await source(places_, routing, *more, **named)
        finally:
            patch.setattr(type(sealed), "state", honest)

    patch.setattr(hold, "finish_flip", finish)


def fence_dropped_at_complete(patch: pytest.MonkeyPatch) -> None:
    inner = Side.remove
    patch.setattr(Side, "remove", lambda self, *, keep_fence: inner(self, keep_fence=keep_fence and False))


def no_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryServer, "check_token", lambda _self, _token: None)
    patch.setattr(MemoryControlServer, "check", lambda _self, _token: None)
    patch.setattr(MemoryControlServer, "keep", lambda _self, _name, _token, _ttl: None)


def eager_reverse_apply(patch: pytest.MonkeyPatch) -> None:
    """Applies of writers land on the source whenever they like, also after it rules again."""
    inner = LastWriterAuthority._put

    async def put(self: LastWriterAuthority, record: Record, deadline: Any) -> None:
        await inner(self, record, deadline)
        others = [s for s in WORLD_SERVERS if s is not self._store._server and s.name in ("s", "t")]  # type: ignore[attr-defined]
        for server in others:
            for place, table in list(server.tables.items()):
                if place[0] == "messages":
                    asyncio.get_running_loop().call_later(0.5, table.records.__setitem__, record.ident, record)

    patch.setattr(LastWriterAuthority, "_put", put)
    made = MemoryServer.__init__

    def init(self: MemoryServer, *args: Any, **named: Any) -> None:
        made(self, *args, **named)
        WORLD_SERVERS.append(self)

    WORLD_SERVERS.clear()
    patch.setattr(MemoryServer, "__init__", init)


WORLD_SERVERS: list[MemoryServer] = []


def intent_after_the_write(patch: pytest.MonkeyPatch) -> None:
    admit = LastWriterAuthority.execute

    async def execute(self: LastWriterAuthority, mutation: Any, deadline: Any) -> Any:
        intents, self._intents = self._intents, None
        try:
            done = await admit(self, mutation, deadline)
        finally:
            self._intents = intents
        if intents is not None:
            for record in done.records:
                await intents.admit(record, lead=0, create=False, deadline=deadline)
        return done

    patch.setattr(LastWriterAuthority, "execute", execute)


def intents_not_brought_to_the_authority(patch: pytest.MonkeyPatch) -> None:
    inner = Replayer.__init__

    def init(self: Replayer, *args: Any, **named: Any) -> None:
        inner(self, *args, **named)
        self._authority = None

    patch.setattr(Replayer, "__init__", init)


def intents_not_gated(patch: pytest.MonkeyPatch) -> None:
    inner = MemoryLog.admit

    def admit(self: MemoryLog, record: Record, lead: int, now: float, *, create: bool) -> Any:
        fence, self._fence = self._fence, "open"
        try:
            return inner(self, record, lead, now, create=create)
        finally:
            self._fence = fence

    patch.setattr(MemoryLog, "admit", admit)


def version_from_the_counter_alone(patch: pytest.MonkeyPatch) -> None:
    inner = MemoryLog.admit
    counters: dict[int, int] = {}

    def admit(self: MemoryLog, record: Record, lead: int, now: float, *, create: bool) -> Any:
        if not create:
            counters[id(self)] = counters.get(id(self), 1_000) + 2
            record = record._replace(version=counters[id(self)] + lead)
            self._floor = 0
        return inner(self, record, lead, now, create=create)

    patch.setattr(MemoryLog, "admit", admit)


def checkpoint_before_the_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    inner = Backfill._apply

    async def late(self: Backfill, records: Any) -> None:
        await asyncio.sleep(0.02)
        await inner(self, records)

    async def apply(self: Backfill, records: Any) -> None:
        # The page is written while the copy goes on as if it were there already.
        self._late = [*getattr(self, "_late", []), asyncio.ensure_future(late(self, records))]  # type: ignore[attr-defined]
        self.copied.rows += len(records)

    patch.setattr(Backfill, "_apply", apply)


def append_answered_by_its_intent(patch: pytest.MonkeyPatch) -> None:
    """A repeat of an append whose intent is pending is answered before its record is in the store."""
    inner = LastWriterAuthority._not_admitted
    put = LastWriterAuthority._put

    def not_admitted(self: LastWriterAuthority, *args: Any) -> Any:
        self._skip = True  # type: ignore[attr-defined]
        return inner(self, *args)

    async def leave_out(self: LastWriterAuthority, record: Record, deadline: Any) -> None:
        if getattr(self, "_skip", False):
            self._skip = False  # type: ignore[attr-defined]
            return
        await put(self, record, deadline)

    patch.setattr(LastWriterAuthority, "_not_admitted", not_admitted)
    patch.setattr(LastWriterAuthority, "_put", leave_out)


def phase_of_an_earlier_attempt(patch: pytest.MonkeyPatch) -> None:
    from datalayer.migrators.work import Work  # noqa: PLC0415

    patch.setattr(Work, "phase", property(lambda self: self.routing.phase))


def target_without_attempt_number(patch: pytest.MonkeyPatch) -> None:
    from datalayer.migrators import coordinator  # noqa: PLC0415
    from datalayer.routing.route import Place  # noqa: PLC0415

    patch.setattr(coordinator, "Place", lambda backend, _attempt=0: Place(backend, 7))
    patch.setattr(MemoryServer, "drop", lambda _self, _place: None)


MUTANTS = [
    Mutant("journal after the scan began", journal_after_the_scan_began, SQL),
    Mutant("journal row outside the transaction", journal_row_outside_the_transaction, SQL),
    Mutant("ungated apply", ungated_apply, OUT),
    Mutant("journal cleared without compare", journal_cleared_without_compare, SQL),
    Mutant("intents cleared without compare", intents_cleared_without_compare, BACK),
    Mutant("no tombstones", no_tombstones, SQL),
    Mutant("hold before all readers acknowledged", hold_before_all_readers_acknowledged, SQL),
    Mutant("only the first coordinator awaits readers", only_the_first_coordinator_awaits_readers, SQL),
    Mutant("writers not awaited", writers_not_awaited, BACK),
    Mutant("armed skipped", armed_skipped, SQL),
    Mutant("no drain", no_drain, OUT),
    Mutant("fence by a state row", fence_by_a_state_row, SQL),
    Mutant("lapsing fence not made permanent", lapsing_fence_not_made_permanent, SQL),
    Mutant("fence dropped at complete", fence_dropped_at_complete, SQL, foreign=True),
    Mutant("no token", no_token, SQL, "matrix", how="zombie"),
    Mutant("eager reverse apply", eager_reverse_apply, OUT),
    Mutant("intent after the write", intent_after_the_write, BACK),
    Mutant("intents not brought to the authority", intents_not_brought_to_the_authority, BACK),
    Mutant("intents not gated", intents_not_gated, OUT),
    Mutant("version from the counter alone", version_from_the_counter_alone, OUT),
    Mutant("checkpoint before the acknowledgement", checkpoint_before_the_acknowledgement, SQL, "matrix"),
    Mutant("an append answered by its intent", append_answered_by_its_intent, BACK),
    Mutant("the phase of an earlier attempt", phase_of_an_earlier_attempt, SQL),
    Mutant("a target without an attempt number", target_without_attempt_number, SQL),
]

__all__ = ["MUTANTS", "Mutant"]
