"""Races placed by hand: who does what in which order, spelled in the row. After each row the journal is drained and
both sides must be equal, nothing acknowledged may be lost, nothing deleted may live, nothing read may have been stale.
"""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from datalayer.clock import Deadline
from datalayer.domains.messages import Append, Delete, Edit, message_key, to_message
from datalayer.errors import DatalayerError, Fenced, StaleRoute
from datalayer.ids import uuid7_at
from datalayer.routing.flip import finish_flip
from datalayer.routing.lease import Lease
from datalayer.routing.replay import Replayer
from datalayer.routing.route import Phase, Place, Routing
from datalayer.routing.router import Router
from datalayer.stores.base import Token
from datalayer.testing.simulation.checks import backlog, differences, records_at
from datalayer.testing.simulation.world import BASE_US, Pair, World
from tests.conftest import TIER
from tests.simulation import mutants
from tests.simulation.stage import GatedPlaces, Stage

ROOM = UUID(int=5)
KEY = uuid7_at(BASE_US - 1000, 1)
IDENT = ("message", message_key(ROOM, KEY))
SENDER = UUID(int=7)
SQL_ROWS = [
    # copier against writer and deleter
    "copier.scan writer.execute copier.apply replayer.pending replayer.apply replayer.settle",
    "copier.scan writer.execute replayer.pending replayer.apply replayer.settle copier.apply",
    "copier.scan writer.execute replayer.pending replayer.apply copier.apply replayer.settle",
    "copier.scan writer.execute replayer.pending copier.apply replayer.apply replayer.settle",
    "writer.execute copier.scan copier.apply replayer.pending replayer.apply replayer.settle",
    "writer.execute copier.scan replayer.pending replayer.apply replayer.settle copier.apply",
    "copier.scan deleter.execute copier.apply replayer.pending replayer.apply replayer.settle",
    "copier.scan deleter.execute replayer.pending replayer.apply replayer.settle copier.apply",
    "copier.scan deleter.execute replayer.pending replayer.apply copier.apply replayer.settle",
    "deleter.execute copier.scan replayer.pending replayer.apply replayer.settle copier.apply",
    "copier.scan writer.execute deleter.execute replayer.pending replayer.apply replayer.settle copier.apply",
    "copier.scan writer.execute replayer.pending deleter.execute replayer.apply replayer.settle copier.apply",
    # the journal against a second write
    "other.execute replayer.pending writer.execute replayer.apply replayer.settle",
    "writer.execute replayer.pending deleter.execute replayer.apply replayer.settle",
    "writer.execute replayer.pending replayer.apply deleter.execute replayer.settle",
    "writer.execute replayer.pending replayer.apply other.execute replayer.settle",
    "writer.execute replayer.pending other.execute replayer.apply replayer.settle",
    "writer.execute other.execute replayer.pending replayer.apply replayer.settle",
    # eager applies, early and late
    "writer.execute mirror.apply mirror.settle replayer.pending",
    "writer.execute replayer.pending mirror.apply replayer.apply mirror.settle replayer.settle",
    "writer.execute mirror.apply other.execute mirror.settle replayer.pending replayer.apply replayer.settle",
    "writer.execute other.execute replayer.pending replayer.apply replayer.settle mirror.apply mirror.settle",
    "writer.execute deleter.execute replayer.pending replayer.apply replayer.settle mirror.apply mirror.settle",
    "writer.execute mirror.apply deleter.execute mirror.settle replayer.pending replayer.apply replayer.settle",
    "copier.scan writer.execute mirror.apply mirror.settle copier.apply",
    "copier.scan writer.execute mirror.apply copier.apply mirror.settle",
    # two replayers
    "writer.execute replayer.pending second.pending replayer.apply second.apply replayer.settle second.settle",
    "writer.execute replayer.pending replayer.apply other.execute second.pending second.apply replayer.settle second.settle",
    "writer.execute replayer.pending other.execute second.pending second.apply second.settle replayer.apply replayer.settle",
    "writer.execute replayer.pending deleter.execute second.pending second.apply second.settle replayer.apply replayer.settle",
    # journal-first readers
    "writer.execute reader.dirty replayer.pending replayer.apply replayer.settle reader.get",
    "reader.dirty writer.execute reader.get",
    "reader.dirty writer.execute replayer.pending replayer.apply replayer.settle reader.get",
    "writer.execute replayer.pending reader.dirty replayer.apply replayer.settle reader.get",
    "writer.execute replayer.pending replayer.apply reader.dirty replayer.settle reader.get",
    "writer.execute replayer.pending replayer.apply replayer.settle reader.dirty other.execute reader.get",
    "deleter.execute reader.dirty replayer.pending replayer.apply replayer.settle reader.get",
    "deleter.execute replayer.pending replayer.apply replayer.settle reader.dirty reader.get",
    # the flip
    "writer.execute flip.fence other.execute flip.pending flip.apply flip.settle flip.seal flip.open flip.publish",
    "writer.execute replayer.pending flip.fence flip.pending flip.apply flip.settle flip.seal flip.open replayer.apply replayer.settle flip.publish",
    "flip.fence writer.execute flip.seal flip.open flip.publish",
    "flip.fence flip.seal writer.execute flip.open flip.publish",
    "flip.fence flip.seal flip.open writer.execute flip.publish",
    "writer.execute reader.dirty flip.fence flip.pending flip.apply flip.settle flip.seal flip.open flip.publish reader.get",
    "reader.dirty flip.fence flip.seal flip.open flip.publish reader.get",
    "writer.execute flip.fence reader.dirty flip.pending flip.apply flip.settle flip.seal flip.open flip.publish reader.get",
    "copier.scan writer.execute flip.fence flip.pending flip.apply flip.settle flip.seal copier.apply flip.open flip.publish",
    "copier.scan writer.execute flip.fence flip.pending flip.apply flip.settle flip.seal flip.open flip.publish copier.apply",
    "writer.execute flip.fence flip.pending flip.apply flip.settle flip.seal flip.open mirror.apply mirror.settle flip.publish",
]
INTENT_ROWS = [
    "writer.admit writer.apply replayer.pending replayer.apply replayer.settle",
    "writer.admit replayer.pending replayer.apply replayer.settle writer.apply",
    "writer.admit replayer.pending writer.apply replayer.apply replayer.settle",
    "copier.scan writer.admit writer.apply copier.apply replayer.pending replayer.apply replayer.settle",
    "copier.scan writer.admit writer.apply replayer.pending replayer.apply replayer.settle copier.apply",
    "writer.fetch other.fetch writer.admit other.admit other.apply writer.apply",
    "writer.fetch other.fetch writer.admit other.admit writer.apply replayer.pending replayer.apply replayer.settle other.apply",
    "writer.fetch deleter.fetch deleter.admit writer.admit deleter.apply",
    "writer.fetch deleter.fetch writer.admit deleter.admit deleter.apply writer.apply",
    "writer.fetch deleter.fetch writer.admit deleter.admit replayer.pending replayer.apply replayer.settle deleter.apply writer.apply",
    "writer.admit reader.dirty writer.apply replayer.pending replayer.apply replayer.settle reader.get",
    "writer.admit writer.apply reader.dirty replayer.pending replayer.apply replayer.settle reader.get",
    "writer.admit replayer.pending replayer.apply other.admit replayer.settle other.apply writer.apply",
    "writer.admit flip.fence writer.apply flip.pending flip.apply flip.settle flip.seal flip.open flip.publish",
    "writer.admit flip.fence flip.pending flip.apply flip.settle flip.seal writer.apply flip.open flip.publish",
    "writer.admit flip.fence flip.pending flip.apply flip.settle flip.seal flip.open flip.publish writer.apply",
    "writer.fetch flip.fence writer.admit flip.seal flip.open flip.publish",
]


