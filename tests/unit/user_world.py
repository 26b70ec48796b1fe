"""A small world of users with unique names, many overlapping calls and unknown fates, that records what a ledger would.

As oracle_world.py: each call takes effect at one instant between its beginning and its end; ``faults`` make the world
break one promise.
"""

import random
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from datalayer.errors import Outcome
from datalayer.ids import id_time_us, uuid7_at
from datalayer.testing.ledger import NO_ID, NO_TOKEN, Event, Flag, Kind, Op
from datalayer.testing.user_board import name_key
from datalayer.testing.user_values import UNCHANGED, USERS, Sets

START_US = 1_700_000_000_000_000
NAMES = 4


@dataclass(frozen=True)
class State:
    version: int
    token: bytes
    names: Sets
    deleted: bool = False


@dataclass
class Call:
    began: int
    effect: int
    ended: int
    op: Op
    key: bytes
    token: bytes
    sets: Sets
    compare: bool = False


@dataclass
class UserWorld:
    rng: random.Random
    faults: frozenset[str] = frozenset()
    states: dict[bytes, list[State]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    due: list[tuple[int, int, Call]] = field(default_factory=list)
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
        expected: int = 0,
        token: bytes = NO_TOKEN,
        flags: Flag = Flag.NONE,
        outcome: Outcome = Outcome.UNKNOWN,
        text: str = "",
        items: int = 0,
    ) -> None:
        if seq is None:
            self.seq += 1
            seq = self.seq
        event = Event("p", kind, op, outcome, flags, items, seq, began, at, key, version, expected, token, text)
        self.events.append(event)

    def now(self, key: bytes) -> State | None:
        found = self.states.get(key)
        return found[-1] if found else None

    def holder(self, name: str, number: int) -> bytes | None:
        for key, states in self.states.items():
            if not states[-1].deleted and getattr(states[-1].names, name) == number:
                return key
        return None

    def taken(self, call: Call) -> str:
        for name in ("username", "email"):
            number = getattr(call.sets, name)
            if number > 0 and self.holder(name, number) not in {None, call.key} and not self.breaks("name_given_twice"):
                return name
        return ""

    def effect(self, call: Call, at: int, expected: int = 0) -> State | str:
        """Apply a write at an instant; the state afterwards, or the class of the error."""
        state = self.now(call.key)
        version = START_US + at if state is None else max(state.version + 2, START_US + at)
        if call.op is Op.APPEND:
            if state is not None:
                return state
            version = id_time_us(UUID(bytes=call.key[16:]))
        elif state is None or state.deleted:
            return "NotFound" if state is None or call.op is Op.EDIT else state
        elif expected and expected != state.version and not self.breaks("compare_ignored"):
            return "Conflict"
        if call.op is Op.DELETE:
            assert state is not None
            return self.keep(call.key, replace(state, version=version + (1 << 36), deleted=True))
        if field_ := self.taken(call):
            return f"AlreadyExists.{field_}"
        names = call.sets
        if state is not None:
            before = state.names
            names = Sets(
                before.username if names.username == UNCHANGED else names.username,
                before.email if names.email == UNCHANGED else names.email,
            )
        return self.keep(call.key, State(version, call.token, names))

    def keep(self, key: bytes, state: State) -> State:
        self.states.setdefault(key, []).append(state)
        return state

    def settle(self, until: int) -> None:
        for item in sorted(self.due, key=lambda item: item[:2]):
            at, _, call = item
            if at <= until:
                self.effect(call, at)
                self.due.remove(item)


