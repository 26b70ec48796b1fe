"""UUIDv7 ids (RFC 9562): 48 bits of milliseconds, 12 bits of sub-millisecond time or counter, 62 random bits.

They sort by time in every store (Postgres uuid, Cassandra uuid, SQLite blob, hex keyword). The id's own time in
microseconds is a pure function of its first 64 bits, so that a retried append is the very same write everywhere.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from typing import TYPE_CHECKING, Final
from uuid import UUID

from datalayer.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from datalayer.clock import Clock

SLOTS: Final = 4096
FUTURE_LIMIT_US: Final = 60_000_000
_VARIANT: Final = 0x8000000000000000
_MAX_MS: Final = (1 << 48) - 1
NAMESPACE: Final = UUID("6f2b0f3e-52c5-5f0e-9d0a-0d4c1d6b8a11")


def uuid7_at(time_us: int, random_62: int) -> UUID:
    """The UUIDv7 of a time in microseconds and 62 random bits; ``id_time_us`` gives the time back exactly."""
    ms, sub = divmod(time_us, 1000)
    if not 0 <= ms <= _MAX_MS:
        msg = f"the time {time_us} us is outside what a UUIDv7 can hold"
        raise InvalidArgument(msg)
    # ceil, so that floor(fraction * 1000 / 4096) in id_time_us is exact
    fraction = -(-sub * 4096 // 1000)
    return UUID(int=(ms << 80) | (0x7000 | fraction) << 64 | _VARIANT | (random_62 & 0x3FFFFFFFFFFFFFFF))


def id_time_us(value: UUID) -> int:
    """The time an id carries, in microseconds since 1970."""
    high = value.int >> 64
    return (high >> 16) * 1000 + ((high & 0xFFF) * 1000 >> 12)


class IdSource:
    """Makes ids that rise strictly within one process, also when the clock steps back. Thread-safe."""

    __slots__ = ("_clock", "_last", "_lock", "_random")

    def __init__(self, clock: Clock, random_bits: Callable[[int], int] = secrets.randbits) -> None:
        self._clock = clock
        self._random = random_bits
        self._last = 0
        self._lock = threading.Lock()

    def uuid7(self) -> UUID:
        """A new id, later than every id this source made before."""
        with self._lock:
            now = self._clock.now_us()
            self._last = now if now > self._last else self._last + 1
            return uuid7_at(self._last, self._random(62))


def check_id(value: UUID, now_us: int, what: str = "id") -> UUID:
    """Refuse an id that is not a UUIDv7, or lies more than 60 s in the future (InvalidArgument)."""
    if value.version != 7:
        msg = f"{what} {value} is a UUID of version {value.version}, but ids are UUIDv7"
        raise InvalidArgument(msg, hint="leave id out, or make it with datalayer.uuid7()")
    if id_time_us(value) > now_us + FUTURE_LIMIT_US:
        msg = f"{what} {value} carries a time more than 60 s in the future"
        raise InvalidArgument(msg, hint="check the clock of the machine that made it")
    return value


def imported_message_id(conversation: str, foreign_id: int | str, sent_at_us: int) -> UUID:
    """The deterministic id of an imported message: its own time plus a hash of conversation and foreign id.

    An integer id goes into the sub-millisecond bits and the first random bits, so that messages of one instant keep
    their order.
    """
    ms = sent_at_us // 1000
    digest = hashlib.blake2b(f"{conversation}\x00{foreign_id}".encode(), digest_size=8).digest()
    if not isinstance(foreign_id, int):
        return uuid7_at(sent_at_us, int.from_bytes(digest, "big"))
    order = foreign_id & ((1 << 42) - 1)
    low = (order & ((1 << 30) - 1)) << 32 | int.from_bytes(digest[:4], "big")
    return UUID(int=(ms << 80) | (0x7000 | order >> 30) << 64 | _VARIANT | low)


def slot_of(routing_key: bytes) -> int:
    """The slot, 0 to 4095, of a routing key: the first 12 bits of the sha256 of its 16 bytes (Postgres can compute it).

    What follows them in a record's key does not count.
    """
    digest = hashlib.sha256(routing_key[:16]).digest()
    return digest[0] << 4 | digest[1] >> 4
