"""What a URL says, and the driver's connections for it."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from opensearchpy import Urllib3HttpConnection

from datalayer.errors import ConfigurationError

if TYPE_CHECKING:
    from datalayer.settings import BackendUrl, Host

DEFAULT_PORT: Final = 9200
DEFAULT_PREFIX: Final = "datalayer"
_PREFIX: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a cluster is. The login is in no text form of it."""

    hosts: tuple[Host, ...]
    prefix: str
    _arguments: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, name: str, url: BackendUrl) -> Target:
        """The target of a parsed URL. ConfigurationError for a prefix that OpenSearch does not take."""
        prefix = url.database or DEFAULT_PREFIX
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"backend {name}: a prefix of indexes is at most 64 of a-z, 0-9 and . _ -")
        arguments: dict[str, Any] = {}
        if url.user is not None:
            arguments["http_auth"] = (url.user, url.password or "")
        if url.scheme == "opensearch+https":
            arguments |= {"use_ssl": True, "ssl_context": _tls(name, url)}
        return cls(url.hosts, prefix, arguments)

    @property
    def contact(self) -> str:
        """The hosts, for messages."""
        return ",".join(map(str, self.hosts))

    def connections(self, pool_max: int) -> list[Any]:
        """One connection pool a host. The driver's own transport, which repeats calls, is left out."""
        return [
            Urllib3HttpConnection(
                host=host.name, port=host.port or DEFAULT_PORT, pool_maxsize=pool_max, **self._arguments
            )
            for host in self.hosts
        ]


def _tls(name: str, url: BackendUrl) -> ssl.SSLContext:
    """Certificates are checked always: without a CA file by the system's."""
    given = {option: str(url.options[option]) for option in ("ca", "cert", "key") if option in url.options}
    try:
        context = ssl.create_default_context(cafile=given.get("ca"))
        if "cert" in given:
            context.load_cert_chain(given["cert"], given.get("key"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"backend {name}: ca, cert or key of its URL cannot be read: {error}") from None
    return context
