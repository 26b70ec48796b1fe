"""One configured Redis: a server or a cluster, the stores in it, and what it says of itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from datalayer.domains.registry import DOMAINS
from datalayer.errors import ConfigurationError, LostLease
from datalayer.stores.base import MetaRow
from datalayer.stores.redis import demands, soft
from datalayer.stores.redis.incarnation import incarnation
from datalayer.stores.redis.keys import Names
from datalayer.stores.redis.scripts import Script, command
from datalayer.stores.redis.session import RedisSession
from datalayer.stores.redis.sessions import RedisSessions
from datalayer.stores.redis.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datalayer.clock import Clock, Deadline
    from datalayer.settings import BackendUrl
    from datalayer.stores.base import AuthorityClass, Token

STORES: Final[dict[str, Callable[[RedisSession, Names, Clock], Any]]] = {
    "presence": soft.presence,
    "typing": soft.typing,
    "sessions": RedisSessions,
}
"""The store of each domain that Redis holds."""

_PUT_META: Final = Script("""
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored and cjson.decode(stored).epoch > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1""")
_RAISE_TOKEN: Final = Script("""
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored and cjson.decode(stored).value > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1""")


class RedisBackend:
    """A Redis server or cluster."""

    product: str = "redis"
    authority_class: AuthorityClass = "last_writer"

    def __init__(self, name: str, url: BackendUrl, *, in_flight_max: int, clock: Clock) -> None:
        self.name = name
        self._clock = clock
        self._target = Target.of(name, url)
        self._session = RedisSession(name, self._target, clock, in_flight_max=in_flight_max)
        self._meta = f"{self._target.prefix}:{{datalayer}}:meta".encode()
        self._tokens = f"{self._target.prefix}:{{datalayer}}:token".encode()
        self._stores: dict[tuple[str, int], Any] = {}

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def ping(self, deadline: Deadline) -> None:
        await self._session.run(command("PING", key=self._meta), write=False, deadline=deadline)

    def refuses(self, domain: str) -> str | None:
        if domain in STORES:
            return None
        if domain in DOMAINS and DOMAINS[domain].needs_compare_and_set:
            return f"{domain} needs compare-and-set"
        return f"redis does not store {domain}"

    def store(self, domain: str, attempt: int) -> Any:
        reason = self.refuses(domain)
        if reason is not None:
            raise ConfigurationError(f"backend {self.name}: {reason}")
        key = (domain, attempt)
        if key not in self._stores:
            names = Names(self._target.prefix, domain, attempt)
            self._stores[key] = STORES[domain](self._session, names, self._clock)
        return self._stores[key]

    async def ensure_schema(self, *, create: bool) -> None:
        """There is no schema: the server is checked for what it must be like."""
        await demands.check(self._session, self._clock)

    async def incarnation(self, deadline: Deadline) -> str:
        return await incarnation(self._session, deadline)

    # --- what the server says of itself ---

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        reply = await self._session.run(command("HGETALL", self._meta), write=False)
        rows = [MetaRow(**json.loads(value)) for value in reply[1::2]]
        return {(row.domain, row.attempt): row for row in rows}

    async def write_meta(self, row: MetaRow) -> None:
        content = {name: getattr(row, name) for name in ("domain", "attempt", "deployment", "role", "epoch")}
        arguments = (f"{row.domain}/{row.attempt}", row.epoch, json.dumps(content))
        await self._session.run(_PUT_META.call([self._meta], arguments), write=True)

    async def raise_token(self, token: Token) -> None:
        content = {"migration": token.migration, "attempt": token.attempt, "value": token.value}
        arguments = (token.domain, token.value, json.dumps(content))
        if not await self._session.run(_RAISE_TOKEN.call([self._tokens], arguments), write=True):
            raise LostLease(f"{self._session.where} has seen a newer coordinator of {token.domain}")


def create_backend(name: str, url: BackendUrl, *, pool_max: int, clock: Clock) -> RedisBackend:
    """The backend of a URL, not yet opened: at most ``pool_max`` requests in flight, each on a connection of its own."""
    return RedisBackend(name, url, in_flight_max=pool_max, clock=clock)
