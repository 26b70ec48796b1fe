"""An explicit-state model of the protocol as this engine runs it, searched breadth first; every state is judged.

One key; two writers (one phase apart or more), a reader, a replayer, a backfill, late eager applies, foreign deletes as
writes; two coordinators of which either may stop anywhere and wake much later (a planned action carries the token and
the flip of its planner); fences that lapse; operators who choose at every resting point: over, disarm, back, over
again, cancel and a second attempt. Every process may finish a sealed flip: a finisher is a coordinator that took over.

S is transactional; T is so too, or a last-writer store with intents (``lw``). Not modelled: clocks, pages, several
keys, leases (no process is declared dead here). A value is the number of the write that made it, 0 the first one, -1
none. Run: ``python -m tests.simulation.model [NAME] [-v]``.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

S_RULES = ("src", "dual", "armed")


@dataclass(frozen=True)
class Config:
    """The world's size, and the rules; a mutant turns one rule off."""

    begin: str = "src"
    """The phase of the first state: src, armed (copied, journal on) or target."""
    publications: int = 4
    writes: int = 2
    kinds: str = "wd"
    lw: bool = True
    coordinators: int = 2
    late: int = 1
    await_readers: bool = True
    drain: bool = True
    drain_again: bool = True
    seal: bool = True
    fence: bool = True
    token: bool = True
    flip_guard: bool = True
    gated: bool = True
    compare: bool = True
    tombstones: bool = True
    gate: bool = True
    allot_seen: bool = True
    attempt_named: bool = True
    journal_first: bool = True
    open_without_flip: bool = False
    settle_first: bool = False


class State(NamedTuple):
    routes: tuple[tuple[str, int], ...]
    s: tuple[int, int]
    journal: int | None
    journal_on: bool
    fence: str
    s_flip: int
    t: tuple[int, int]
    t_attempt: int
    dirty: tuple[int, int] | None
    """T's journal: (write, version) of the intent, or of the record of a transactional T."""
    gate: str
    t_flip: int
    floor: int
    flips: int
    token: int
    copied: str
    page: tuple[int, int] | None
    coordinators: tuple[Any, ...]
    writers: tuple[Any, ...]
    reader: tuple[Any, ...]
    replayer: tuple[Any, ...] | None
    net: tuple[Any, ...]
    ops: tuple[tuple[str, int], ...]
    acked: int


START = State(
    (("src", 0),), (0, 0), None, False, "open", 0, (-1, -1), 0, None, "sealed", 0, 0, 0, 1, "no", None,
    ((1, None),), ((0, "idle", 0, 0), (0, "idle", 0, 0)), (0, None), None, (), (), 1,
)  # fmt: skip


def start(c: Config) -> State:
    root = START._replace(coordinators=START.coordinators + (((0, None),) if c.coordinators > 1 else ()))
    if c.begin == "src":
        return root
    copied = root._replace(routes=((c.begin, 1),), journal_on=True, t=(0, 0), t_attempt=1, copied="done")
    if c.begin == "target":
        return copied._replace(fence="sealed", s_flip=1, gate="open", t_flip=1, flips=1)
    return copied


def deletes(write: int, ops: tuple[tuple[str, int], ...]) -> bool:
    return write > 0 and ops[write - 1][0] in "dh"


def shows(stored: tuple[int, int], ops: tuple[tuple[str, int], ...]) -> int:
    """The write that a reader sees there; an absent row is the delete, once one has begun."""
    if stored[0] == -1:
        return next((number for number, (kind, _) in enumerate(ops, 1) if kind in "dh"), -1)
    return stored[0]


def missed(shown: int, need: int, ops: tuple[tuple[str, int], ...]) -> int | None:
    """A write of ``need`` that what is shown really precedes: acknowledged before the shown one began is not enough,
    it must have begun after the shown one was acknowledged.
    """
    if shown == -1:
        return 0
    for number, (_, before) in enumerate(ops, 1):
        if need >> number & 1 and number != shown and before >> shown & 1:
            return number
    return None


