"""Presence and typing over the memory of a process: what callers pass, what they get, what watchers are told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from datalayer.control.memory import MemoryControl
from datalayer.control.memory_server import MemoryControlServer
from datalayer.domains.soft import TTL_MAX_S, Beat, admit
from datalayer.errors import InvalidArgument, Unavailable
from datalayer.layer import DataLayer, LayerOptions
from datalayer.repositories import watching
from datalayer.repositories.watching import Watching, _Watcher
from datalayer.settings import parse_settings
from datalayer.stores.memory import MemoryBackend, MemoryServer
from datalayer.stores.memory.soft import MemorySoft
from datalayer.types import Presence, Transition, from_us

ONLINE, OFFLINE, UNKNOWN = Presence.ONLINE, Presence.OFFLINE, Presence.UNKNOWN
ANN, BOB = UUID(int=1), UUID(int=2)


class Hand:
    """A clock that a test moves; waits run by the loop's own."""

    def __init__(self) -> None:
        self.us = 1_800_000_000_000_000

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def boottime(self) -> float:
        return asyncio.get_running_loop().time()

    def pass_s(self, seconds: float) -> None:
        self.us += int(seconds * 1e6)


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def server(clock: Hand) -> MemoryServer:
    return MemoryServer("main", clock)


@pytest.fixture
async def layer(clock: Hand, server: MemoryServer) -> AsyncIterator[DataLayer]:
    settings = parse_settings(
        {
            "backends": {"main": {"url": "memory://"}},
            "routes": {"presence": "main", "typing": "main"},
            "control": {"url": "memory://"},
        }
    )
    control = MemoryControl(MemoryControlServer("c", clock))
    opened = DataLayer(
        settings, control, {"main": MemoryBackend(server)}, clock=clock, options=LayerOptions(project=False)
    )
    await opened.start()
    yield opened
    await opened.close()


async def test_a_user_is_online_while_any_device_beats(layer: DataLayer, clock: Hand) -> None:
    await layer.presence.heartbeat(ANN, device="web", ttl=10)
    await layer.presence.heartbeat(str(ANN), device="phone", ttl=30, status="away")
    assert await layer.presence.online([ANN, BOB]) == {ANN: ONLINE, BOB: OFFLINE}
    phone, web = await layer.presence.devices(ANN)
    assert (phone.name, phone.status, web.name, web.status) == ("phone", "away", "web", "")
    assert (web.expires_at - web.seen_at).total_seconds() == 10
    clock.pass_s(11)
    assert [device.name for device in await layer.presence.devices(ANN)] == ["phone"]
    assert await layer.presence.online([ANN]) == {ANN: ONLINE}
    await layer.presence.leave(ANN, device="phone")
    assert await layer.presence.online([ANN]) == {ANN: OFFLINE}
    assert await layer.presence.devices(ANN) == ()


async def test_when_somebody_was_seen_outlasts_the_beats_for_thirty_days(layer: DataLayer, clock: Hand) -> None:
    seen = from_us(clock.us)
    await layer.presence.heartbeat(ANN)
    clock.pass_s(29 * 86400)
    assert await layer.presence.last_seen([ANN, BOB]) == {ANN: seen}
    clock.pass_s(2 * 86400)
    for _ in range(1001):  # the store looks for what has ended now and then
        await layer.presence.heartbeat(BOB)
    assert set(await layer.presence.last_seen([ANN, BOB])) == {BOB}


