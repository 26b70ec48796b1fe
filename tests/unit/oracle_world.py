"""A small world of one linearizable map, many overlapping calls and unknown fates, that records what a ledger would.

Each call has a beginning, an instant at which it takes effect, and an end; an attempt of unknown fate may take effect
long after its caller gave up. ``faults`` make the world break one promise.
"""

import random
from dataclasses import dataclass, field
from uuid import UUID

from datalayer.errors import Outcome
from datalayer.ids import id_time_us, uuid7_at
from datalayer.testing.ledger import NO_ID, NO_TOKEN, Event, Flag, Kind, Op

ROOM = bytes(15) + b"\1"
FINAL_LEAD = 1 << 36
START_US = 1_700_000_000_000_000


@dataclass
class State:
    version: int
    token: bytes
    deleted: bool = False
    before: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass
class World:
    rng: random.Random
    faults: frozenset[str] = frozenset()
    states: dict[bytes, State] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    due: list[tuple[int, int, Op, bytes, bytes]] = field(default_factory=list)
    seq: int = 0
    broken: int = 0

    def breaks(self, fault: str) -> bool:
        hit = fault in self.faults and self.rng.random() < 0.3
        self.broken += hit
        return hit

    def tell(
        self,
        kind: Kind,
        op: Op,
        key: bytes,
        began: int,
        at: int,
        *,
        seq: int | None = None,
        version: int = 0,
        token: bytes = NO_TOKEN,
        flags: Flag = Flag.NONE,
        outcome: Outcome = Outcome.UNKNOWN,
        text: str = "",
        items: int = 0,
    ) -> None:
        if seq is None:
            self.seq += 1
            seq = self.seq
        self.events.append(Event("p", kind, op, outcome, flags, items, seq, began, at, key, version, 0, token, text))

    def effect(self, op: Op, key: bytes, token: bytes, at: int) -> State | None:
        """Apply a write at an instant; None: NotFound."""
        state = self.states.get(key)
        if op is Op.APPEND:
            if state is None:
                self.states[key] = state = State(id_time_us(UUID(bytes=key[16:])), token)
            return state
        if state is None or (state.deleted and op is Op.EDIT and not self.breaks("edit_after_delete")):
            return None
        if op is Op.DELETE:
            if not state.deleted:
                state.before.append((state.version, state.token))
                state.version, state.deleted = max(state.version + 2, START_US + at) + FINAL_LEAD, True
            return state
        state.before.append((state.version, state.token))
        state.version, state.token, state.deleted = max(state.version + 2, START_US + at), token, False
        return state

    def settle(self, until: int) -> None:
        """Late effects of attempts whose callers gave up."""
        for item in sorted(self.due):
            at, _, op, key, token = item
            if at <= until:
                self.effect(op, key, token, at)
                self.due.remove(item)


@dataclass
class Call:
    began: int
    effect: int
    ended: int
    op: Op
    key: bytes
    token: bytes


def run(seed: int, faults: frozenset[str] = frozenset(), calls: int = 120) -> World:
    rng = random.Random(seed)
    world = World(rng, faults)
    keys = [ROOM + uuid7_at(START_US - 1000 + n, n).bytes for n in range(4)]
    planned = []
    appended: dict[bytes, bytes] = {}
    for number in range(calls):
        began = number * 10 + rng.randrange(10)
        ended = began + rng.randrange(2, 120)
        op = rng.choices((Op.APPEND, Op.EDIT, Op.DELETE, Op.GET, Op.HISTORY), (3, 6, 0.6, 6, 3))[0]
        key = rng.choice(keys)
        token = number.to_bytes(16, "big")
        if op is Op.APPEND:
            token = appended.setdefault(key, token)
        planned.append(Call(began, rng.randrange(began + 1, ended), ended, op, key, token))
    # Effects in their own order, so that calls overlap in every way.
    for call in sorted(planned, key=lambda call: call.effect):
        world.settle(call.effect)
        _play(world, call)
    world.settle(1 << 60)
    _final(world, keys, 10**6)
    # A ledger holds each process's records in the order written: a beginning comes before its end.
    world.events.sort(key=lambda event: (event.began_ns, event.seq, event.kind is not Kind.BEGIN))
    return world


def _play(world: World, call: Call) -> None:
    if call.op is Op.HISTORY:
        _page(world, call)
    elif call.op is Op.GET:
        _get(world, call.key, call.began, call.ended, Flag.NONE)
    else:
        _write(world, call)