class Play:
    """One row on one pair, from an armed migration whose target holds what the source holds."""

    def __init__(self, pair: Pair, row: str) -> None:
        self.world = World(1, pair)
        self.order = row.split()
        self.actors = list(dict.fromkeys(name.partition(".")[0] for name in self.order))
        self.acknowledged: dict[str, int] = {}
        self.deleted = False
        self.refused: list[str] = []
        self.written: dict[str, Any] = {}

    async def run(self) -> None:
        world = self.world
        machine, wire = world.machine("plain")
        self.places = world.places(machine, wire, world.clock)
        await self._prepare()
        self.stage = Stage(self.order)
        tasks = [asyncio.ensure_future(getattr(self, f"_{name}")(self._of(name))) for name in self.actors]
        await self.stage.play(tasks)
        await self._settle()

    def _of(self, actor: str) -> GatedPlaces:
        return GatedPlaces(self.places, actor, self.stage)

    async def _prepare(self) -> None:
        control, places = self.places.control, self.places
        await control.ensure_routes({"messages": Place("s")})
        value = await control.take("migrate:messages", "race", 1000.0)
        assert value is not None
        self.token = Token("messages-1", "messages", 1, value)
        self.routing = Routing("messages", 1, Phase.ARMED, Place("s"), Place("t", 1), 1)
        for place in (self.routing.source, Place("t", 1)):
            await places.store("messages", place).create()
        source, target = places.sides(self.routing)
        await target.install(self.token, sealed=True)
        first = Append(ROOM, KEY, SENDER, "first")
        route = places.compile(replace(self.routing, phase=Phase.SOURCE, target=None))
        executed = await route.execute(first, self._deadline())
        await source.install(self.token, sealed=False)
        await target.apply(executed.records)
        self.routing = await control.publish(self.token, self.routing, actor="race")

    def _deadline(self) -> Deadline:
        return Deadline(self.world.clock, 50.0)

    # --- actors -----------------------------------------------------------------------------------------------------

    async def _write(self, places: GatedPlaces, who: str, mutation: Any) -> None:
        try:
            self.written[who] = await places.compile(self.routing).execute(mutation, self._deadline())
        except DatalayerError as error:
            self.refused.append(f"{who}: {type(error).__name__}")
            return
        if isinstance(mutation, Delete):
            self.deleted = True
        else:
            self.acknowledged[mutation.body] = self.written[who].entity.version

    async def _writer(self, places: GatedPlaces) -> None:
        await self._write(places, "writer", Edit(ROOM, KEY, "by writer"))

    async def _other(self, places: GatedPlaces) -> None:
        await self._write(places, "other", Edit(ROOM, KEY, "by other"))

    async def _deleter(self, places: GatedPlaces) -> None:
        await self._write(places, "deleter", Delete(ROOM, KEY))

    async def _copier(self, places: GatedPlaces) -> None:
        store = places.store("messages", self.routing.source)
        (range_,) = await store.plan_scan(1)
        page = await store.scan(range_, None, 100)
        await places.sides(self.routing)[1].apply(page.records)

    async def _mirror(self, places: GatedPlaces) -> None:
        """The eager apply of what the writer wrote, whenever it arrives."""
        source, target = places.sides(self.routing)
        written = _WhenKnown(self.written)
        await self.stage.call("mirror.apply", lambda: self._eager(target, written))
        await source.journal.settle(written.records)

    async def _eager(self, target: Any, written: "_WhenKnown") -> None:
        await target.apply(written.records)

    async def _replayer(self, places: GatedPlaces) -> None:
        await Replayer(places, self.routing, "messages-1").step()

    async def _second(self, places: GatedPlaces) -> None:
        await Replayer(places, self.routing, "messages-1").step()

    async def _reader(self, places: GatedPlaces) -> None:
        lease = Lease(self.world.clock)
        lease.renewed(self.world.clock.boottime())
        router = Router("messages", lease, lambda: None, lambda: 0.5)
        router.adopt(places.compile(self.routing))
        # Later than the promise asks: also what is acknowledged just before the look-up must be seen.
        known: list[tuple[dict[str, int], bool]] = []
        self.stage.when_passed["reader.dirty"] = lambda: known.append((dict(self.acknowledged), self.deleted))

        async def call(store: Any, deadline: Deadline) -> Any:
            return await store.get(ROOM, KEY, deadline)

        found = await router.read((ROOM.bytes,), call, self._deadline())
        self._judge_read(known[0], found)

    def _judge_read(self, known: tuple[dict[str, int], bool], found: Any) -> None:
        acknowledged, gone = known
        shown = -1 if found is None else found.version
        assert not gone or found is None or found.deleted, "I2: a deleted message was read"
        assert shown >= max(acknowledged.values(), default=0), f"I3: {found} misses {acknowledged}"

    async def _flip(self, places: GatedPlaces) -> None:
        authority, _ = places.sides(self.routing)
        await authority.fence(self.token, 1, 100.0, 0.2)
        await Replayer(places, self.routing, "messages-1").step()
        await authority.seal(self.token, 1)
        migration: Any = type("Flips", (), {"flips": 1, "id": "messages-1"})()
        self.routing = await finish_flip(places, self.routing, migration, self.token, actor="race")

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        world = self.world
        replayer = Replayer(self.places, self.routing, "messages-1")
        for _ in range(5):
            await replayer.step()
        assert backlog(world, self.routing) == 0
        ours = records_at(world, "messages", self.routing.authority)
        assert self.routing.mirror is not None
        theirs = records_at(world, "messages", self.routing.mirror)
        assert differences("messages", ours, theirs) == [], "I5"
        record = ours[IDENT]
        message = to_message(record)
        if self.deleted:
            assert message.deleted, "I2"
        if self.acknowledged and not message.deleted:
            newest = max(self.acknowledged.values())
            assert message.version >= newest, "I1"
            assert self.acknowledged.get(message.body, 0) == newest, "I1: the newest acknowledged write rules"


