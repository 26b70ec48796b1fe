"""Reads over replicas with servers that are played: who serves, what happens when one fails, and the watch itself."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.errors import DatalayerError, InvalidArgument, Overloaded, StaleRoute, Unavailable
from datalayer.routing.consistency import Callers, reading, reading_after
from datalayer.routing.lease import Lease
from datalayer.routing.places import Route
from datalayer.routing.replicareads import ReplicaReads, ReplicaWatch
from datalayer.routing.route import Phase, Place, Routing
from datalayer.routing.router import Router
from datalayer.stores.base import Executed
from datalayer.stores.replicated import LogPosition, ReplicaLook, Replicated

SYSTEM = 7
ROUTING = Routing("messages", 3, Phase.SOURCE, Place("main"))


class HandClock(SystemClock):
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.at = 100.0

    def monotonic(self) -> float:
        return self.at


class PlayedReplica:
    """A replica that shows as much of the log as the test says."""

    size = 2

    def __init__(self, name: str, primary: "PlayedPrimary") -> None:
        self.name = name
        self.primary = primary
        self.shows = 0
        self.in_use = 0
        self.looks = 0
        self.fails: DatalayerError | None = None
        self.hangs = asyncio.Event()
        self.hangs.set()

    async def look(self, deadline: Deadline) -> ReplicaLook:
        self.looks += 1
        if self.fails is not None:
            raise self.fails
        return ReplicaLook(LogPosition(SYSTEM, 1, self.shows), "run 1")

    def store(self, domain: str, attempt: int) -> Any:
        assert (domain, attempt) == ("messages", 0)
        return self

    async def get(self, deadline: Deadline) -> tuple[str, int]:
        await self.hangs.wait()
        if self.fails is not None:
            raise self.fails
        return self.name, self.shows


class PlayedPrimary:
    """A log that grows by one with every write, and its replicas."""

    def __init__(self, *names: str) -> None:
        self.log = 10
        self.silent = False
        self.asked = 0
        self.replicas = [PlayedReplica(name, self) for name in names]

    async def position(self, deadline: Deadline) -> LogPosition:
        self.asked += 1
        if self.silent:
            raise Unavailable
        return LogPosition(SYSTEM, 1, self.log)

    async def get(self, deadline: Deadline) -> tuple[str, int]:
        return "primary", self.log

    async def execute(self, mutation: str, deadline: Deadline) -> Executed:
        if mutation == "refused":
            raise InvalidArgument
        self.log += 1
        return Executed(self.log, ())

    def replay(self) -> None:
        for replica in self.replicas:
            replica.shows = self.log


class Scene:
    """One process: a router over the played servers, looking at them when the test says so."""

    def __init__(self, *names: str) -> None:
        self.clock = HandClock()
        self.primary = PlayedPrimary(*(names or ("r1",)))
        assert isinstance(self.primary, Replicated)
        self.callers = Callers(self.clock)
        self.watch = ReplicaWatch(self.primary, self.clock, lambda: 0.5)
        self.router = Router("messages", Lease(self.clock), lambda: None, lambda: 0.0)
        self.router.on_answer = self.callers.wrote
        self.adopt(ROUTING)

    def adopt(self, routing: Routing) -> None:
        reads = ReplicaReads(self.watch, self.callers, routing) if routing.at_rest else None
        self.router.adopt(Route(routing, self.primary, self.primary.execute, replicas=reads))

    async def look(self) -> None:
        self.clock.at += 0.1
        await self.watch.look()
        self.clock.at += 0.1

    async def look_at_all_replayed(self) -> None:
        self.primary.replay()
        await self.look()
        await self.look()

    async def read(self) -> tuple[str, int]:
        return await self.router.read((b"k" * 16,), lambda store, deadline: store.get(deadline), self.soon())

    async def write(self, mutation: str = "append") -> int:
        return int((await self.router.execute(mutation, self.soon())).entity)

    def soon(self, seconds: float = 5.0) -> Deadline:
        return Deadline(self.clock, seconds)


async def test_a_caller_that_wrote_nothing_reads_at_a_replica_within_the_bound() -> None:
    scene = Scene()
    assert (await scene.read())[0] == "primary", "nothing is known yet"
    await scene.look_at_all_replayed()
    assert (await scene.read())[0] == "r1"
    scene.clock.at += 1.0
    assert (await scene.read())[0] == "primary", "what is known is too old"
    with reading("replica", 30):
        assert (await scene.read())[0] == "r1"


async def test_own_writes_are_read_at_the_primary_until_they_are_replayed() -> None:
    scene = Scene()
    await scene.look_at_all_replayed()
    version = await scene.write()
    assert await scene.read() == ("primary", version)
    await scene.look()
    assert await scene.read() == ("primary", version), "not replayed"
    scene.primary.replay()
    await scene.look()
    assert await scene.read() == ("r1", version)


async def test_a_write_in_another_block_leaves_a_caller_at_the_replica() -> None:
    scene = Scene()
    await scene.look_at_all_replayed()

    async def request() -> None:
        with reading_after(None):
            version = await scene.write()
            assert await scene.read() == ("primary", version)

    await asyncio.create_task(request())
    assert (await scene.read())[0] == "r1"


async def test_a_refused_write_counts_too_for_it_told_of_the_data() -> None:
    scene = Scene()
    await scene.look_at_all_replayed()
    with pytest.raises(InvalidArgument):
        await scene.write("refused")
    assert (await scene.read())[0] == "primary"


async def test_primary_and_replica_levels_ignore_own_writes() -> None:
    scene = Scene()
    await scene.look_at_all_replayed()
    with reading("primary"):
        assert (await scene.read())[0] == "primary"
    await scene.write()
    with reading("replica"):
        assert (await scene.read())[0] == "r1"


async def test_under_a_new_routing_replicas_wait_for_a_position_asked_for_after_it() -> None:
    scene = Scene()
    await scene.look_at_all_replayed()
    scene.adopt(Routing("messages", 4, Phase.DUAL, Place("main"), Place("other", 1), 1))
    assert (await scene.read())[0] == "primary", "a migration lives"
    scene.adopt(Routing("messages", 5, Phase.SOURCE, Place("main")))
    with reading("replica", 60):
        assert (await scene.read())[0] == "primary"
        await scene.look()
        assert (await scene.read())[0] == "r1"


@pytest.mark.parametrize("error", [Unavailable("gone"), StaleRoute(), DatalayerError("odd")])
async def test_a_replica_that_fails_costs_the_caller_nothing_and_is_left_out_until_it_is_seen(
    error: DatalayerError,
) -> None:
    scene = Scene()
    await scene.look_at_all_replayed()
    replica = scene.primary.replicas[0]
    replica.fails = error
    assert (await scene.read())[0] == "primary"
    replica.fails = None
    assert (await scene.read())[0] == "primary"
    assert scene.watch.status()[0]["reason"] == error.message
    await scene.look()
    assert (await scene.read())[0] == "r1"


async def test_a_bad_argument_is_the_callers_and_not_the_replicas_fault() -> None:
    scene = Scene()
    await scene.look_at_all_replayed()
    scene.primary.replicas[0].fails = InvalidArgument("out of range")
    with pytest.raises(InvalidArgument):
        await scene.read()
    assert scene.watch.status()[0]["ok"]


async def test_a_replica_gets_half_of_the_time() -> None:
    scene = Scene()
    await scene.look_at_all_replayed()
    shares = []

    async def call(store: Any, deadline: Deadline) -> str:
        shares.append(deadline.remaining())
        if isinstance(store, PlayedReplica):
            raise Overloaded
        return "primary"

    assert await scene.router.read(None, call, scene.soon(4.0)) == "primary"
    assert shares == [2.0, 4.0]


async def test_the_idlest_is_chosen_and_a_full_one_is_not() -> None:
    scene = Scene("r1", "r2")
    await scene.look_at_all_replayed()
    first, second = scene.primary.replicas
    first.in_use = 1
    assert (await scene.read())[0] == "r2"
    second.in_use = 2
    assert (await scene.read())[0] == "r1"
    first.in_use = 2
    assert (await scene.read())[0] == "primary"


async def test_one_that_lags_does_not_keep_the_other_from_serving() -> None:
    scene = Scene("r1", "r2")
    await scene.look_at_all_replayed()
    version = await scene.write()
    scene.primary.replicas[1].shows = version
    await scene.look()
    assert await scene.read() == ("r2", version)


async def test_status_tells_lag_and_reason() -> None:
    scene = Scene("r1", "r2")
    await scene.look()
    scene.primary.replay()
    await scene.write()
    scene.primary.replicas[1].fails = Unavailable("it is down")
    await scene.look()
    first, second = scene.watch.status()
    assert (first["ok"], first["lag_bytes"]) == (True, 1)
    assert first["lag_s"] == pytest.approx(0.3)
    assert (second["ok"], second["reason"], second["lag_s"]) == (False, "it is down", None)


# --- the watch -----------------------------------------------------------------------------------------------------


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.002)


async def watched(scene: Scene, look_s: float, act: Callable[[ReplicaWatch], Awaitable[None]]) -> None:
    watch = ReplicaWatch(scene.primary, SystemClock(), lambda: 0.5, look_s=look_s)
    watch.start()
    try:
        await act(watch)
    finally:
        await watch.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "datalayer-replicas"]


async def test_the_watch_finds_a_replica_lost_and_found_again() -> None:
    scene = Scene()
    scene.primary.replay()
    replica = scene.primary.replicas[0]

    async def act(watch: ReplicaWatch) -> None:
        await until(lambda: bool(watch.status()[0]["ok"]))
        replica.fails = Unavailable("down")
        await until(lambda: not watch.status()[0]["ok"])
        replica.fails = None
        await until(lambda: bool(watch.status()[0]["ok"]))

    await watched(scene, 0.01, act)


async def test_a_server_that_hangs_does_not_make_the_others_look_old() -> None:
    scene = Scene("r1", "r2")
    scene.primary.replay()
    first, second = scene.primary.replicas
    never = asyncio.Event()

    async def hang(deadline: Deadline) -> ReplicaLook:
        await never.wait()
        raise AssertionError

    first.look = hang  # type: ignore[method-assign]

    async def act(watch: ReplicaWatch) -> None:
        await until(lambda: second.looks > 5)
        assert watch.standings.lag_s("r2", SystemClock().monotonic()) < 1.0

    await watched(scene, 0.01, act)


async def test_asking_makes_the_watch_look_sooner_but_not_without_end() -> None:
    scene = Scene()

    async def act(watch: ReplicaWatch) -> None:
        await until(lambda: scene.primary.asked == 1)
        scene.primary.log += 1
        before = scene.primary.asked
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.4
        while loop.time() < end:
            watch.ask()
            await asyncio.sleep(0.001)
        assert before < scene.primary.asked <= before + 8, "looks grow rarer at a server that stands still"

    await watched(scene, 10.0, act)