def put(c: Config, stored: tuple[int, int], record: tuple[int, int], ops: Any) -> tuple[int, int]:
    if c.gated and record[1] <= stored[1]:
        return stored
    if deletes(record[0], ops) and not c.tombstones:
        return (record[0], -1)
    return record


def steps(st: State, c: Config) -> Iterator[tuple[str, State]]:
    yield from _coordinators(st, c)
    yield from _environment(st, c)
    yield from _writers(st, c)
    yield from _copies(st, c)
    yield from _reader(st, c)


# --- coordinators ------------------------------------------------------------------------------------------------------


def _with(st: State, at: int, value: Any) -> tuple[Any, ...]:
    return (*st.coordinators[:at], value, *st.coordinators[at + 1 :])


def _coordinators(st: State, c: Config) -> Iterator[tuple[str, State]]:
    for at, (token, planned) in enumerate(st.coordinators):
        if token != st.token and len(st.coordinators) > 1 and st.token < 3:
            # The lease lapsed: this one takes over with a higher token. What it had planned is forgotten; what the
            # other has planned still comes, any time later.
            yield f"c{at} takes over", st._replace(token=st.token + 1, coordinators=_with(st, at, (st.token + 1, None)))
        if planned is None:
            if token == st.token:
                for action in _plan(st, c):
                    yield f"c{at} plans {action}", st._replace(coordinators=_with(st, at, (token, action)))
        else:
            after = st._replace(coordinators=_with(st, at, (token, None)))
            yield f"c{at} does {planned}", _act(after, c, token, planned)
            yield f"c{at} forgets {planned}", after


def _acknowledged(st: State) -> bool:
    return bool(st.reader[0] == len(st.routes) - 1)


def _plan(st: State, c: Config) -> Iterator[tuple[Any, ...]]:
    phase, attempt = st.routes[-1]
    room = len(st.routes) <= c.publications
    if phase == "src":
        if not st.journal_on and room:
            yield ("arm", attempt + 1)
        elif st.t_attempt == attempt + 1 and room:
            yield ("publish", "dual", attempt + 1)
        elif st.journal_on and _all_serve(st):
            # A cancelled attempt: its journal goes once everybody has left.
            yield ("remove", attempt)
    elif phase == "dual":
        if st.copied == "done" and room:
            yield ("publish", "armed", attempt)
        if room:
            yield ("publish", "src", attempt)
    elif phase in ("armed", "aback"):
        yield from _plan_flip(st, c, phase, attempt)
    elif phase == "target" and room:
        yield ("publish", "aback", attempt)


def _plan_flip(st: State, c: Config, phase: str, attempt: int) -> Iterator[tuple[Any, ...]]:
    fence = st.fence if phase == "armed" else st.gate
    clean = (st.journal is None) if phase == "armed" else (st.dirty is None)
    other = st.gate if phase == "armed" else st.fence
    following = "target" if phase == "armed" else "dual"
    if fence == "open" and other != "open":
        if (_acknowledged(st) or not c.await_readers) and st.flips < 3:
            yield ("fence", phase, st.flips + 1)
        if phase == "armed" and len(st.routes) <= c.publications:
            yield ("publish", "dual", attempt)
    if fence == "lapsing":
        if clean or not c.drain:
            yield ("seal", phase, st.flips)
        yield ("unfence", phase, st.flips)
    if fence == "sealed" or not c.seal:
        if (clean or not c.drain_again) and (fence in {"sealed", "lapsing"}):
            yield ("open", phase, st.flips)
        if other == "open":
            yield ("publish", following, attempt)


def _all_serve(st: State) -> bool:
    newest = len(st.routes) - 1
    return st.reader[0] == newest and all(writer[0] == newest for writer in st.writers)