class _WhenKnown:
    """The records of the writer, read when they are needed."""

    def __init__(self, written: dict[str, Any]) -> None:
        self._written = written

    @property
    def records(self) -> Any:
        return self._written["writer"].records


def _play(pair: Pair, row: str) -> Play:
    play = Play(pair, row)
    play.world.run(play.run())
    return play


def _named(row: str) -> str:
    return row.replace(" ", "-")


@pytest.mark.parametrize("target", ["transactional", "last_writer"])
@pytest.mark.parametrize("row", SQL_ROWS, ids=_named)
def test_order(row: str, target: Any) -> None:
    play = _play(Pair("transactional", target), row)
    names = row.split()
    for who in ("writer", "other"):
        at = f"{who}.execute"
        if at in names and "flip.fence" in names:
            fenced = names.index(at) > names.index("flip.fence")
            assert (f"{who}: Fenced" in play.refused) == fenced


@pytest.mark.parametrize("target", ["transactional", "last_writer"])
@pytest.mark.parametrize("row", INTENT_ROWS, ids=_named)
def test_order_at_an_authority_of_intents(row: str, target: Any) -> None:
    play = _play(Pair("last_writer", target), row)
    names = row.split()
    if "flip.fence" in names and "writer.admit" in names:
        fenced = names.index("writer.admit") > names.index("flip.fence")
        assert ("writer: Fenced" in play.refused) == fenced


