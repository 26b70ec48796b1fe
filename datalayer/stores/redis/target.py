"""What a URL says, and the driver's connections for it: every choice that differs from the driver's, with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.asyncio import Connection, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from datalayer.errors import ConfigurationError
from datalayer.stores.redis.replies import Replies

if TYPE_CHECKING:
    from datalayer.settings import BackendUrl

DEFAULT_PORT: Final = 6379
CONNECT_TIMEOUT_S: Final = 5.0
READ_BYTES: Final = 64 << 10
DEFAULT_PREFIX: Final = "datalayer"
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""No braces: the first pair in a key marks what a cluster hashes."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Known:
    """What the driver keeps to itself: whether the other end has hung up while the connection lay idle."""

    _reader: Any
    _parser: Any

    def usable(self) -> bool:
        """Whether something can be sent without connecting first."""
        return self._reader is not None and not self._reader.at_eof()

    async def answers(self, many: int) -> list[Any]:
        """The answers to so many commands that were sent just now; each may be an error of the driver.

        Raises what the driver raises for a connection that ends. Whoever gives up half way closes the connection.
        """
        replies = Replies(many, self._parser.parse_error)
        while True:
            piece = await self._reader.read(READ_BYTES)
            if not piece:
                raise RedisConnectionError("the server has closed the connection")
            if replies.feed(piece):
                return replies.found


class Line(_Known, Connection):
    """One connection."""


class TlsLine(_Known, SSLConnection):
    """One connection under TLS."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server or a cluster is. The login is in no text form of it."""

    cluster: bool
    seeds: tuple[Address, ...]
    prefix: str
    wait_replicas: int
    _arguments: dict[str, Any] = field(repr=False)
    _tls: bool

    @classmethod
    def of(cls, name: str, url: BackendUrl) -> Target:
        """The target of a parsed URL. ConfigurationError for what Redis does not know."""
        cluster = url.scheme == "redis+cluster"
        seeds = tuple(Address(host.name, host.port or DEFAULT_PORT) for host in url.hosts)
        if not cluster and len(seeds) != 1:
            raise ConfigurationError(
                f"backend {name}: redis:// names one server, not {len(seeds)}",
                hint="a cluster is redis+cluster://host1,host2",
            )
        prefix = str(url.options.get("prefix", DEFAULT_PREFIX))
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"backend {name}: prefix is at most 64 letters, digits and . _ -")
        options = url.options
        tls = bool(options.get("tls", False)) or "ca" in options
        arguments: dict[str, Any] = {
            "db": int(url.database or 0),
            "username": url.user,
            "password": url.password,
            # Deadlines are set around each call; the driver's own timeout would be a second clock.
            "socket_timeout": None,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            # The third version of the protocol answers with types that the stores do not need, and costs a command more.
            "protocol": 2,
        }
        if tls:
            # Verified by default: without a CA file by the system's.
            arguments |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
            given = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}
            arguments |= {argument: str(options[option]) for option, argument in given.items() if option in options}
        return cls(cluster, seeds, prefix, int(options.get("wait_replicas", 0)), arguments, tls)

    @property
    def contact(self) -> str:
        """The hosts, for messages."""
        return ",".join(map(str, self.seeds))

    def line(self, address: Address) -> Line | TlsLine:
        """A connection, not yet connected."""
        kind = TlsLine if self._tls else Line
        return kind(host=address.host, port=address.port, **self._arguments)