def _act(st: State, c: Config, token: int, action: tuple[Any, ...]) -> State:
    kind = action[0]
    stale = c.token and token != st.token
    if kind in ("open", "unfence"):
        return (_open_other if kind == "open" else _unfence)(st, c, action[1], action[2])
    if stale:
        return st
    if kind == "arm":
        wiped: dict[str, Any] = {"t": (-1, -1), "t_attempt": action[1]} if c.attempt_named else {"t_attempt": action[1]}
        return st._replace(
            journal_on=True, journal=None, gate="sealed", dirty=None, copied="no", page=None, fence="open", **wiped
        )
    if kind == "remove":
        return st._replace(journal_on=False, journal=None, dirty=None)
    if kind == "publish":
        return _publish(st, action[1], action[2])
    return _fence(st, c, kind, action[1], action[2])


def _publish(st: State, phase: str, attempt: int) -> State:
    # The engine reads the routing, then publishes the next one under its token: in between nobody else may publish.
    return st._replace(routes=(*st.routes, (phase, attempt)))


def changed(st: State, **named: Any) -> State:
    """With fields whose names are computed."""
    return st._replace(**named)


def _fence(st: State, c: Config, kind: str, phase: str, flip: int) -> State:
    name, number = ("fence", "s_flip") if phase == "armed" else ("gate", "t_flip")
    now = getattr(st, name)
    if kind == "fence":
        if now == "sealed" or flip < getattr(st, number):
            return st
        return changed(st, flips=max(st.flips, flip), **{name: "lapsing", number: flip})
    if now == "lapsing" and flip == getattr(st, number):
        return changed(st, **{name: "sealed" if c.seal else "lapsing"})
    return st


def _open_other(st: State, c: Config, phase: str, flip: int) -> State:
    name, number = ("gate", "t_flip") if phase == "armed" else ("fence", "s_flip")
    if c.flip_guard and flip < getattr(st, number):
        return st
    floor = max(st.floor, st.s[1], st.t[1]) if phase == "armed" else st.floor
    return changed(st, **{name: "open", number: max(flip, getattr(st, number)), "floor": floor})


def _unfence(st: State, c: Config, phase: str, flip: int) -> State:
    """A coordinator steps back; without a token: the flip number alone protects later fences."""
    name, number = ("fence", "s_flip") if phase == "armed" else ("gate", "t_flip")
    if c.flip_guard and flip < getattr(st, number):
        return st
    if getattr(st, name) == "sealed" and not c.open_without_flip:
        return st
    return changed(st, **{name: "open"})


def _environment(st: State, c: Config) -> Iterator[tuple[str, State]]:
    if st.fence == "lapsing":
        yield "S's fence lapses", st._replace(fence="open")
    if st.gate == "lapsing":
        yield "T's fence lapses", st._replace(gate="open")
    if "h" in c.kinds and len(st.ops) < c.writes and st.fence == "open" and not deletes(st.s[0], st.ops):
        # A program that knows no versions: at rest its DELETE leaves nothing, with the journal on a tombstone.
        number = len(st.ops) + 1
        version = st.s[1] + 1 if st.journal_on else -1
        yield (
            f"foreign DELETE {number}",
            st._replace(
                s=(number, version),
                journal=version if st.journal_on else st.journal,
                ops=(*st.ops, ("h", st.acked)),
                acked=st.acked | 1 << number,
            ),
        )


# --- writers -----------------------------------------------------------------------------------------------------------


def _writers(st: State, c: Config) -> Iterator[tuple[str, State]]:
    newest = len(st.routes) - 1
    for at, (known, pc, write, version) in enumerate(st.writers):

        def become(value: tuple[int, str, int, int], at: int = at, **more: Any) -> State:
            return st._replace(writers=tuple(sorted((*st.writers[:at], value, *st.writers[at + 1 :]))), **more)

        if known != newest and pc in ("idle", "begun"):
            yield f"w{at} hears {st.routes[-1]}", become((newest, pc, write, version))
        if pc == "idle" and len(st.ops) < c.writes:
            for kind in c.kinds.replace("h", ""):
                begun = (known, "begun", len(st.ops) + 1, 0)
                yield f"w{at} begins {kind}{len(st.ops) + 1}", become(begun, ops=(*st.ops, (kind, st.acked)))
        elif pc == "begun":
            yield from _execute(st, c, become, f"w{at}", (known, write))
        elif pc == "admitted":
            landed = put(c, st.t, (write, version), st.ops)
            yield f"w{at} writes T", become((known, "done", write, version), t=landed)
        elif pc == "done":
            yield f"w{at} is answered", become((known, "idle", 0, 0), acked=st.acked | 1 << write)
        if pc in ("admitted", "done"):
            yield f"w{at} crashes", become((newest, "idle", 0, 0))