async def test_a_store_that_is_down_knows_nothing_and_the_process_stays_ready(
    layer: DataLayer, server: MemoryServer
) -> None:
    await layer.presence.heartbeat(ANN)
    soft = MemoryServer("soft", server.clock)
    soft.up = False
    layer.router("presence").route.authority = MemorySoft(MemoryBackend(soft), "presence", 0)
    assert await layer.presence.online([ANN, BOB]) == {ANN: UNKNOWN, BOB: UNKNOWN}
    with pytest.raises(Unavailable, match="1 of 1 users cannot be looked up"):
        await layer.presence.last_seen([ANN])
    with pytest.raises(Unavailable, match="the devices of"):
        await layer.presence.devices(ANN)
    with pytest.raises(Unavailable):
        await layer.presence.heartbeat(ANN)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ttl": 0.5}, "ttl is 0.5; it must be from 1 to 120 seconds"),
        ({"ttl": 121}, "ttl is 121; it must be"),
        ({"ttl": float("nan")}, "ttl is nan"),
        ({"ttl": True}, "ttl is True"),
        ({"ttl": "45"}, "ttl is '45'"),
        ({"device": ""}, "device is empty"),
        ({"device": "x" * 65}, "device is 65 bytes; the limit is 64"),
        ({"device": "a\x1fb"}, "device contains a control character"),
        ({"device": 5}, "device must be text, not int"),
        ({"status": "a\nb"}, "status contains a control character"),
    ],
)
async def test_a_wrong_heartbeat_is_one_sentence(layer: DataLayer, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await layer.presence.heartbeat(ANN, **wrong)
    assert await layer.presence.last_seen([ANN]) == {}


async def test_ten_thousand_may_be_asked_for_and_no_more(layer: DataLayer) -> None:
    with pytest.raises(InvalidArgument, match="10001 of ids were passed; the limit is 10000"):
        await layer.presence.online([uuid4() for _ in range(10_001)])
    assert await layer.presence.online([]) == await layer.presence.last_seen([]) == {}


async def test_who_types_is_told_while_it_lasts(layer: DataLayer, clock: Hand) -> None:
    room = uuid4()
    await layer.typing.start(room, ANN)
    clock.pass_s(1)
    await layer.typing.start(room, BOB, ttl=2)
    assert await layer.typing.who(room) == (BOB, ANN)
    assert await layer.typing.who(uuid4()) == ()
    clock.pass_s(3)
    assert await layer.typing.who(room) == (ANN,)
    await layer.typing.stop(room, ANN)
    assert await layer.typing.who(room) == ()


async def test_of_two_processes_the_later_clock_counts_for_one_device(layer: DataLayer, clock: Hand) -> None:
    await layer.presence.heartbeat(ANN, ttl=40)
    clock.pass_s(-5)  # another machine's clock is behind
    other = DataLayer(layer.settings, layer.control, layer.backends, clock=clock, options=LayerOptions(project=False))
    await other.start()
    await other.presence.leave(ANN)
    assert await layer.presence.online([ANN]) == {ANN: ONLINE}
    clock.pass_s(6)
    await other.presence.leave(ANN)
    assert await layer.presence.online([ANN]) == {ANN: OFFLINE}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0.02)


async def test_no_beat_lands_so_late_that_it_brings_back_who_has_left() -> None:
    """The item is forgotten, by another device's beat, no sooner than every beat of before has ended."""
    second, now = 1_000_000, 1_800_000_000_000_000
    longest = Beat(ANN, "phone", now, now + int(TTL_MAX_S) * second)
    left = admit((longest,), Beat(ANN, "phone", now + second, 0))
    assert left is not None
    for after in range(2, 400, 7):
        at = now + after * second
        entry = admit(left, Beat(ANN, "web", at, at + second))
        assert entry is not None
        late = admit(entry, longest) or entry
        assert not [beat for beat in late if beat.item == "phone" and beat.expires_us > at]


# --- watching --------------------------------------------------------------------------------------------------------


