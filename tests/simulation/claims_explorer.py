"""Every interleaving of a few changes of users over slot groups, run by the real ``ClaimingWriter``.

An actor is one process with one client: it runs some mutations, or a sweep. Its only contact with the world are reads
and swaps of single records, so the code between two of them is a function of what they answered. The explorer searches
the states of the world breadth first and runs the code itself for each new run of answers: a ``Node`` is an actor
after such a run, made once and shared by all states; runs that have just begun an attempt anew, for the same time, are
one node, because an attempt knows nothing of the one before. Searched are

- every order of the steps, of those that one actor has under way at once too;
- with a budget of faults: a crash, an unknown outcome (the swap lands now, later, or never), a refusal by a fence (the
  router runs the whole operation again) or by a dead store.

Each actor has a clock of its own that stands still. That makes equal versions as likely as can be, and one whose clock
is ahead finds every orphan old although its change is under way: a sleeper. Not searched: a read over several groups
that sees them at different instants, unless ``Scenario.torn_reads``; processes that see the stores of an older route.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from unittest.mock import patch
from uuid import UUID

from datalayer.domains.record import Key, Record
from datalayer.domains.users import (
    CreateUser,
    Swap,
    UserMutation,
    check_seen,
    claim_key,
    claim_keys,
    decide,
    to_user,
    wanted_claims,
)
from datalayer.errors import Conflict, DatalayerError, Outcome
from datalayer.routing import claims
from datalayer.routing.claims import GRACE_US, RACES_MAX, ClaimingWriter
from datalayer.types import User
from tests.simulation.claims_actors import OLD, YOUNG, Actor, Answer, Breach, Code, End, Ends, Node, Request, word_of

VALUES = {claim_key(field, value): value for field in ("username", "email") for value in "abefghtxyz"}
"""What the claims of the scenarios are on, as traces name it."""


@dataclass(frozen=True)
class Scenario:
    """What is stored at first, and who does what to it."""

    actors: tuple[Actor, ...]
    users: tuple[Record, ...] = ()
    """Each with its claims."""
    orphans: tuple[Record, ...] = ()
    faults: int = 0
    torn_reads: bool = False
    races: int = RACES_MAX
    """How often a change begins again. Fewer where two can keep each other from finishing for as long as they like."""
    expect: Callable[[Ends], bool] | None = None
    """Must hold of every run without a fault."""


# --- the world ---------------------------------------------------------------------------------------------------------

Tag = tuple[int, int]
"""(actor, try)."""


class Late(NamedTuple):
    """A swap whose caller waits for it no more."""

    tag: Tag
    swap: Swap


class State(NamedTuple):
    """Everything; ``rows`` tells which try wrote each version of each user."""

    stored: frozenset[Record]
    rows: frozenset[tuple[Tag, Record]]
    actors: tuple[Node | None, ...]
    late: frozenset[Late]
    faults: int

    def find(self, key: Key) -> Record | None:
        return next((record for record in self.stored if record.ident == key), None)

    def put(self, tag: Tag, swap: Swap) -> "State | Conflict":
        old = self.find(swap.record.ident)
        try:
            check_seen(swap, old)
        except Conflict as error:
            return error
        if old is not None and swap.record.version <= old.version:
            raise Breach(f"a version that does not rise: {show(swap.record)} over {old.version}")
        rows = self.rows | {(tag, swap.record)} if swap.record.kind == "user" else self.rows
        stored = (self.stored - {old} if old is not None else self.stored) | {swap.record}
        # Versions only rise, so a swap that came too late once is too late for ever.
        late = frozenset(one for one in self.late if one.swap.record.ident != swap.record.ident or _may(one, swap))
        return self._replace(stored=stored, rows=rows, late=late)

    def with_actor(self, at: int, node: Node | None) -> "State":
        return self._replace(actors=(*self.actors[:at], node, *self.actors[at + 1 :]))


def _may(late: Late, swap: Swap) -> bool:
    return late.swap.seen is not None and late.swap.seen >= swap.record.version


def show(record: Record) -> str:
    """A record as a trace names it."""
    if record.kind == "claim":
        held = "free" if record.deleted else "of " + name_of(UUID(bytes=bytes(record.fields[0])))  # type: ignore[arg-type]
        return f"claim {VALUES[record.key]} {held} at {record.version - YOUNG}"
    user = to_user(record)
    values = "deleted" if user.deleted else f"({user.username}, {user.email})"
    return f"row {name_of(user.id)} {values} at {record.version - YOUNG}"


def name_of(user: UUID) -> str:
    """The short name that tests give a user by its last byte."""
    return chr(user.bytes[-1]) if user.bytes[-1] else "nobody"


@dataclass
class Search:
    """What a search has seen."""

    states: int = 0
    schedules_ended: int = 0
    """Complete states: nobody has anything left to do."""
    nodes: int = 0
    words: set[str] = field(default_factory=set)
    complete: bool = True


class Explorer:
    """One search of one scenario."""

    def __init__(self, scenario: Scenario, writer: type[ClaimingWriter] = ClaimingWriter) -> None:
        self.scenario = scenario
        self._codes = [Code(actor, writer, torn=scenario.torn_reads) for actor in scenario.actors]
        self._judged: set[frozenset[Record]] = set()
        self._swept: set[frozenset[Record]] = set()
        self._came_from: dict[State, tuple[State, str] | None] = {}
        self.found = Search()

    def first(self) -> State:
        held = [claim for user in self.scenario.users for claim in claims_of(user)]
        records = frozenset((*self.scenario.users, *held, *self.scenario.orphans))
        roots = tuple(code.root for code in self._codes)
        return State(records, frozenset(), roots, frozenset(), self.scenario.faults)

    def run(self, states_max: int | None = None) -> Search:
        """Search everything, or so many states. Raises Breach with a shortest schedule."""
        with patch.object(claims, "RACES_MAX", self.scenario.races):
            self._search(states_max)
        self.found.states = len(self._came_from)
        self.found.nodes = sum(code.count for code in self._codes)
        return self.found

    def _search(self, states_max: int | None) -> None:
        root = self.first()
        self._came_from[root] = None
        queue = deque([root])
        state = root
        try:
            while queue:
                state = queue.popleft()
                self._judge(state)
                for label, following in self._steps(state):
                    if following not in self._came_from:
                        self._came_from[following] = (state, label)
                        queue.append(following)
                if states_max is not None and len(self._came_from) > states_max:
                    self.found.complete = False
                    break
        except Breach as breach:
            raise Breach(breach.what, self._trace(state)) from None

    def _trace(self, state: State) -> list[str]:
        steps = []
        came = self._came_from[state]
        while came is not None:
            state, label = came
            steps.append(label)
            came = self._came_from[state]
        return steps[::-1]

    # --- steps ------------------------------------------------------------------------------------------------------

    def _steps(self, state: State) -> Iterator[tuple[str, State]]:
        for at, node in enumerate(state.actors):
            if node is None or node.ended:
                continue
            for number, request in node.requests:
                yield from self._request(state, at, number, request)
            if state.faults:
                yield f"p{at} crashes", self._crash(state, at)
        for late in sorted(state.late, key=lambda late: (late.tag, late.swap.record)):
            landed = state._replace(late=state.late - {late})
            done = landed.put(late.tag, late.swap)
            if isinstance(done, State):
                yield f"late, of p{late.tag[0]}: {show(late.swap.record)}", done

    def _request(self, state: State, at: int, number: int, request: Request) -> Iterator[tuple[str, State]]:
        node = state.actors[at]
        assert node is not None, "a crashed actor asks nothing"
        spent = state._replace(faults=state.faults - 1)
        if request.whole is not None:
            yield self._transaction(state, at, number, request.whole)
            return
        if request.swap is None:
            wanted = sorted(r for r in state.stored if _wanted(r, request.keys))
            answer = Answer("ok", tuple(wanted))
            yield (
                f"p{at} reads {', '.join(map(show, wanted)) or 'nothing'}",
                state.with_actor(at, node.after(number, answer)),
            )
            if state.faults:
                yield f"p{at} cannot read", spent.with_actor(at, node.after(number, Answer("unavailable")))
            return
        tag = (at, len(node.ends))
        text = f"p{at} {show(request.swap.record)} (seen {request.swap.seen and request.swap.seen - YOUNG})"
        done = state.put(tag, request.swap)
        if isinstance(done, State):
            yield text, done.with_actor(at, node.after(number, Answer("ok")))
        else:
            answer = Answer("conflict", version=done.current_version or 0)
            yield f"{text}: conflict", state.with_actor(at, node.after(number, answer))
        if state.faults:
            unknown = spent._replace(late=spent.late | {Late(tag, request.swap)})
            yield f"{text}: unknown", unknown.with_actor(at, node.after(number, Answer("unknown")))
            for word in ("fenced", "unavailable"):
                yield f"{text}: {word}", spent.with_actor(at, node.after(number, Answer(word)))

    def _transaction(self, state: State, at: int, number: int, mutation: UserMutation) -> tuple[str, State]:
        node = state.actors[at]
        assert node is not None, "a crashed actor asks nothing"
        now_us = self.scenario.actors[at].now_us
        try:
            records = in_one_database(mutation, state.find, now_us)[1]
        except DatalayerError as error:
            told = word_of(error)
            return f"p{at} is told {told}", state.with_actor(at, node.after(number, Answer("ok", told=told)))
        for record in records:
            old = state.find(record.ident)
            done = state.put((at, len(node.ends)), Swap(record, None if old is None else old.version))
            assert isinstance(done, State), "a transaction is alone"
            state = done
        text = ", ".join(map(show, records))
        return f"p{at} in one: {text}", state.with_actor(at, node.after(number, Answer("ok", records)))

    def _crash(self, state: State, at: int) -> State:
        node = state.actors[at]
        assert node is not None, "nobody crashes twice"
        tag = (at, len(node.ends))
        under_way = {Late(tag, request.swap) for _, request in node.requests if request.swap is not None}
        return state._replace(late=state.late | under_way, faults=state.faults - 1).with_actor(at, None)

    # --- promises ---------------------------------------------------------------------------------------------------

    def _judge(self, state: State) -> None:
        if state.stored not in self._judged:
            self._judged.add(state.stored)
            judge_values(state.stored)
        for at, node in enumerate(state.actors):
            if node is not None and node.ends:
                self._judge_ends(state, at, node.ends)
        if all(node is None or node.ended for node in state.actors):
            self.found.schedules_ended += 1
            if state.stored not in self._swept:
                self._swept.add(state.stored)
                judge_swept(state.stored)
            ends = tuple(() if node is None else node.ends for node in state.actors)
            self.found.words |= {end.word for of_one in ends for end in of_one}
            expect = self.scenario.expect
            if expect is not None and state.faults == self.scenario.faults and not expect(ends):
                raise Breach(f"not expected: {[[end.word for end in of_one] for of_one in ends]}")

    def _judge_ends(self, state: State, at: int, ends: tuple[End, ...]) -> None:
        for number, end in enumerate(ends):
            own = end.mutation.id.bytes
            wrote = [record for tag, record in state.rows if tag == (at, number) and record.key == own]
            if end.outcome is Outcome.NOT_APPLIED and wrote:
                raise Breach(f"p{at} was told {end.word}, but wrote {show(wrote[0])}")
            if len(wrote) > 1:
                raise Breach(f"p{at} wrote its row twice in one operation")
            if end.word == "Unavailable" and not self.scenario.faults and self.scenario.races == RACES_MAX:
                raise Breach(f"p{at} gave up")
            if end.user is not None:
                known = {record for _, record in state.rows} | set(self.scenario.users)
                if end.user not in known:
                    raise Breach(f"p{at} was told {show(end.user)}, which was never stored")
        for record in ends[-1].records:
            stored = state.find(record.ident)
            if stored is None or (stored != record and stored.version <= record.version):
                raise Breach(f"p{at} returned {show(record)}, which no store has")


def _wanted(record: Record, keys: tuple[Key, ...]) -> bool:
    return record.ident in keys if keys else record.kind == "claim" and not record.deleted


def claims_of(user: Record) -> list[Record]:
    """The claims that a stored user holds."""
    return [Record("claim", key, user.version, False, (user.key,)) for key in keys_of(user)]


def keys_of(row: Record) -> tuple[bytes, ...]:
    """The claims that a live user's row asks for."""
    user = to_user(row)
    return claim_keys(user.username, user.email)