def run(seed: int, faults: frozenset[str] = frozenset(), calls: int = 160) -> UserWorld:
    rng = random.Random(seed)
    world = UserWorld(rng, faults)
    keys = [USERS + uuid7_at(START_US - 1000 + n, n).bytes for n in range(6)]
    created: dict[bytes, tuple[bytes, Sets]] = {}
    planned = []
    ops = (Op.APPEND, Op.EDIT, Op.DELETE, Op.GET, Op.HISTORY, Op.LOOK_UP)
    for number in range(calls):
        began = number * 10 + rng.randrange(10)
        ended = began + rng.randrange(2, 120)
        op = rng.choices(ops, (3, 6, 0.5, 5, 2, 5))[0]
        key, token = rng.choice(keys), number.to_bytes(16, "big")
        sets = Sets(rng.choice([UNCHANGED, rng.randint(1, NAMES)]), rng.choice([UNCHANGED, 0, rng.randint(1, NAMES)]))
        if op is Op.APPEND:
            token, sets = created.setdefault(key, (token, Sets(rng.randint(1, NAMES), rng.randint(0, NAMES))))
        compare = rng.random() < 0.4
        planned.append(Call(began, rng.randrange(began + 1, ended), ended, op, key, token, sets, compare))
    for call in sorted(planned, key=lambda call: call.effect):
        world.settle(call.effect)
        _play(world, call)
    world.settle(1 << 60)
    _final(world, keys, 10**6)
    world.events.sort(key=lambda event: (event.began_ns, event.seq, event.kind is not Kind.BEGIN))
    return world


def _play(world: UserWorld, call: Call) -> None:
    if call.op is Op.HISTORY:
        _page(world, call)
    elif call.op is Op.GET:
        _get(world, call.key, call.began, call.ended)
    elif call.op is Op.LOOK_UP:
        name = world.rng.choice(("username", "email"))
        _look_up(world, name, world.rng.randint(1, NAMES), call.began, call.ended)
    else:
        _write(world, call)


def _write(world: UserWorld, call: Call) -> None:
    state = world.now(call.key)
    # What the caller compares with was read before: here at the very last moment, or one change too early.
    expected = 0
    if call.compare and call.op is Op.EDIT and state is not None and not state.deleted:
        states = world.states[call.key]
        expected = world.rng.choice(states[-2:]).version
    about = {"expected": expected, "token": call.token, "text": call.sets.note}
    world.tell(Kind.BEGIN, call.op, call.key, call.began, call.began, **about)  # type: ignore[arg-type]
    seq, fate = world.seq, world.rng.random()

    def tell_end(kind: Kind, **facts: object) -> None:
        world.tell(kind, call.op, call.key, call.began, call.ended, seq=seq, **facts)  # type: ignore[arg-type]

    def refuse(text: str) -> None:
        tell_end(Kind.FAIL, text=text, outcome=Outcome.NOT_APPLIED)

    if fate < 0.1 and not expected:
        if world.rng.random() < 0.6:
            world.due.append((call.effect + world.rng.choice([0, 0, 50, 400]), seq, call))
        if world.rng.random() < 0.5:
            tell_end(Kind.FAIL, text="OutcomeUnknown", flags=Flag.RETRYABLE)
        return
    if fate < 0.17:
        if world.breaks("refused_write_shows"):
            world.effect(call, call.effect)
        tell_end(Kind.FAIL, text="Unavailable", flags=Flag.RETRYABLE, outcome=Outcome.NOT_APPLIED)
        return
    if call.op is not Op.APPEND and state is not None and not state.deleted and world.breaks("write_dropped"):
        tell_end(Kind.ACK, **_pretended(call, state))
        return
    if "refused_for_nothing" in world.faults and _alone(world, call) and world.breaks("refused_for_nothing"):
        refuse("AlreadyExists.username")
        return
    after = world.effect(call, call.effect, expected)
    if isinstance(after, str):
        refuse(after)
        return
    flags = Flag.ABSENT if after.deleted else Flag.NONE
    shown = {"version": 0 if call.op is Op.DELETE else after.version, "token": after.token, "flags": flags}
    text = "" if after.deleted else after.names.note
    tell_end(Kind.ACK, text=text, outcome=Outcome.APPLIED, **shown)


def _pretended(call: Call, state: State) -> dict[str, Any]:
    """The acknowledgement of a write that was not made."""
    if call.op is Op.DELETE:
        return {"version": 0, "outcome": Outcome.APPLIED}
    names = Sets(
        state.names.username if call.sets.username == UNCHANGED else call.sets.username,
        state.names.email if call.sets.email == UNCHANGED else call.sets.email,
    )
    version = max(state.version + 2, START_US + call.effect)
    return {"version": version, "token": call.token, "text": names.note, "outcome": Outcome.APPLIED}


