"""Reading a place along the slots: ranges of slots, pages by the member of the index that was read last.

The order is that of slots and, within one, of the bytes of members. A checkpoint is (slot, member): data, so it is good
on any server, after any failover. What is inserted behind it is not seen, what is inserted ahead is, so a scan under
inserts ends: new keys are spread over all slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.errors import InvalidArgument
from datalayer.ids import SLOTS
from datalayer.stores.base import ScanPage
from datalayer.stores.redis import lua
from datalayer.stores.redis.scripts import command

if TYPE_CHECKING:
    from collections.abc import Callable

    from datalayer.domains.record import Record
    from datalayer.stores.redis.keys import Names
    from datalayer.stores.redis.session import RedisSession

SLOTS_FIRST: Final = 32
SLOTS_AT_ONCE: Final = 1024
INDEX, MARKER = b"index", b"place"


class SlotScan:
    """The scanning half of a store's port."""

    def __init__(self, session: RedisSession, names: Names, record_of: Callable[[bytes, bytes], Record]) -> None:
        self._session = session
        self._names = names
        self._record_of = record_of

    def plan(self, n: int) -> list[str]:
        """``n`` equal ranges of slots, both ends included; no more than there are slots."""
        if n < 1:
            msg = f"a scan has at least one range, not {n}"
            raise InvalidArgument(msg)
        n = min(n, SLOTS)
        return [f"{SLOTS * at // n}-{SLOTS * (at + 1) // n - 1}" for at in range(n)]

    async def page(self, range_: str, after: str | None, limit: int) -> ScanPage:
        """The next records of a range (see Port.scan)."""
        slot, last = _range(range_)
        beyond = b""
        if after is not None:
            slot, beyond = _position(after)
        records: list[Record] = []
        window = SLOTS_FIRST
        while slot <= last:
            room = limit - len(records)
            slots = await self._filled(slot, min(last, slot + window - 1), room)
            window = min(2 * window, SLOTS_AT_ONCE)
            pages = await self._read(slots, beyond, room)
            slot, beyond = slots[-1] + 1, b""
            for one, (members, cells) in zip(slots, pages, strict=True):
                for member, cell in zip(members, cells, strict=True):
                    if len(records) == limit:
                        return ScanPage(records, after, False)
                    after = f"{one}:{member.hex()}"
                    if cell:  # Redis has dropped the others
                        records.append(self._record_of(member, cell))
                if len(members) == room:
                    # there may be more in this slot
                    slot, beyond = one, members[-1]
                    break
            if len(records) == limit and slot <= last:
                return ScanPage(records, after, False)
        return ScanPage(records, after, True)

    async def sizes(self, low: int, high: int) -> list[int]:
        """How many entries the index of each slot has."""
        calls = [command("ZCARD", self._names.of_slot(slot, INDEX)) for slot in range(low, high)]
        return await self._session.batch(calls, write=False)

    async def _filled(self, slot: int, last: int, wanted: int) -> list[int]:
        """The next slots, all in a row, that hold so many records; one at least."""
        found = 0
        for number, size in enumerate(await self.sizes(slot, last + 1)):
            found += size
            if found >= wanted:
                return list(range(slot, slot + number + 1))
        return list(range(slot, last + 1))

    async def _read(self, slots: list[int], beyond: bytes, room: int) -> list[tuple[list[bytes], list[bytes | None]]]:
        calls = []
        for slot in slots:
            keys = (self._names.of_slot(slot, INDEX), self._names.of_slot(slot, MARKER))
            start = b"(" + beyond if beyond and slot == slots[0] else b"-"
            calls.append(lua.PAGE.call(keys, (self._names.of_slot(slot, b""), start, b"+", room)))
        return await self._session.batch(calls, write=False)


def _range(text: str) -> tuple[int, int]:
    try:
        low, high = text.split("-")
        return int(low), int(high)
    except ValueError:
        msg = "the range of a scan is damaged"
        raise InvalidArgument(msg) from None


def _position(text: str) -> tuple[int, bytes]:
    try:
        slot, member = text.split(":")
        return int(slot), bytes.fromhex(member)
    except ValueError:
        msg = "the checkpoint of a scan is damaged"
        raise InvalidArgument(msg) from None
