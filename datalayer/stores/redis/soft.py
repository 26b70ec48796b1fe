"""Presence and typing in Redis: one string for each key, all its items within, read by MGET.

A string, not a hash: the answer for 2,000 users is one MGET on a server, and on a cluster one for each of TAGS hash
tags, instead of 2,000 commands (docs/adr/0019). It begins with the end of the last item, which is all that most readers
want. A script keeps the rule of `datalayer.domains.soft.admit` and publishes who comes and goes; who ends by the clock
is nobody's message.

Beats given at the same time share a pipeline (`datalayer.stores.redis.lanes`).
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

from datalayer.clock import Deadline
from datalayer.domains.soft import ITEMS_MAX, KEEP_US, LATE_US, Beat, Entry
from datalayer.errors import DatalayerError, OutcomeUnknown, Unavailable
from datalayer.stores.redis import faults
from datalayer.stores.redis.lanes import BATCH_MAX, Lane
from datalayer.stores.redis.scripts import Call, Script, command
from datalayer.stores.redis.target import Address
from datalayer.stores.soft import SoftPage, until_confirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from datalayer.clock import Clock
    from datalayer.stores.redis.keys import Names
    from datalayer.stores.redis.session import RedisSession
    from datalayer.stores.soft import Ear

TAGS: Final = 1024
"""Hash tags of the keys: few enough that an MGET has several keys, enough to spread over a hundred nodes."""
MGET_MAX: Final = 1000
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
        self._heads = [b"%s{%03x}:" % (names.begin, number) for number in range(TAGS)]
        self._key_length = len(self._heads[0]) + 16
        self._packed_head = b"*9\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n$%d\r\n" % (
            self._script.sha.encode(),
            self._key_length,
        )
        self._lanes: dict[Address, Lane] = {}

    # --- beats -------------------------------------------------------------------------------------------------------

    async def beat(self, beat: Beat, deadline: Deadline) -> None:
        """A beat is the same however often it is sent: it is sent again until it is confirmed or its time is up."""
        call = self.call_of(beat, publish=True)
        try:
            await (self._lane(call) or await self._learnt_lane(call, deadline)).send(call, deadline)
        except (Unavailable, OutcomeUnknown) as error:
            await until_confirmed(partial(self._send, call, deadline), deadline, error)

    async def _send(self, call: Call, deadline: Deadline) -> None:
        await (self._lane(call) or await self._learnt_lane(call, deadline)).send(call, deadline)

    def _lane(self, call: Call) -> Lane | None:
        """The lane to the server of a call; None where that must be asked for first."""
        assert call.key is not None, "a beat has a key"
        address = self._session.known_server(call.key)
        return None if address is None else self._lanes.get(address) or self._lane_to(address)

    async def _learnt_lane(self, call: Call, deadline: Deadline) -> Lane:
        return self._lane_to(await self._session.server_of(call.key, deadline))

    def _lane_to(self, address: Address) -> Lane:
        if address not in self._lanes:
            self._lanes[address] = Lane(self._session, address)
        return self._lanes[address]

    def call_of(self, beat: Beat, *, publish: bool) -> Call:
        """The command that brings a beat; ``publish``: who comes or goes by it is told."""
        user, name, given, ends, said = beat
        key = self._heads[user.int % TAGS] + user.bytes
        item, status, told = name.encode(), said.encode(), b"1" if publish else b""
        version, end = b"%d" % given, b"%d" % ends
        packed = b"%b%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            self._packed_head,
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
        return Call(("EVALSHA", self._script.sha, 1, key, item, version, end, status, told), key, self._script, packed)

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
        primaries = await self._session.whole()
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

    def key_of(self, key: UUID) -> bytes:
        """The name of a key: its bytes end it."""
        return self._heads[key.int % TAGS] + key.bytes

    async def create(self) -> None:
        """Nothing to make: a key is made by its first beat."""

    async def drop(self) -> None:
        pattern = self._names.begin + b"*"
        for address in await self._session.whole():
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
