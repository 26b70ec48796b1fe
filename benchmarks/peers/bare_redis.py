"""redis-py alone: the commands that the data layer sends, in the driver's own pipelines, and the results by hand."""

import hashlib
import hmac
import json
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from redis.asyncio import Redis

from datalayer.domains.record import EXPIRY_GRACE_US, FINAL_LEAD
from datalayer.domains.soft import Beat
from datalayer.stores.redis import lua
from datalayer.stores.redis.keys import Names
from datalayer.stores.redis.scan import INDEX, MARKER
from datalayer.types import Session

MGET_AT_ONCE = 1000
DAY_US = 24 * 3600 * 1_000_000
TTL_US, LIFETIME_US = 14 * DAY_US, 90 * DAY_US


class BarePresence:
    """Beats and ends under the names, and by the script, of a store of the data layer."""

    def __init__(self, url: str, store: Any) -> None:
        self._client = Redis.from_url(url)
        self._key = store.key_of
        self._sha = store.call_of(Beat(uuid4(), "web", 0, 0), publish=True).arguments[1]

    async def close(self) -> None:
        await self._client.aclose()

    async def beat(self, users: Sequence[UUID], ttl_s: float) -> None:
        """All of them in one pipeline."""
        pipeline = self._client.pipeline(transaction=False)
        now = time.time_ns() // 1000
        end = now + int(ttl_s * 1e6)
        for user in users:
            pipeline.execute_command("EVALSHA", self._sha, 1, self._key(user), "web", now, end, "", "1")
        await pipeline.execute()

    async def online(self, users: Sequence[UUID]) -> dict[UUID, bool]:
        now = time.time_ns() // 1000
        found: dict[UUID, bool] = {}
        for at in range(0, len(users), MGET_AT_ONCE):
            some = users[at : at + MGET_AT_ONCE]
            values: list[Any] = await self._client.mget([self._key(user) for user in some])
            for user, value in zip(some, values, strict=True):
                found[user] = value is not None and int(value[: value.index(b"\x1e")]) > now
        return found


class BareSessions:
    """Sessions as records of the data layer, so that both sides read what either has written."""

    def __init__(self, url: str, names: Names) -> None:
        self._client = Redis.from_url(url)
        self._names = names

    async def open(self) -> None:
        await self._client.script_load(lua.APPLY.text)

    async def close(self) -> None:
        await self._client.aclose()

    async def create(self, user: UUID) -> str:
        """The token of a new one."""
        secret = secrets.token_bytes(32)
        digest = hashlib.sha256(secret).digest()
        member = b"s" + user.bytes + digest[:16]
        stored, cut = await self._read(user, member)
        assert stored is None
        now = time.time_ns() // 1000
        mark = now if cut is None else max(now, cut[2] + 1)
        cell = [now & ~2047, 0, digest[16:].hex(), now, mark, now + LIFETIME_US, now + TTL_US, "{}"]
        await self._write(user, member, cell, now + TTL_US)
        return urlsafe_b64encode(user.bytes + secret).decode()

    async def get(self, token: str) -> Session | None:
        user, digest = _parsed(token)
        member = b"s" + user.bytes + digest[:16]
        keys = [self._names.key(user.bytes, one) for one in (member, b"c" + user.bytes, MARKER)]
        stored, cut, marker = await self._client.mget(keys)
        assert marker is not None
        cell = None if stored is None else json.loads(stored)
        if not _lives(cell, None if cut is None else json.loads(cut), digest):
            return None
        return _session(user, digest, cell)

    async def touch(self, token: str) -> Session | None:
        user, digest = _parsed(token)
        member = b"s" + user.bytes + digest[:16]
        cell, cut = await self._read(user, member)
        if not _lives(cell, cut, digest):
            return None
        now = time.time_ns() // 1000
        until = min(now + TTL_US, cell[5])
        if until > cell[6]:
            cell[0], cell[6] = max(cell[0] + 2, now) + 2048 & ~2047, until
            await self._write(user, member, cell, until)
        return _session(user, digest, cell)

    async def revoke(self, token: str) -> None:
        user, digest = _parsed(token)
        member = b"s" + user.bytes + digest[:16]
        keys = [self._names.key(user.bytes, one) for one in (member, MARKER)]
        stored, marker = await self._client.mget(keys)
        assert marker is not None
        cell = None if stored is None else json.loads(stored)
        if cell is None or cell[1] or not hmac.compare_digest(bytes.fromhex(cell[2]), digest[16:]):
            return
        version = max(cell[0] + 2, time.time_ns() // 1000) + FINAL_LEAD
        await self._write(user, member, [version, 1, "00" * 16, cell[3], cell[4], cell[5], cell[5], "{}"], cell[5])

    async def _read(self, user: UUID, member: bytes) -> tuple[Any, Any]:
        """The record and the user's cut: two commands of one pipeline."""
        marker = self._names.key(user.bytes, MARKER)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.mget([self._names.key(user.bytes, member), marker])
        pipeline.mget([self._names.key(user.bytes, b"c" + user.bytes), marker])
        (stored, there), (cut, _) = await pipeline.execute()
        assert there is not None
        return None if stored is None else json.loads(stored), None if cut is None else json.loads(cut)

    async def _write(self, user: UUID, member: bytes, cell: list[Any], expires_us: int) -> None:
        names = [self._names.key(user.bytes, one) for one in (member, INDEX, MARKER)]
        text = json.dumps(cell, separators=(",", ":"), ensure_ascii=False)
        drop_ms = (expires_us + EXPIRY_GRACE_US) // 1000
        await self._client.evalsha(lua.APPLY.sha, 3, *names, text, str(cell[0]), drop_ms, member)


def _parsed(token: str) -> tuple[UUID, bytes]:
    raw = urlsafe_b64decode(token)
    return UUID(bytes=raw[:16]), hashlib.sha256(raw[16:]).digest()


def _lives(cell: Any, cut: Any, digest: bytes) -> bool:
    if cell is None or cell[1] or cell[6] <= time.time_ns() // 1000:
        return False
    return hmac.compare_digest(bytes.fromhex(cell[2]), digest[16:]) and (
        cut is None or bool(cut[1]) or cell[4] > cut[2]
    )


def _session(user: UUID, digest: bytes, cell: Any) -> Session:
    version, deleted, proof, created, mark, ends, expires, attributes = cell
    made = (created, expires, ends, json.loads(attributes), version, deleted == 1, mark, bytes.fromhex(proof))
    return Session(user, UUID(bytes=digest[:16]), *made)
