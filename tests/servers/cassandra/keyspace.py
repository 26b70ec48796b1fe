"""URLs of Cassandra, and keyspaces made by URL."""

import re
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from tests.servers.cassandra import probe
from tests.servers.errors import ServerError

DATACENTER = "datacenter1"
_PORT = 9042
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,47}")


def cassandra_url(hosts: Sequence[str], port: int, *, replication: int) -> str:
    """The URL of a ring."""
    contact = ",".join(f"{host}:{port}" for host in hosts)
    return f"cassandra://{contact}/?local_dc={DATACENTER}&replication={replication}"


def create_keyspace(url: str, name: str) -> str:
    """Makes a keyspace with the URL's data centre and replication, when there is none of that name.

    Returns:
        The URL of the keyspace.

    Raises:
        ServerError: the name is none, or no node of the URL made it.
    """
    if not _IDENTIFIER.fullmatch(name):
        raise ServerError(f"{name!r} is no keyspace name: lower-case letters, digits and _, at most 48")
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    datacenter = query.get("local_dc", [DATACENTER])[0]
    replication = int(query.get("replication", ["1"])[0])
    options = f"{{'class': 'NetworkTopologyStrategy', '{datacenter}': {replication}}}"
    statement = f"CREATE KEYSPACE IF NOT EXISTS {name} WITH replication = {options}"
    errors = []
    for address in parts.netloc.rpartition("@")[2].split(","):
        host, _, port = address.partition(":")
        error = probe.execute(host, int(port or _PORT), statement)
        if error is None:
            return parts._replace(path=f"/{name}").geturl()
        errors.append(f"{address}: {error}")
    raise ServerError(f"keyspace {name} was not made: {'; '.join(errors)}")
