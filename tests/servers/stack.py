"""One Postgres and one Cassandra to play with by hand, and of the other products those asked for."""

import contextlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.servers.dynamodb import install_dynamodb
from tests.servers.opensearch import install_opensearch
from tests.servers.redis import install_redis
from tests.servers.s3 import install_s3
from tests.servers.servers import Servers

DATABASE = "datalayer"
_POSTGRES_PORT = 5501


@dataclass(frozen=True, slots=True)
class Product:
    """How one more server is fetched and started; ``start`` tells its URL."""

    install: Callable[[], object]
    start: Callable[[Servers], str]


# By the name of its backend.
PRODUCTS: Mapping[str, Product] = {
    "redis": Product(install_redis, lambda servers: servers.redis().url),
    "redis-cluster": Product(install_redis, lambda servers: servers.redis_cluster().url),
    "s3": Product(install_s3, lambda servers: servers.s3().url),
    "opensearch": Product(install_opensearch, lambda servers: servers.opensearch().url),
    "dynamodb": Product(install_dynamodb, lambda servers: servers.dynamodb().url),
}


def stack_toml(postgres_url: str, cassandra_url: str, more: Mapping[str, str]) -> str:
    """A datalayer.toml for the two servers, and further ones by the names of their backends."""
    further = "".join(f'[backends.{name}]\nurl = "{url}"\n\n' for name, url in more.items())
    return f"""\
[backends.main]
url = "{postgres_url}"

[backends.cassandra]
url = "{cassandra_url}"

{further}[routes]
users = "main"
messages = "main"

[control]
url = "{postgres_url}"
"""


def run_stack(target: Path | None, further: Sequence[str] = ()) -> None:
    """Starts the servers (beside the two, `further` ones of PRODUCTS), prints their TOML (and writes it to a file), and stays until SIGINT or SIGTERM."""
    # Set by hand: a shell that starts us in the background has SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), Servers() as servers:
        postgres_url = servers.postgres(1, port=_POSTGRES_PORT)[0].create_database(DATABASE)
        more = {name: PRODUCTS[name].start(servers) for name in further}
        text = stack_toml(postgres_url, servers.cassandra().create_keyspace(DATABASE), more)
        if target is not None:
            target.write_text(text, encoding="utf-8")
        print(text, flush=True)
        print("The servers run until Ctrl-C.", file=sys.stderr, flush=True)
        try:
            signal.pause()
        finally:
            if target is not None:
                target.unlink(missing_ok=True)