class Watch:
    """A watcher at work; what it was told so far."""

    def __init__(self, layer: DataLayer, ids: list[UUID], known: dict[UUID, Presence] | None = None) -> None:
        self._queue: asyncio.Queue[Transition] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(layer, ids, known))

    async def _run(self, layer: DataLayer, ids: list[UUID], known: dict[UUID, Presence] | None) -> None:
        async for transition in layer.presence.watch(ids, known=known):
            self._queue.put_nowait(transition)

    async def next(self) -> tuple[UUID, Presence]:
        async with asyncio.timeout(10):
            told = await self._queue.get()
        return told.user_id, told.presence

    @property
    def quiet(self) -> bool:
        return self._queue.empty()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_watcher_is_told_of_changes_alone(layer: DataLayer, clock: Hand) -> None:
    watch = Watch(layer, [ANN, BOB], {ANN: OFFLINE, BOB: OFFLINE})
    await layer.presence.heartbeat(ANN, ttl=20)
    assert await watch.next() == (ANN, ONLINE)
    await layer.presence.heartbeat(ANN, ttl=20)
    await layer.presence.heartbeat(BOB, ttl=120)
    assert await watch.next() == (BOB, ONLINE)
    await layer.presence.leave(BOB)
    assert await watch.next() == (BOB, OFFLINE)
    clock.pass_s(21)
    assert await watch.next() == (ANN, OFFLINE)
    assert watch.quiet
    await watch.end()


async def test_what_changed_between_the_question_and_the_watch_is_told(layer: DataLayer) -> None:
    known = await layer.presence.online([ANN])
    await layer.presence.heartbeat(ANN)
    watch = Watch(layer, [ANN], known)
    assert await watch.next() == (ANN, ONLINE)
    await watch.end()


async def test_over_a_lost_subscription_the_difference_is_told(
    layer: DataLayer, clock: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store whose hints never come: every connection ends at once."""

    async def broken(self: MemorySoft, ear: Any) -> None:
        raise Unavailable("the subscription ended")

    monkeypatch.setattr(MemorySoft, "listen", broken)
    watch = Watch(layer, [ANN], {ANN: OFFLINE})
    await layer.presence.heartbeat(ANN)
    assert await watch.next() == (ANN, ONLINE)
    await layer.presence.leave(ANN)
    clock.pass_s(1)
    assert await watch.next() == (ANN, OFFLINE)
    await watch.end()


async def test_while_the_store_is_down_nothing_is_told_and_then_the_difference(
    layer: DataLayer, server: MemoryServer
) -> None:
    await layer.presence.heartbeat(ANN)
    watch = Watch(layer, [ANN], {ANN: ONLINE, BOB: OFFLINE})
    server.up = False
    await asyncio.sleep(0.1)
    assert watch.quiet
    server.up = True
    await layer.presence.leave(ANN)
    assert await watch.next() == (ANN, OFFLINE)
    await watch.end()


async def test_one_subscription_serves_all_watchers_and_ends_with_the_last(layer: DataLayer) -> None:
    first, second = Watch(layer, [ANN], {ANN: OFFLINE}), Watch(layer, [ANN, BOB], {ANN: OFFLINE})
    await layer.presence.heartbeat(ANN)
    assert await first.next() == await second.next() == (ANN, ONLINE)
    table = layer.router("presence").route.authority._table
    assert len(table.ears) == 1
    await first.end()
    await layer.presence.leave(ANN)
    assert await second.next() == (ANN, OFFLINE)
    await second.end()
    for _ in range(100):
        await asyncio.sleep(0.001)
    assert table.ears == []


async def test_who_is_watched_while_a_subscription_is_asked_for_is_asked_for_next(layer: DataLayer) -> None:
    """A store that is slow to take a subscription: whoever enters meanwhile must not wait for the next one."""
    watches = Watching(layer.router("presence"), layer.clock)  # type: ignore[arg-type]
    watches._tasks = [asyncio.create_task(asyncio.sleep(0))]
    watches._enter(_Watcher([ANN], {}))
    async with asyncio.timeout(5):
        await watches.changed()
        watches._enter(_Watcher([BOB], {}))  # while what the call above has told of is asked for
        await watches.changed()
    assert set(watches.keys) == {ANN, BOB}


async def test_after_the_last_watcher_the_next_one_polls_until_there_are_hints(layer: DataLayer) -> None:
    watches = Watching(layer.router("presence"), layer.clock)  # type: ignore[arg-type]
    first = _Watcher([ANN], {})
    watches._enter(first)
    watches.connected()
    watches._leave(first)
    watches._enter(_Watcher([BOB], {}))
    assert watches._deaf
    await watches.stop()
