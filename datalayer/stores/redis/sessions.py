"""Sessions in Redis: a key for each record, which Redis drops by itself, and an index of keys for each slot.

A record is one string, the canonical cell; a script stores it where it is newer, so it cannot tear. Beside it, in the
same slot, lie an index (a sorted set of equal scores: its order is that of the bytes of keys) and a marker that says
that the place exists: a late write of an ended attempt finds none, and lands nowhere.

The index is what a scan goes by. SCAN's cursors are positions in one server's hash table: they mean nothing to the
replica that takes over. An index is data: it is written by the script that writes the record, travels with it, and any
server continues behind any key. Of records that Redis has dropped, entries stay until a purge or a drop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar, cast

from datalayer.domains import sessions
from datalayer.domains.record import EXPIRY_GRACE_US, Record, decode_cell, encode_cell, expiry_us
from datalayer.errors import Quarantine, SchemaBehind, StaleRoute
from datalayer.ids import SLOTS, slot_of
from datalayer.stores.redis import lua
from datalayer.stores.redis.faults import Refused
from datalayer.stores.redis.scan import INDEX, MARKER, SlotScan
from datalayer.stores.redis.scripts import command

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from uuid import UUID

    from datalayer.clock import Clock, Deadline
    from datalayer.domains.record import Key, Kind
    from datalayer.stores.base import ScanPage
    from datalayer.stores.redis.keys import Names
    from datalayer.stores.redis.scripts import Call
    from datalayer.stores.redis.session import RedisSession
    from datalayer.types import Session, SessionCut

T = TypeVar("T")
_KINDS: Final = {b"s": sessions.SESSION, b"c": sessions.CUT}
_LETTERS: Final = {kind.name: letter for letter, kind in _KINDS.items()}
_INT64: Final = range(-(1 << 63), 1 << 63)
_KEY_BYTES: Final = {"session": 32, "session_cut": 16}
DROP_KEYS: Final = 1000


class RedisSessions:
    """Port + SessionReads of one place."""

    kinds: Sequence[Kind] = sessions.KINDS

    def __init__(self, session: RedisSession, names: Names, clock: Clock) -> None:
        self._session = session
        self._names = names
        self._clock = clock
        self._scan = SlotScan(session, names, _record)
        self._purged = (0, b"")

    # --- the port ---

    async def create(self) -> None:
        calls = [command("SET", self._names.of_slot(slot, MARKER), "1") for slot in range(SLOTS)]
        await self._session.batch(calls, write=True)

    async def mark_again(self, deadline: Deadline) -> int:
        names = [self._names.of_slot(slot, MARKER) for slot in range(SLOTS)]
        there = await self._session.batch([command("EXISTS", one) for one in names], write=False, deadline=deadline)
        missing = [command("SET", one, "1", "NX") for one, found in zip(names, there, strict=True) if not found]
        if missing:
            await self._session.batch(missing, write=True, deadline=deadline)
        return len(missing)

    async def drop(self) -> None:
        # markers first: what comes now lands nowhere
        calls = [command("DEL", self._names.of_slot(slot, MARKER)) for slot in range(SLOTS)]
        await self._session.batch(calls, write=True)
        slots = [slot for slot, size in enumerate(await self._scan.sizes(0, SLOTS)) if size]
        while slots:
            calls = [
                lua.DROP.call([self._names.of_slot(slot, INDEX)], (self._names.of_slot(slot, b""), DROP_KEYS))
                for slot in slots
            ]
            left = await self._session.batch(calls, write=True)
            slots = [slot for slot, rest in zip(slots, left, strict=True) if rest]

    async def empty(self) -> bool:
        if not await self._session.run(command("EXISTS", self._names.of_slot(0, MARKER)), write=False):
            raise SchemaBehind(f"{self._session.where} has no such place of sessions")
        after: str | None = None
        while True:
            page = await self.scan(f"0-{SLOTS - 1}", after, 1)
            if page.records or page.done:
                return not page.records
            after = page.after

    async def plan_scan(self, n: int) -> list[str]:
        return self._scan.plan(n)

    async def scan(self, range_: str, after: str | None, limit: int) -> ScanPage:
        return await _exact(self._scan.page(range_, after, limit))

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        calls = [command("MGET", self._names.key(key, _LETTERS[kind] + key), self._marker(key)) for kind, key in keys]
        found: dict[Key, Record] = {}
        for (kind, key), (cell, marker) in zip(keys, await self._session.batch(calls, write=False), strict=True):
            _check_place(marker)
            if cell is not None:
                found[kind, key] = _record(_LETTERS[kind] + key, cell)
        return found

    async def apply(self, records: Sequence[Record]) -> None:
        rejected: dict[Key, str] = {}
        calls: list[Call] = []
        for record in records:
            reason = self.check(record)
            if reason is None:
                calls.append(self._apply(record))
            else:
                rejected[record.ident] = reason
        if calls:
            await _exact(self._session.batch(calls, write=True))
        if rejected:
            raise Quarantine(rejected)

    async def estimate(self) -> int:
        return sum(await self._scan.sizes(0, SLOTS))

    def check(self, record: Record) -> str | None:
        if len(record.key) != _KEY_BYTES.get(record.kind):
            return f"this store holds no records of the kind {record.kind} with a key of {len(record.key)} bytes"
        if record.version not in _INT64:
            return f"the version {record.version} is no 64-bit number"
        try:
            encode_cell(_KINDS[_LETTERS[record.kind]], record).encode()
        except UnicodeEncodeError as error:
            return f"the text holds a lone surrogate at position {error.start}"
        return None

    # --- typed reads ---

    async def get(self, user_id: UUID, id: UUID, deadline: Deadline) -> tuple[Session | None, SessionCut | None]:
        routing = user_id.bytes
        member = b"s" + routing + id.bytes
        names = (self._names.key(routing, one) for one in (member, b"c" + routing, MARKER))
        cell, cut, marker = await self._session.run(command("MGET", *names), write=False, deadline=deadline)
        _check_place(marker)
        return (None if cell is None else sessions.to_session(_record(member, cell)), _cut(routing, cut))

    async def of_user(self, user_id: UUID, limit: int, deadline: Deadline) -> tuple[list[Session], SessionCut | None]:
        routing = user_id.bytes
        slot = slot_of(routing)
        start, begin = b"s" + routing, self._names.of_slot(slot, b"")
        found: list[Session] = []
        low = b"[" + start
        while True:
            # of a user's sessions some may be revoked or dropped: whole pages are read until there are enough
            arguments = (begin, low, b"[" + start + b"\xff" * 17, limit)
            page = lua.PAGE.call([self._names.of_slot(slot, INDEX), self._marker(routing)], arguments)
            calls = (page, command("GET", self._names.key(routing, b"c" + routing)))
            (members, cells), cut = await _exact(self._session.batch(calls, write=False, deadline=deadline))
            held = (_record(*pair) for pair in zip(members, cells, strict=True) if pair[1])
            found += [sessions.to_session(record) for record in held if not record.deleted]
            if len(members) < limit or len(found) >= limit:
                return found[:limit], _cut(routing, cut)
            low = b"(" + members[-1]

    async def purge(self, before_us: int, limit: int) -> tuple[int, int]:
        """Records go by themselves; what is taken out here is their entries in the index, slot by slot."""
        looked, taken = 0, 0
        first, beyond = self._purged
        self._purged = (0, b"")
        for slot, size in enumerate(await self._scan.sizes(first, SLOTS), first):
            if looked >= limit:
                self._purged = (slot, b"")
                break
            if not size:
                continue
            start = b"(" + beyond if beyond and slot == first else b"-"
            arguments = (self._names.of_slot(slot, b""), start, limit - looked)
            call = lua.PURGE.call([self._names.of_slot(slot, INDEX)], arguments)
            seen, gone, last = await self._session.run(call, write=True)
            looked, taken = looked + seen, taken + gone
            if looked >= limit:
                self._purged = (slot, last)
                break
        return looked, taken

    def _marker(self, routing: bytes) -> bytes:
        return self._names.key(routing, MARKER)

    def _apply(self, record: Record) -> Call:
        kind = _KINDS[_LETTERS[record.kind]]
        member = _LETTERS[record.kind] + record.key
        key = record.key
        names = (self._names.key(key, member), self._names.key(key, INDEX), self._marker(key))
        drop_ms = max(1, (expiry_us(kind, record) + EXPIRY_GRACE_US) // 1000)
        return lua.APPLY.call(names, (encode_cell(kind, record), str(record.version), drop_ms, member))


async def _exact(call: Awaitable[T]) -> T:
    """The answer; StaleRoute where the script found no place."""
    try:
        return await call
    except Refused as error:
        if "STALE" in error.message:
            raise _stale() from error
        raise


def _check_place(marker: bytes | None) -> None:
    if marker is None:
        raise _stale()


def _stale() -> StaleRoute:
    return StaleRoute("the place of these sessions does not exist: the route is old")


def _record(member: bytes, cell: bytes) -> Record:
    return decode_cell(_KINDS[member[:1]], member[1:], cell.decode())


def _cut(routing: bytes, cell: bytes | None) -> SessionCut | None:
    return None if cell is None else cast("SessionCut", sessions.to_entity(_record(b"c" + routing, cell)))