def _alone(world: UserWorld, call: Call) -> bool:
    """Whether nobody else has asked for the username of this write."""
    if call.op is Op.DELETE or call.sets.username <= 0:
        return False
    begun = (event for event in world.events if event.kind is Kind.BEGIN and event.key != call.key)
    return not any(event.text[:16] == call.sets.note[:16] for event in begun)


def _shown(world: UserWorld, key: bytes) -> State | None:
    states = world.states.get(key)
    if not states:
        return None
    state, before = states[-1], [state for state in states[:-1] if not state.deleted]
    if before and not state.deleted and world.breaks("old_value_read"):
        return world.rng.choice(before)
    if state.deleted:
        return before[-1] if before and world.breaks("deleted_read") else None
    if world.breaks("present_not_read"):
        return None
    other = [old.names for old in before if old.names != state.names]
    if other and world.breaks("old_name_in_new_row"):
        return replace(state, names=other[-1])
    return state


def _get(world: UserWorld, key: bytes, began: int, ended: int, flags: Flag = Flag.NONE) -> None:
    state = _shown(world, key)
    if state is None:
        world.tell(Kind.READ, Op.GET, key, began, ended, flags=flags | Flag.ABSENT)
    else:
        shown = {"version": state.version, "token": state.token, "text": state.names.note}
        world.tell(Kind.READ, Op.GET, key, began, ended, flags=flags, **shown)  # type: ignore[arg-type]


def _look_up(world: UserWorld, name: str, number: int, began: int, ended: int, flags: Flag = Flag.NONE) -> None:
    holder = world.holder(name, number)
    if holder is not None and world.breaks("name_not_found"):
        holder = None
    asked = name_key(name, number)
    if holder is None:
        world.tell(Kind.READ, Op.LOOK_UP, asked, began, ended, flags=flags | Flag.ABSENT)
        return
    state = world.states[holder][-1]
    world.tell(Kind.READ, Op.LOOK_UP, asked, began, ended, token=holder[16:], version=state.version, flags=flags)
    shown = {"version": state.version, "token": state.token, "text": state.names.note}
    world.tell(Kind.ITEM, Op.LOOK_UP, holder, began, ended, seq=world.seq, flags=flags, **shown)  # type: ignore[arg-type]


def _page(world: UserWorld, call: Call) -> None:
    rows = [(key, state) for key in sorted(world.states) if (state := _shown(world, key)) is not None]
    limit = world.rng.choice([1, 2, 10])
    flags = Flag.OLDEST_FIRST | (Flag.COMPLETE if len(rows) < limit else Flag.NONE)
    rows = rows[:limit]
    last = rows[-1][0][16:] if rows else NO_ID
    times = (call.began, call.ended)
    world.tell(Kind.PAGE, Op.HISTORY, USERS + NO_ID, *times, token=last, flags=flags, items=len(rows))
    for key, state in rows:
        shown = {"version": state.version, "token": state.token, "text": state.names.note}
        world.tell(Kind.ITEM, Op.HISTORY, key, *times, seq=world.seq, **shown)  # type: ignore[arg-type]


def _final(world: UserWorld, keys: list[bytes], at: int) -> None:
    # A final read shows what is there; losing something is the store's fault, not the reader's.
    faults, world.faults = world.faults, frozenset()
    live = [key for key in keys if (state := world.now(key)) is not None and not state.deleted]
    if "final_missing" in faults and live:
        del world.states[live[0]]
        world.broken += 1
    if "final_name_gone" in faults and live:
        world.states[live[0]].append(replace(world.states[live[0]][-1], names=Sets(99, 99)))
        world.broken += 1
    for number, key in enumerate(keys):
        _get(world, key, at + number * 10, at + number * 10 + 5, Flag.FINAL)
    for number in range(1, NAMES + 1):
        _look_up(world, "username", number, at + 1000, at + 1005, Flag.FINAL)
