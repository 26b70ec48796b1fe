"""What a server must be like to keep data: checked when a backend is opened, told in one sentence each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import PreconditionFailed
from datalayer.stores.redis.scripts import command

if TYPE_CHECKING:
    from datalayer.clock import Clock
    from datalayer.stores.redis.session import RedisSession
    from datalayer.stores.redis.target import Address

OLDEST_SERVER: Final = (6, 2)
"""SET ... PXAT, which writes a record and its end in one command, came with 6.2."""
CLOCK_DIFFERENCE_US: Final = 1_000_000
_log: Final = logging.getLogger(__name__)


async def check(session: RedisSession, clock: Clock) -> None:
    """PreconditionFailed for a server that is too old, evicts, or is of a cluster that the URL does not name."""
    for address, reply in (await session.of_primaries(command("INFO", "server"))).items():
        info = parse_info(reply)
        version = tuple(int(part) for part in info.get("redis_version", "0.0").split(".")[:2])
        if version < OLDEST_SERVER:
            raise PreconditionFailed(
                f"{session.where}: the server {address} is Redis {info.get('redis_version')}",
                hint="6.2 or newer is needed: records and their expiry are written by SET ... PXAT",
            )
        if info.get("redis_mode") == "cluster" and not session.target.cluster:
            raise PreconditionFailed(
                f"{session.where} is one node of a cluster", hint="write redis+cluster:// instead of redis://"
            )
    for address, reply in (await session.of_primaries(command("INFO", "memory"))).items():
        policy = parse_info(reply).get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise PreconditionFailed(
                f"{session.where}: the server {address} throws data away when its memory is full: "
                f"maxmemory-policy is {policy}",
                hint="set maxmemory-policy noeviction, or use another server for what is not a cache",
            )
    await tell_clock_differences(session, clock)


async def tell_clock_differences(session: RedisSession, clock: Clock) -> None:
    """A WARNING for each server whose clock is more than a second from this process's: expiry goes by both."""
    began_us = clock.now_us()
    for address, reply in (await session.of_primaries(command("TIME"))).items():
        difference_us = int(reply[0]) * 1_000_000 + int(reply[1]) - began_us
        taken_us = clock.now_us() - began_us
        if difference_us < -CLOCK_DIFFERENCE_US or difference_us - taken_us > CLOCK_DIFFERENCE_US:
            _tell(session.where, address, difference_us)


def _tell(where: str, address: Address, difference_us: int) -> None:
    ahead = "ahead of" if difference_us > 0 else "behind"
    _log.warning(
        "%s: the clock of server %s is %.1f s %s this process's; what expires may end early or late by that",
        where,
        address,
        abs(difference_us) / 1e6,
        ahead,
    )


def parse_info(reply: Any) -> dict[str, str]:
    """The fields of an INFO answer."""
    lines = (line.partition(":") for line in reply.decode().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in lines}
