"""Unique values over slot groups: every interleaving of the real code, its mistakes, and it beside one database."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalayer.clock import Deadline, SystemClock
from datalayer.control.memory_server import MemoryControlServer
from datalayer.domains.record import Key, Record
from datalayer.domains.users import (
    CreateUser,
    DeleteUser,
    Swap,
    UpdateUser,
    UserMutation,
    claim_keys,
    decide,
    to_record,
)
from datalayer.errors import AlreadyExists, DatalayerError
from datalayer.ids import IdSource, uuid7_at
from datalayer.routing.claims import GRACE_US, ClaimingWriter
from datalayer.settings import BackendUrl
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.stores.sqlite.backend import create_backend
from tests.conftest import TIER
from tests.contract.sharded_place import ShardedClient
from tests.simulation.claims_actors import OLD, YOUNG, Breach
from tests.simulation.claims_explorer import claims_of, explore, in_one_database, judge_swept, judge_values
from tests.simulation.claims_mutants import MUTANTS, GivesBackWhatItLost
from tests.simulation.claims_scenarios import IN_ONE_DATABASE, PAIRS, SLEEPERS, SWEEPS, TRIOS, A, B, C, orphan, user

SCENARIOS = {**PAIRS, **SLEEPERS, **SWEEPS, **TRIOS}
STATES_MAX = {"check": 1_500, "test": 8_000, "deep": 400_000}[TIER]
"""Breadth first: what a search leaves out are the longest schedules."""
CORE = (
    "two creates of one name",
    "two creates of one name, p0 sleeps",
    "create against rename to it",
    "rename away against create",
    "two renames of one user",
    "delete against rename",
    "delete and create again against create",
    "two compare-and-sets of one version",
    "an orphan's owner wants it",
    "two creates of one name, during a sweep by a fast clock",
)
WITH_A_FAULT = CORE if TIER == "check" else tuple(SCENARIOS)
STORES = ("memory",) if TIER == "check" else ("memory", "sqlite")
KILLERS = {
    "GivesBackWhatItHeld": ("one create in two processes", 0),
    "GivesBackWhatItLost": ("two creates of one name", 0),
    "GivesBackWhatItMayHaveTaken": ("two creates of one name", 1),
    "GivesBackAfterAnUnknownRow": ("two creates of one name", 1),
    "TakesAnUnknownRowForWritten": ("two creates of one name", 1),
    "ReadsOldClaimsAfterTheRow": ("there and back", 0),
    "TakesOrphansAsTheyAre": ("two creates of one name, p0 sleeps", 0),
    "TakesOrphansOfTheAbsent": ("two creates of one name, p0 sleeps", 0),
    "TakesOrphansOfThePresent": ("create against rename to it, p1 sleeps", 0),
    "StopsBlindly": ("two creates of one name, p0 sleeps", 0),
    "WritesTheRowFirst": ("two creates of one name", 0),
    "ReleasesBeforeTheRow": ("rename away against create", 0),
    "TrustsItsOwnClaims": ("one create in two processes", 0),
    "WritesOverAnyRow": ("there and back", 0),
    "TakesAllAtOnce": ("two creates of one name and address", 0),
    "ReturnsWhatItCouldNotRelease": ("there and back", 0),
    "KeepsWhatItTook": ("what was refused leaves the name free", 0),
    "HoldsNobodyForBusy": ("two creates of one name", 0),
    "SweepsBlindly": ("rename away against create, during a sweep by a fast clock", 0),
}


# --- every interleaving ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_order_keeps_values_unique(name: str) -> None:
    explore(SCENARIOS[name], states_max=STATES_MAX)


@pytest.mark.parametrize("name", WITH_A_FAULT)
def test_every_order_with_a_fault_keeps_values_unique(name: str) -> None:
    explore(SCENARIOS[name], faults=1, states_max=STATES_MAX)


@pytest.mark.deep
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_order_with_two_faults_keeps_values_unique(name: str) -> None:
    explore(SCENARIOS[name], faults=2, states_max=30_000)


@pytest.mark.deep
@pytest.mark.parametrize("name", PAIRS)
def test_reads_of_several_groups_at_different_instants_keep_values_unique(name: str) -> None:
    explore(PAIRS[name], faults=1, torn_reads=True, states_max=100_000)


@pytest.mark.parametrize("name", IN_ONE_DATABASE)
def test_every_order_of_transactions_and_a_sweep_keeps_values_unique(name: str) -> None:
    explore(IN_ONE_DATABASE[name], faults=1)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mistake_is_noticed(mutant: type[ClaimingWriter]) -> None:
    name, faults = KILLERS[mutant.__name__]
    with pytest.raises(Breach) as breach:
        explore(SCENARIOS[name], mutant, faults=faults, races=4)
    assert breach.value.trace


def test_two_processes_that_choose_one_version_do_not_free_each_others_claim() -> None:
    scenario = PAIRS["two creates of one name"]
    with pytest.raises(Breach, match="x is not claimed by it") as breach:
        explore(scenario, GivesBackWhatItLost)
    assert breach.value.trace == (
        "p0 reads nothing",
        "p1 reads nothing",
        "p0 claim x of A at 0 (seen None)",
        "p0 row A (x, None) at -5000000 (seen None)",
        "p1 claim x of B at 0 (seen None): conflict",
        "p1 claim x free at 2 (seen 0)",
    )
    explore(scenario)


def test_a_search_ends_in_every_kind_of_answer() -> None:
    found = explore(PAIRS["two creates of one name"], faults=1)
    assert found.complete
    assert found.states > 400
    assert found.words == {"done", "AlreadyExists username", "Fenced", "OutcomeUnknown", "Unavailable"}


def test_the_judges_notice_what_they_are_for() -> None:
    one, other = user(A, "x"), user(B, "X")
    held = claims_of(one)
    with pytest.raises(Breach, match="two users have one value"):
        judge_values(frozenset((one, other, *held, *(claim._replace(fields=(B.bytes,)) for claim in held))))
    with pytest.raises(Breach, match="x is not claimed by it"):
        judge_values(frozenset((one,)))
    with pytest.raises(Breach, match="an orphan is left"):
        judge_swept(frozenset((orphan(A, "y")._replace(version=OLD + 10 * GRACE_US),)))
    judge_swept(frozenset((one, *held, orphan(A, "y"), orphan(C, "e", "email"))))


# --- beside one database -----------------------------------------------------------------------------------------------


class Shelf:
    """All records in one dictionary."""

    def __init__(self) -> None:
        self.records: dict[Key, Record] = {}

    async def read(self, keys: Any, deadline: Deadline) -> dict[Key, Record]:
        return {key: self.records[key] for key in keys if key in self.records}

    async def swap(self, swap: Swap, deadline: Deadline) -> Record:
        decide(swap, self.records, 0)
        self.records[swap.record.ident] = swap.record
        return swap.record


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.at_us = YOUNG

    def now_us(self) -> int:
        return self.at_us

    def monotonic(self) -> float:
        return self.at_us / 1e6

    boottime = monotonic


IDS = [uuid7_at(YOUNG - 1_000 * number, number) for number in range(4)]
_names = st.sampled_from(["bob", "Bob ", "ＢＯＢ", "eve", "Straße", "STRASSE", "zoë", "zoe\u0308"])
_emails = st.sampled_from([None, "b@x", "B@X", "e@x", "z@x"])
_expected = st.sampled_from([None, None, None, 0, "current"])
_changes = st.fixed_dictionaries(
    {}, optional={"username": _names, "email": _emails, "display_name": st.sampled_from(["", "n"])}
)


@st.composite
def _mutations(draw: st.DrawFn) -> tuple[str, UUID, dict[str, Any], Any, int]:
    """(kind, user, values, expected version, how far the clock moves)."""
    kind = draw(st.sampled_from(["create", "create", "update", "update", "delete"]))
    values: dict[str, Any] = {}
    if kind == "create":
        values = {"username": draw(_names), "email": draw(_emails)}
    elif kind == "update":
        values = draw(_changes)
    return kind, draw(st.sampled_from(IDS)), values, draw(_expected), draw(st.sampled_from([0, 0, 1, 1_000, -5_000]))


def _mutation(drawn: tuple[str, UUID, dict[str, Any], Any, int], records: dict[Key, Record]) -> UserMutation:
    kind, who, values, expected, _ = drawn
    if kind == "create":
        return CreateUser(who, **values)
    row = records.get(("user", who.bytes))
    version = (0 if row is None else row.version) if expected == "current" else expected
    return UpdateUser(who, tuple(values.items()), version) if kind == "update" else DeleteUser(who, version)


def _told(error: DatalayerError) -> tuple[Any, ...]:
    return type(error), str(error), getattr(error, "field", None), getattr(error, "current_version", None)


@settings(max_examples={"check": 30, "test": 300, "deep": 3_000}[TIER])
@given(st.lists(_mutations(), max_size=25))
def test_in_a_quiet_world_it_is_what_one_database_is(drawn: list[Any]) -> None:
    shelf, clock = Shelf(), Hands()
    one: dict[Key, Record] = {}
    writer = ClaimingWriter(shelf, clock)

    async def run() -> None:
        for each in drawn:
            clock.at_us += each[-1]
            mutation = _mutation(each, one)
            expected: Any
            try:
                expected = in_one_database(mutation, one.get, clock.now_us())
                one.update({record.ident: record for record in expected[1]})
            except DatalayerError as error:
                expected = _told(error)
            answer: Any
            try:
                found = await writer.execute(mutation, Deadline(clock, 5.0))
                answer = (found.entity, found.records)
            except DatalayerError as error:
                answer = _told(error)
            assert answer == expected
            assert shelf.records == one

    asyncio.run(run())
    judge_values(frozenset(one.values()))


# --- many at once, on real stores --------------------------------------------------------------------------------------

RACERS = 64


async def _race(clients: list[ShardedClient], *, email: str | None) -> None:
    clock = SystemClock()
    ids = IdSource(clock)
    stores = [client.store("users", 0) for client in clients]
    await stores[0].create()
    for client in clients:
        client.meet()

    async def one(number: int) -> UUID | str:
        who = ids.uuid7()
        try:
            done = await stores[number % len(stores)].execute(CreateUser(who, "Bob", email), Deadline(clock, 20.0))
        except AlreadyExists as error:
            return error.field
        assert done.entity.id == who
        return who

    answers = await asyncio.gather(*(one(number) for number in range(RACERS)))
    winners = [answer for answer in answers if isinstance(answer, UUID)]
    assert len(winners) == 1
    assert set(answers) - set(winners) <= ({"username"} if email is None else {"username", "email"})
    page = await stores[0].page(RACERS, Deadline(clock, 20.0))
    assert [found.id for found in page] == winners
    claims = await stores[0].fetch([("claim", key) for key in claim_keys(page[0].username, page[0].email)])
    judge_values(frozenset((to_record(page[0]), *claims.values())))


def _clients(store: str, folder: Path, count: int) -> list[ShardedClient]:
    """Processes that share four databases with 8 slot groups over them."""
    clock = SystemClock()
    control = MemoryControlServer("control", clock)
    servers = {name: MemoryServer(name, clock) for name in ("s0", "s1", "s2", "s3")}

    def member(name: str) -> Any:
        if store == "memory":
            return MemoryBackend(servers[name])
        return create_backend(name, BackendUrl.parse(f"sqlite:///{folder}/{name}.db"), pool_max=2, clock=clock)

    return [ShardedClient({name: member(name) for name in servers}, control, clock, groups=8) for _ in range(count)]


@pytest.mark.parametrize("email", [None, "bob@example.org"])
@pytest.mark.parametrize("store", STORES)
async def test_of_64_creates_of_one_name_over_8_groups_one_wins(store: str, email: str | None, tmp_path: Path) -> None:
    clients = _clients(store, tmp_path, 8 if store == "memory" else 2)
    for each in clients:
        await each.open()
    try:
        await _race(clients, email=email)
    finally:
        for each in clients:
            await each.close()