def _write(world: World, call: Call) -> None:
    world.tell(Kind.BEGIN, call.op, call.key, call.began, call.began, token=call.token)
    seq = world.seq
    fate = world.rng.random()

    def tell_end(kind: Kind, **facts: object) -> None:
        world.tell(kind, call.op, call.key, call.began, call.ended, seq=seq, **facts)  # type: ignore[arg-type]

    if fate < 0.12:  # the process is killed, or the caller times out; the write happens now, later or never
        if world.rng.random() < 0.6:
            late = call.effect + world.rng.choice([0, 0, 50, 400])
            world.due.append((late, seq, call.op, call.key, call.token))
        if world.rng.random() < 0.5:
            tell_end(Kind.FAIL, text="OutcomeUnknown", flags=Flag.RETRYABLE)
        return
    if fate < 0.2:
        if world.breaks("refused_write_shows"):
            world.effect(call.op, call.key, call.token, call.effect)
        tell_end(Kind.FAIL, text="Unavailable", flags=Flag.RETRYABLE, outcome=Outcome.NOT_APPLIED)
        return
    if call.op is not Op.APPEND and world.breaks("write_dropped"):
        state = world.states.get(call.key)
        if state is not None and not state.deleted:
            version = max(state.version + 2, START_US + call.effect)
            tell_end(Kind.ACK, version=version, token=call.token, outcome=Outcome.APPLIED)
            return
    state = world.effect(call.op, call.key, call.token, call.effect)
    if state is None:
        tell_end(Kind.FAIL, text="NotFound", outcome=Outcome.NOT_APPLIED)
    else:
        flags = Flag.ABSENT if state.deleted else Flag.NONE
        tell_end(Kind.ACK, version=state.version, token=state.token, flags=flags, outcome=Outcome.APPLIED)


def _shown(world: World, key: bytes) -> tuple[int, bytes] | None:
    state = world.states.get(key)
    if state is None:
        return None
    if state.before and world.breaks("old_value_read"):
        return world.rng.choice(state.before)
    if state.deleted:
        return state.before[-1] if world.breaks("deleted_read") else None
    if world.breaks("present_not_read"):
        return None
    if world.breaks("torn_read") and state.before:
        return (state.before[-1][0], state.token)
    return (state.version, state.token)


def _get(world: World, key: bytes, began: int, ended: int, flags: Flag) -> None:
    shown = _shown(world, key)
    if shown is None:
        world.tell(Kind.READ, Op.GET, key, began, ended, flags=flags | Flag.ABSENT)
    else:
        world.tell(Kind.READ, Op.GET, key, began, ended, version=shown[0], token=shown[1], flags=flags)


def _page(world: World, call: Call, flags: Flag = Flag.NONE) -> None:
    oldest_first = world.rng.random() < 0.3
    rows = [(key, shown) for key in sorted(world.states) if (shown := _shown(world, key)) is not None]
    if not oldest_first:
        rows.reverse()
    limit = world.rng.choice([1, 2, 10])
    complete = len(rows) < limit
    rows = rows[:limit]
    if len(rows) > 1 and world.breaks("page_disordered"):
        rows.reverse()
    flags |= Flag.COMPLETE if complete else Flag.NONE
    flags |= Flag.OLDEST_FIRST if oldest_first else Flag.NONE
    last = rows[-1][0][16:] if rows else NO_ID
    times = (call.began, call.ended)
    world.tell(Kind.PAGE, Op.HISTORY, ROOM + NO_ID, *times, token=last, flags=flags, items=len(rows))
    for key, (version, token) in rows:
        world.tell(Kind.ITEM, Op.HISTORY, key, *times, seq=world.seq, version=version, token=token)


def _final(world: World, keys: list[bytes], at: int) -> None:
    # A final read shows what is there; losing something is the store's fault, not the reader's.
    faults, world.faults = world.faults, frozenset()
    for number, key in enumerate(keys):
        state = world.states.get(key)
        if state is not None and state.before and "final_reverted" in faults:
            state.version, state.token = state.before[0]
            state.deleted = False
            world.broken += 1
        if state is not None and "final_missing" in faults and not state.deleted:
            del world.states[key]
            world.broken += 1
        _get(world, key, at + number * 10, at + number * 10 + 5, Flag.FINAL)
