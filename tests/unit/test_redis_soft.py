"""Presence in Redis, where the server is what a test says it is: deadlines of beats, scans over a failover."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.soft import Beat
from datalayer.errors import OutcomeUnknown, Unavailable
from datalayer.settings import BackendUrl
from datalayer.stores.redis.keys import Names
from datalayer.stores.redis.session import RedisSession, slot_owners
from datalayer.stores.redis.soft import RedisSoft
from datalayer.stores.redis.target import Address, Target

CLOCK = SystemClock()


def soft_over(session: Any) -> RedisSoft:
    return RedisSoft(session, Names("p", "presence", 0), CLOCK, "presence")


def beat_of(number: int) -> Beat:
    now = CLOCK.now_us()
    return Beat(UUID(int=number), "web", now, now + 45_000_000)


class Hanging:
    """A session whose server answers nothing, or whose driver breaks."""

    where = "redis"

    def __init__(self, breaks: Exception | None = None) -> None:
        self.breaks = breaks

    def known_server(self, key: bytes) -> Address:
        del key
        return Address("h", 1)

    async def batch(self, calls: Any, *, write: bool, deadline: Deadline, to: Address) -> Any:
        del calls, write, to
        if self.breaks is not None:
            raise self.breaks
        await asyncio.sleep(deadline.remaining())
        raise OutcomeUnknown("late")


async def test_a_beat_ends_at_its_own_deadline_beside_and_behind_slower_ones() -> None:
    soft = soft_over(Hanging())
    slow = [asyncio.create_task(soft.beat(beat_of(1), Deadline(CLOCK, 20.0)))]
    beside = soft.beat(beat_of(2), Deadline(CLOCK, 0.05))
    async with asyncio.timeout(5):
        with pytest.raises(OutcomeUnknown, match="before the deadline"):
            await beside
        with pytest.raises(OutcomeUnknown, match="before the deadline"):
            await soft.beat(beat_of(3), Deadline(CLOCK, 0.05))
    slow[0].cancel()
    await asyncio.gather(*slow, return_exceptions=True)


async def test_a_driver_that_breaks_fails_the_beats_it_was_given() -> None:
    loop, told = asyncio.get_running_loop(), list[Any]()
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    soft = soft_over(Hanging(breaks=ZeroDivisionError("planted")))
    async with asyncio.timeout(5):
        with pytest.raises(OutcomeUnknown, match="sender ended"):
            await soft.beat(beat_of(1), Deadline(CLOCK, 0.04))


class Failing:
    """A cluster of two primaries with a key each; a primary gives way to another server when it is told to."""

    where = "cluster"

    class target:  # noqa: N801 - as the session names it
        cluster = True

    def __init__(self) -> None:
        self.held = {Address("b", 1): [1], Address("d", 1): [2]}
        self.soft = soft_over(self)

    async def whole(self) -> list[Address]:
        return sorted(self.held)

    async def at(self, address: Address, call: Any) -> Any:
        assert call.arguments[1] == "0", "a cursor of another server"
        return b"0", [self.soft.key_of(UUID(int=number)) for number in self.held[address]]

    async def parted(self, calls: Any, *, deadline: Deadline) -> Any:
        del deadline
        return [[b"9\x1eweb\x1f5\x1f9\x1f\x1e" for _ in call.arguments[1:]] for call in calls]


@pytest.mark.parametrize("place", ["a", "c", "e"])
@pytest.mark.parametrize("lost", ["b", "d"])
async def test_a_scan_gives_every_key_over_a_failover(lost: str, place: str) -> None:
    cluster = Failing()
    page = await cluster.soft.scan(None, 10)
    found = {beat.key.int for beat in page.beats}
    cluster.held[Address(place, 1)] = cluster.held.pop(Address(lost, 1))
    for _ in range(4):
        if page.after is None:
            break
        page = await cluster.soft.scan(page.after, 10)
        found |= {beat.key.int for beat in page.beats}
    assert (found, page.after) == ({1, 2}, None)


async def test_a_scan_does_not_pass_over_slots_that_nobody_holds() -> None:
    target = Target.of("r", BackendUrl.parse("redis+cluster://a.example,b.example"))
    session = RedisSession("r", target, CLOCK, in_flight_max=1)
    session._owners = slot_owners([[0, 8191, [b"10.0.0.1", 6379]]], Address("a.example", 6379))
    session._stale = False
    with pytest.raises(Unavailable, match="no server holds 8192 of the 16384 slots"):
        await soft_over(session).scan(None, 10)
    assert session._stale, "and is asked about again"
