"""Presence and typing in Redis: one string for each key, all its items within, read by MGET.

A string, not a hash: the answer for 2,000 users is one MGET on a server, and on a cluster one for each of TAGS hash
tags, instead of 2,000 commands (docs/adr/0019). It begins with the end of the last item, which is all that most readers
want. A script keeps the rule of `datalayer.domains.soft.admit` and publishes who comes and goes; who ends by the clock
is nobody's message.

Beats given at the same time share a pipeline: while one is under way to a server, the next gathers.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

from datalayer.clock import Deadline
from datalayer.domains.soft import ITEMS_MAX, KEEP_US, LATE_US, Beat, Entry
from datalayer.errors import DatalayerError, DeadlineExceeded, OutcomeUnknown, Overloaded, Unavailable
from datalayer.stores.redis import faults
from datalayer.stores.redis.scripts import Script, command
from datalayer.stores.redis.target import Address
from datalayer.stores.soft import SoftPage, until_confirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from datalayer.clock import Clock
    from datalayer.stores.redis.keys import Names
    from datalayer.stores.redis.scripts import Call
    from datalayer.stores.redis.session import RedisSession
    from datalayer.stores.soft import Ear

TAGS: Final = 1024
"""Hash tags of the keys: few enough that an MGET has several keys, enough to spread over a hundred nodes."""
MGET_MAX: Final = 1000
PENDING_MAX: Final = 100_000
"""Beats that wait for a server; beyond them a beat is refused."""
BATCH_MAX: Final = 1000
PING_S: Final = 3.0
"""A subscription that says nothing for twice as long has ended."""
CONNECT_S: Final = 2.0
SCAN_COUNT: Final = 1000
SCAN_S: Final = 10.0

_BEAT: Final = r"""
local keep, late, most = %d, %d, %d
local old = redis.call('GET', KEYS[1])
local version, expires = tonumber(ARGV[2]), tonumber(ARGV[3])
local newest, was, kept = version, 0, {}
if old then
  for item, v, e, status in string.gmatch(old, '([^\31\30]+)\31(%d+)\31(%d+)\31([^\30]*)\30') do
    local vn, en = tonumber(v), tonumber(e)
    if en > was then was = en end
    if item == ARGV[1] then
      if vn > version or (vn == version and en >= expires) then return 0 end
    else
      kept[#kept + 1] = {vn, en, item .. '\31' .. v .. '\31' .. e .. '\31' .. status .. '\30'}
      if vn > newest then newest = vn end
    end
  end
end
kept[#kept + 1] = {version, expires, ARGV[1] .. '\31' .. ARGV[2] .. '\31' .. ARGV[3] .. '\31' .. ARGV[4] .. '\30'}
local alive = {}
for _, one in ipairs(kept) do
  if math.max(one[1], one[2]) > newest - late then alive[#alive + 1] = one end
end
if #alive > most then
  table.sort(alive, function(a, b) return a[1] > b[1] end)
  for at = #alive, most + 1, -1 do alive[at] = nil end
end
local last, top, body = newest, 0, {}
for at, one in ipairs(alive) do
  if one[2] > top then top = one[2] end
  body[at] = one[3]
end
if top > last then last = top end
redis.call('SET', KEYS[1], string.format('%.0f', top) .. '\30' .. table.concat(body),
  'PXAT', string.format('%.0f', math.floor((last + keep) / 1000)))
if ARGV[5] == '1' and (was > version) ~= (top > version) then
  redis.call('PUBLISH', string.sub(KEYS[1], 1, -18), string.sub(KEYS[1], -16))
end
return 1"""
"""A key is the name of its channel, a colon and the 16 bytes of a user or conversation. What is always the same is in the
text: each argument costs the caller as much as the whole script costs the server.
"""


class RedisSoft:
    """One soft domain at one place."""

    reach: Literal["process", "network"] = "network"
    pushes = True

    def __init__(self, session: RedisSession, names: Names, clock: Clock, domain: str) -> None:
        self._session = session
        self._names = names
        self._clock = clock
        # Without `%` formatting: Lua's patterns are full of it.
        text = _BEAT.replace("%d, %d, %d", f"{KEEP_US[domain] + LATE_US}, {LATE_US}, {ITEMS_MAX}", 1)
        self._script = Script(text)
        self._packed_head = b"*9\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n" % self._script.sha.encode()
        self._lanes: dict[Address, _Lane] = {}

    # --- beats -------------------------------------------------------------------------------------------------------

    async def beat(self, beat: Beat, deadline: Deadline) -> None:
        """A beat is the same however often it is sent: it is sent again until it is confirmed or its time is up."""
        call = self.call_of(beat, publish=True)

        async def send() -> None:
            await (await self._lane(call, deadline)).send(call, deadline)

        await until_confirmed(send, deadline)

    def call_of(self, beat: Beat, *, publish: bool) -> Call:
        """The command that brings a beat; ``publish``: who comes or goes by it is told."""
        arguments = (beat.item, beat.version, beat.expires_us, beat.status, "1" if publish else "")
        key = self.key_of(beat.key)
        call = self._script.call([key], arguments)
        item, status = beat.item.encode(), beat.status.encode()
        version, end, told = b"%d" % beat.version, b"%d" % beat.expires_us, b"1" if publish else b""
        packed = b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            self._packed_head,
            len(key),
            key,
            len(item),
            item,
            len(version),
            version,
            len(end),
            end,
            len(status),
            status,
            len(told),
            told,
        )
        return call._replace(packed=packed)

    async def _lane(self, call: Call, deadline: Deadline) -> _Lane:
        address = await self._session.server_of(call.key, deadline)
        lane = self._lanes.get(address)
        if lane is None:
            lane = self._lanes[address] = _Lane(self._session)
        return lane

    async def apply(self, beats: Sequence[Beat]) -> None:
        for at in range(0, len(beats), BATCH_MAX):
            calls = [self.call_of(beat, publish=False) for beat in beats[at : at + BATCH_MAX]]
            await self._session.batch(calls, write=True)

    # --- reads -------------------------------------------------------------------------------------------------------

    async def ends(self, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, int | None]:
        return await self._read(keys, _end, deadline)

    async def entries(self, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, Entry | None]:
        return await self._read(keys, _entry, deadline)

    async def _read(
        self, keys: Sequence[UUID], make: Callable[[UUID, bytes | None], Any], deadline: Deadline
    ) -> dict[UUID, Any]:
        groups = self._groups(keys)
        calls = [command("MGET", *map(self.key_of, group)) for group in groups]
        found: dict[UUID, Any] = dict.fromkeys(keys)
        for group, values in zip(groups, await self._session.parted(calls, deadline=deadline), strict=True):
            if isinstance(values, DatalayerError):
                if not values.retryable:
                    raise values
                continue
            for key, value in zip(group, values, strict=True):
                found[key] = make(key, value)
        return found

    def _groups(self, keys: Sequence[UUID]) -> list[Sequence[UUID]]:
        if not self._session.target.cluster:
            return [keys[at : at + MGET_MAX] for at in range(0, len(keys), MGET_MAX)]
        groups: defaultdict[int, list[UUID]] = defaultdict(list)
        for key in keys:
            groups[key.int % TAGS].append(key)
        return list(groups.values())

    async def scan(self, after: str | None, limit: int) -> SoftPage:
        """By the servers' own cursors, one server after the other; over a failover it begins anew.

        A cursor means nothing to another server, and among other servers a number means another one.
        """
        primaries = self._session.primaries()
        servers = zlib.crc32(repr(primaries).encode())
        begun, number, cursor = (servers, 0, "0") if after is None else json.loads(after)
        if begun != servers:
            number, cursor = 0, "0"
        pattern = self._names.begin + b"*"
        cursor, keys = await self._session.at(
            primaries[number], command("SCAN", cursor, "MATCH", pattern, "COUNT", max(limit, SCAN_COUNT))
        )
        found = [UUID(bytes=key[-16:]) for key in keys if len(key) == self._key_length]
        beats: list[Beat] = []
        for key, entry in (await self.entries(found, Deadline(self._clock, SCAN_S))).items() if found else ():
            if entry is None:
                raise Unavailable("a server of the cluster did not answer")
            beats += [Beat(key, *beat[1:]) for beat in entry]
        done = cursor == b"0"
        number += done
        following = json.dumps((servers, number, "0" if done else cursor.decode()))
        return SoftPage(beats, None if number >= len(primaries) else following)

    # --- who comes and goes ------------------------------------------------------------------------------------------

    async def listen(self, ear: Ear) -> None:
        await _Subscription(self._session, self._channel_of_tag, ear).run()

    def _channel_of_tag(self, tag: int) -> bytes:
        return b"%s{%03x}" % (self._names.begin, tag)

    # --- the place ---------------------------------------------------------------------------------------------------

    @property
    def _key_length(self) -> int:
        return len(self._names.begin) + len(b"{000}:") + 16

    def key_of(self, key: UUID) -> bytes:
        """The name of a key: its bytes end it."""
        return b"%s{%03x}:%s" % (self._names.begin, key.int % TAGS, key.bytes)

    async def create(self) -> None:
        """Nothing to make: a key is made by its first beat."""

    async def drop(self) -> None:
        pattern = self._names.begin + b"*"
        for address in self._session.primaries():
            cursor: bytes | str = "0"
            while True:
                cursor, keys = await self._session.at(
                    address, command("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
                )
                if keys:
                    await self._session.batch([command("UNLINK", key) for key in keys], write=True)
                if cursor == b"0":
                    break

    async def empty(self) -> bool:
        after: str | None = None
        while True:
            page = await self.scan(after, SCAN_COUNT)
            if page.beats:
                return False
            after = page.after
            if after is None:
                return True


class _Lane:
    """Beats for one server: while a pipeline is under way, the next gathers."""

    __slots__ = ("_session", "_task", "_waiting")

    def __init__(self, session: RedisSession) -> None:
        self._session = session
        self._waiting: list[tuple[Call, asyncio.Future[None], Deadline]] = []
        self._task: asyncio.Task[None] | None = None

    async def send(self, call: Call, deadline: Deadline) -> None:
        if len(self._waiting) >= PENDING_MAX:
            raise Overloaded(f"{self._session.where}: {PENDING_MAX} beats wait for a server already")
        loop = asyncio.get_running_loop()
        sent: asyncio.Future[None] = loop.create_future()
        self._waiting.append((call, sent, deadline))
        if self._task is None:
            self._task = loop.create_task(self._run(), name="datalayer-beats")
        try:
            async with asyncio.timeout(deadline.remaining()):
                await sent
        except TimeoutError as error:
            raise OutcomeUnknown(f"{self._session.where}: the beat was not confirmed before the deadline") from error

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                batch = _in_time(batch)
                if batch:
                    await self._send(batch)
        finally:
            self._task = None

    async def _send(self, batch: list[tuple[Call, asyncio.Future[None], Deadline]]) -> None:
        deadline = max((one for _, _, one in batch), key=lambda one: one.remaining())
        failure: DatalayerError | None = OutcomeUnknown(f"{self._session.where}: the beats' sender ended")
        try:
            await self._session.batch([call for call, _, _ in batch], write=True, deadline=deadline)
            failure = None
        except DatalayerError as error:
            failure = error
        finally:
            for _, sent, _ in batch:
                if sent.done():
                    continue
                if failure is None:
                    sent.set_result(None)
                else:
                    sent.set_exception(failure)


def _in_time(
    batch: list[tuple[Call, asyncio.Future[None], Deadline]],
) -> list[tuple[Call, asyncio.Future[None], Deadline]]:
    """Those whose callers still wait."""
    kept = []
    for one in batch:
        _, sent, deadline = one
        if sent.done():
            continue
        if deadline.passed:
            sent.set_exception(DeadlineExceeded("the beat did not come to its server before the deadline"))
        else:
            kept.append(one)
    return kept


class _Subscription:
    """One connection that hears of some hash tags' keys, more of them as more are asked for."""

    def __init__(self, session: RedisSession, channel: Callable[[int], bytes], ear: Ear) -> None:
        self._session = session
        self._channel = channel
        self._ear = ear
        self._asked: set[int] = set()
        self._confirmed = 0
        self._line: Any = None

    async def run(self) -> None:
        """Until the connection ends."""
        address = self._session.primaries()[0]
        for other in self._session.primaries():
            self._line = self._session.target.line(other)
            try:
                async with asyncio.timeout(CONNECT_S):
                    await self._line.connect()
            except (TimeoutError, *faults.CAUGHT):
                await self._line.disconnect(nowait=True)
                continue
            address = other
            break
        else:
            raise Unavailable(f"{self._session.where}: no subscription can be had")
        tasks = [asyncio.create_task(one) for one in (self._hear(), self._ask_forever(), self._ping_forever())]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        except (TimeoutError, *faults.CAUGHT) as error:
            raise Unavailable(f"the subscription at {address} ended") from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._line.disconnect(nowait=True)

    async def _hear(self) -> None:
        while True:
            async with asyncio.timeout(2 * PING_S):
                answer = await self._line.read_response()
            if not isinstance(answer, list):
                continue
            if answer[0] == b"message":
                self._ear.hint(UUID(bytes=answer[2]))
            elif answer[0] == b"subscribe":
                self._confirmed += 1
                if self._confirmed == len(self._asked):
                    self._ear.connected()

    async def _ask_forever(self) -> None:
        while True:
            wanted = {key.int % TAGS for key in self._ear.keys} - self._asked
            if wanted:
                self._asked |= wanted
                await self._line.send_command("SUBSCRIBE", *map(self._channel, sorted(wanted)), check_health=False)
            await self._ear.changed()

    async def _ping_forever(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            await self._line.send_command("PING", check_health=False)


def _end(key: UUID, value: bytes | None) -> int:
    del key
    return 0 if value is None else int(value[: value.index(b"\x1e")])


def _entry(key: UUID, value: bytes | None) -> Entry:
    return () if value is None else tuple(_beats(key, value.split(b"\x1e")[1:-1]))


def _beats(key: UUID, parts: Iterable[bytes]) -> Iterable[Beat]:
    for part in parts:
        item, version, expires, status = part.split(b"\x1f")
        yield Beat(key, item.decode(), int(version), int(expires), status.decode())


def presence(session: RedisSession, names: Names, clock: Clock) -> RedisSoft:
    """The store of presence at a place."""
    return RedisSoft(session, names, clock, "presence")


def typing(session: RedisSession, names: Names, clock: Clock) -> RedisSoft:
    """The store of typing at a place."""
    return RedisSoft(session, names, clock, "typing")