def _execute(st: State, c: Config, become: Any, who: str, begun: tuple[int, int]) -> Iterator[tuple[str, State]]:
    known, write = begun
    phase, attempt = st.routes[known]
    if phase in S_RULES:
        if st.fence != "open" and c.fence:
            return
        if deletes(st.s[0], st.ops):
            yield f"{who} is refused: deleted", become((known, "idle", 0, 0))
            return
        version = st.s[1] + 1
        more: dict[str, Any] = {"s": (write, version), "journal": version if st.journal_on else st.journal}
        if phase in ("dual", "armed") and len(st.net) < c.late:
            more["net"] = (*st.net, ("apply", write, version, attempt))
        yield f"{who} commits on S", become((known, "done", write, version), **more)
        return
    if attempt != st.t_attempt or (st.gate != "open" and c.gate):
        return
    pending = st.dirty[0] if st.dirty else 0
    if deletes(st.t[0], st.ops) or deletes(pending, st.ops):
        yield f"{who} is refused: deleted", become((known, "idle", 0, 0))
        return
    above = max(st.t[1], st.dirty[1] if st.dirty else 0, st.floor) if c.allot_seen else 0
    if c.lw:
        yield f"{who} is admitted", become((known, "admitted", write, above + 1), dirty=(write, above + 1))
    else:
        yield (
            f"{who} commits on T",
            become((known, "done", write, above + 1), t=(write, above + 1), dirty=(write, above + 1)),
        )


# --- copies ------------------------------------------------------------------------------------------------------------


def _copies(st: State, c: Config) -> Iterator[tuple[str, State]]:
    phase, attempt = st.routes[-1]
    if phase == "dual" and st.copied != "done":
        if st.page is None:
            gone = st.s[1] == -1
            yield "backfill reads", st._replace(page=None if gone else st.s, copied="done" if gone else st.copied)
        else:
            yield "backfill puts", st._replace(t=put(c, st.t, st.page, st.ops), page=None, copied="done")
    for message in st.net:
        rest = tuple(m for m in st.net if m is not message)
        if message[0] == "settle":
            clear = st.journal is not None and (st.journal == message[2] or not c.compare)
            yield "late settle", st._replace(net=rest, journal=None if clear else st.journal)
        elif message[3] != st.t_attempt and c.attempt_named:
            yield "late apply lands nowhere", st._replace(net=rest)
        else:
            landed = put(c, st.t, (message[1], message[2]), st.ops)
            yield "late apply", st._replace(net=(*rest, ("settle", *message[1:])), t=landed)
    yield from _replay(st, c, phase, attempt)


def _replay(st: State, c: Config, phase: str, attempt: int) -> Iterator[tuple[str, State]]:
    if st.replayer is None:
        if st.journal is not None and phase in ("dual", "armed"):
            cleared = st._replace(journal=None) if c.settle_first else st
            yield "replayer takes", cleared._replace(replayer=("T", *st.s, attempt))
        if st.dirty is not None and (phase in ("target", "aback") or st.gate == "open"):
            # A sealed or opened T of the attempt: a finisher may drain either side.
            yield "replayer takes an intent", st._replace(replayer=("T-S", *st.dirty, attempt))
        return
    where, write, version, of = st.replayer
    ended = of != st.t_attempt and c.attempt_named
    if ended:
        yield "replay lands nowhere", st._replace(replayer=None)
    elif where == "T":
        yield (
            "replayer applies",
            st._replace(t=put(c, st.t, (write, version), st.ops), replayer=("settle", write, version, of)),
        )
    elif where == "settle":
        clear = st.journal is not None and (st.journal == version or not c.compare)
        yield "replayer settles", st._replace(journal=None if clear else st.journal, replayer=None)
    elif where == "T-S":
        landed = put(c, st.t, (write, version), st.ops)
        yield "replayer brings it to T", st._replace(t=landed, replayer=("S", write, version, of))
    elif where == "S":
        if not st.journal_on:
            yield "reverse replay lands nowhere", st._replace(replayer=None)
        else:
            landed = put(c, st.s, (write, version), st.ops)
            yield "replayer brings it to S", st._replace(s=landed, replayer=("settle-T", write, version, of))
    else:
        clear = st.dirty is not None and (st.dirty[1] == version or not c.compare)
        yield "replayer settles the intent", st._replace(dirty=None if clear else st.dirty, replayer=None)