def judge_values(stored: frozenset[Record]) -> None:
    """No two live users have one value, and each value of a live user is claimed by it: at every instant."""
    held = {record.key: record.fields[0] for record in stored if record.kind == "claim" and not record.deleted}
    owners: dict[bytes, Record] = {}
    for row in stored:
        if row.kind == "user" and not row.deleted:
            for key in keys_of(row):
                if key in owners:
                    raise Breach(f"two users have one value: {show(row)}, {show(owners[key])}")
                owners[key] = row
    for key, row in owners.items():
        if held.get(key) != row.key:
            raise Breach(f"{show(row)}: {VALUES[key]} is not claimed by it")


def judge_swept(stored: frozenset[Record]) -> None:
    """A sweep long after leaves each claim to a user who has the value, and takes nothing from anybody."""
    sweeper = Scenario((Actor(now_us=OLD + 10 * GRACE_US, sweeps=True),), orphans=tuple(stored))
    explorer = Explorer(sweeper)
    state = explorer.first()
    while (node := state.actors[0]) is not None and not node.ended:
        _, state = next(iter(explorer._steps(state)))
        judge_values(state.stored)
    live = {record.key: keys_of(record) for record in state.stored if record.kind == "user" and not record.deleted}
    for claim in state.stored:
        owner = bytes(claim.fields[0]) if claim.kind == "claim" else b""  # type: ignore[arg-type]
        if owner and not claim.deleted and claim.key not in live.get(owner, ()):
            raise Breach(f"after the sweep an orphan is left: {show(claim)}")


def in_one_database(
    mutation: UserMutation, find: Callable[[Key], Record | None], now_us: int
) -> tuple[User, tuple[Record, ...]]:
    """What a mutation does where row and claims change in one transaction."""
    row = find(("user", mutation.id.bytes))
    stored = None if row is None else to_user(row)
    take, release = wanted_claims(mutation, stored) if stored or isinstance(mutation, CreateUser) else ((), ())
    seen = [row, *(find(("claim", key)) for key in (*take, *release))]
    user, records = decide(mutation, {record.ident: record for record in seen if record is not None}, now_us)
    assert isinstance(user, User), "only a swap gives a record"
    return user, records


def explore(scenario: Scenario, writer: type[ClaimingWriter] = ClaimingWriter, **changes: Any) -> Search:
    """Search a scenario, changed so."""
    states_max = changes.pop("states_max", None)
    return Explorer(replace(scenario, **changes), writer).run(states_max)