MISTAKES = [
    (mutants.ungated_apply, SQL_ROWS, Pair()),
    (mutants.journal_cleared_without_compare, SQL_ROWS, Pair()),
    (mutants.no_tombstones, SQL_ROWS, Pair()),
    (mutants.armed_skipped, SQL_ROWS, Pair()),
    (mutants.intents_cleared_without_compare, INTENT_ROWS, Pair("last_writer", "transactional")),
    (mutants.intents_not_gated, INTENT_ROWS, Pair("last_writer", "transactional")),
    (mutants.intent_after_the_write, INTENT_ROWS, Pair("last_writer", "transactional")),
    (mutants.version_from_the_counter_alone, INTENT_ROWS, Pair("last_writer", "transactional")),
]


CHOSEN = MISTAKES if TIER != "check" else MISTAKES[1:7:5]


@pytest.mark.parametrize(("mistake", "rows", "pair"), CHOSEN, ids=[mistake[0].__name__ for mistake in CHOSEN])
def test_some_order_notices_the_mistake(
    mistake: mutants.Patch, rows: list[str], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed = []
    with monkeypatch.context() as patch:
        mistake(patch)
        for row in rows:
            try:
                test = test_order if rows is SQL_ROWS else test_order_at_an_authority_of_intents
                test(row, pair.target)
            except (AssertionError, DatalayerError):
                noticed.append(row)
    assert noticed


def test_a_row_that_cannot_happen_is_noticed() -> None:
    with pytest.raises((AssertionError, Fenced)):
        _play(Pair(), "writer.execute writer.fetch")


def test_a_journal_that_is_gone_is_never_clean() -> None:
    play = Play(Pair(), "writer.execute")

    async def look() -> None:
        machine, wire = play.world.machine("plain")
        play.places = play.world.places(machine, wire, play.world.clock)
        await play._prepare()
        source, _ = play.places.sides(play.routing)
        await source.remove(play.token, keep_fence=False)
        with pytest.raises(StaleRoute):
            await source.journal.dirty([ROOM.bytes])

    play.world.run(look())


def test_a_lease_is_counted_from_before_the_renewal_was_sent() -> None:
    world = World(1, Pair())
    lease = Lease(world.clock)

    async def renewal() -> None:
        sent_at = world.clock.boottime()
        await world.elapse(6.9)
        lease.renewed(sent_at)
        assert lease.alive
        await asyncio.sleep(0.2)
        assert not lease.alive

    world.run(renewal())