# --- the reader --------------------------------------------------------------------------------------------------------


def _reader(st: State, c: Config) -> Iterator[tuple[str, State]]:
    known, op = st.reader
    newest = len(st.routes) - 1
    if known != newest:
        # It acknowledges as soon as new reads use the epoch; an older one goes on.
        yield "reader hears", st._replace(reader=(newest, op))
    if op is None:
        phase, attempt = st.routes[known]
        looks = phase in ("armed", "aback") and c.journal_first
        where = "look-" + phase if looks else ("S" if phase in S_RULES else "T")
        yield "a read begins", st._replace(reader=(known, (where, st.acked, attempt)))
        return
    where, need, attempt = op
    again = st._replace(reader=(known, None))
    if where == "look-armed":
        if not st.journal_on or (attempt != st.t_attempt and c.attempt_named):
            yield "finds no journal: stale route", again
        else:
            yield "looks", st._replace(reader=(known, ("T" if st.journal is None else "S", need, attempt)))
    elif where == "look-aback":
        yield "looks", st._replace(reader=(known, ("S" if st.dirty is None else "T", need, attempt)))
    elif where == "T" and attempt != st.t_attempt and c.attempt_named:
        yield "finds no target", again
    else:
        shown = st.s if where == "S" else st.t
        miss = missed(shows(shown, st.ops), need, st.ops)
        yield f"reads {where}", st._replace(reader=(known, None if miss is None else ("BAD", miss, 0)))


# --- judgement ---------------------------------------------------------------------------------------------------------


def wrong(st: State, c: Config) -> str | None:
    """The promise that a state breaks, or None."""
    if st.reader[1] is not None and st.reader[1][0] == "BAD":
        return f"I3: a read misses write {st.reader[1][1]}"
    phase, _ = st.routes[-1]
    side = st.s if phase in S_RULES else st.t
    if not (phase == "armed" and st.fence == "sealed" and st.gate == "open") and not _opened_back(st, phase):
        shown = shows(side, st.ops)
        miss = missed(shown, st.acked, st.ops)
        if miss is not None:
            return f"I1: the authority of {phase} shows {shown}, write {miss} is lost"
        for number, (kind, _) in enumerate(st.ops, 1):
            if kind in "dh" and st.acked >> number & 1 and not deletes(shown, st.ops):
                return f"I2: the acknowledged delete {number} is undone by {shown}"
    if st.journal_on and st.fence == "open" and st.gate == "open" and phase != "src":
        return f"I6: both sides take writes in {phase}"
    quiet = st.journal is None and st.dirty is None and st.replayer is None and not st.net
    copied = phase in ("armed", "target", "aback") or (phase == "dual" and st.copied == "done")
    settled = not any(pc == "admitted" for _, pc, _, _ in st.writers)
    ours, theirs = shows(st.s, st.ops), shows(st.t, st.ops)
    if quiet and copied and settled and ours != theirs and not (deletes(ours, st.ops) and deletes(theirs, st.ops)):
        return f"I5: quiet in {phase}, S shows {st.s}, T {st.t}"
    return None


def _opened_back(st: State, phase: str) -> bool:
    """Between opening the other side and publishing it: the other one takes writes already."""
    return phase == "aback" and st.gate == "sealed" and st.fence == "open"


class Result(NamedTuple):
    states: int
    trace: list[str] | None
    full: bool
    seconds: float
    phases: frozenset[tuple[str, ...]]


def search(c: Config, *, states_max: int = 1_000_000, seconds_max: float = 1e9) -> Result:
    """Breadth first, so that a trace is a shortest one. ``full``: nothing was left to look at."""
    root = start(c)
    came: dict[State, tuple[str, State] | None] = {root: None}
    queue = deque([root])
    began = time.process_time()
    paths: set[tuple[str, ...]] = set()
    while queue:
        st = queue.popleft()
        paths.add(tuple(phase for phase, _ in st.routes))
        broken = wrong(st, c)
        if broken is not None:
            trace = [broken]
            while (back := came[st]) is not None:
                label, st = back
                trace.append(label)
            return Result(len(came), trace[::-1], False, time.process_time() - began, frozenset(paths))
        if len(came) >= states_max or time.process_time() - began > seconds_max:
            return Result(len(came), None, False, time.process_time() - began, frozenset(paths))
        for label, after in steps(st, c):
            if after not in came:
                came[after] = (label, st)
                queue.append(after)
    return Result(len(came), None, True, time.process_time() - began, frozenset(paths))


RUNS = {
    "over and back, one coordinator": Config(publications=5, writes=1, coordinators=1),
    "over, two writes, one coordinator": Config(publications=3, coordinators=1),
    "over, cancel, again, zombies": Config(publications=4, writes=1, kinds="w", late=0),
    "over, cancel, again, foreign deletes": Config(publications=4, writes=2, kinds="wh", coordinators=1),
    "the flip, two writes, zombies": Config(begin="armed", publications=1),
    "the way back, two writes, zombies": Config(begin="target", publications=2),
    "there and back and there, zombies": Config(begin="armed", publications=4, writes=1, kinds="w", late=0),
    "the way back from a transactional target": Config(begin="target", publications=2, lw=False),
}
COPY = Config(publications=3, coordinators=1, kinds="w")
FLIP = Config(begin="armed", publications=2, writes=1, kinds="w", late=0)
BACK = Config(begin="target", publications=3, writes=2, kinds="w", late=0, coordinators=1)
MUTANTS = {
    "readers not awaited": replace(COPY, await_readers=False, writes=1),
    "no drain": replace(FLIP, drain=False, drain_again=False),
    "no second drain after the permanent fence": replace(FLIP, drain=False, drain_again=False, coordinators=1),
    "the fence never becomes permanent": replace(FLIP, seal=False),
    "no fence": replace(FLIP, fence=False),
    "no flip number at open and step back": replace(FLIP, flip_guard=False, open_without_flip=True),
    "no token": replace(COPY, token=False, coordinators=2, writes=1, late=0),
    "ungated apply": replace(COPY, gated=False),
    "journal cleared without compare": replace(COPY, compare=False),
    "no tombstones": replace(COPY, tombstones=False, kinds="wd"),
    "intents not gated": replace(BACK, gate=False),
    "version from a counter alone": replace(BACK, allot_seen=False),
    "armed does not look into the journal": replace(FLIP, journal_first=False, coordinators=1),
    "settled before applied": replace(COPY, settle_first=True, writes=1),
    "attempts share the target": replace(COPY, attempt_named=False, publications=4, kinds="h", writes=1),
}


def main() -> None:
    picked = [name for name in sys.argv[1:] if not name.startswith("-")]
    for name, config in {**RUNS, **MUTANTS}.items():
        if picked and not any(part in name for part in picked):
            continue
        found = search(config)
        say = found.trace[-1] if found.trace else ("full" if found.full else "limit")
        print(f"{name:45s} {found.states:9d} states {found.seconds:6.1f} s  {say}", flush=True)
        if found.trace and "-v" in sys.argv:
            print("\n".join(f"      {line}" for line in found.trace))


if __name__ == "__main__":
    main()
