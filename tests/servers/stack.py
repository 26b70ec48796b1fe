"""One Postgres and one Cassandra to play with by hand."""

import contextlib
import signal
import sys
from pathlib import Path

from tests.servers.servers import Servers

DATABASE = "datalayer"
_POSTGRES_PORT = 5501


def stack_toml(postgres_url: str, cassandra_url: str) -> str:
    """A datalayer.toml for the two servers."""
    return f"""\
[backends.main]
url = "{postgres_url}"

[backends.cassandra]
url = "{cassandra_url}"

[routes]
users = "main"
messages = "main"

[control]
url = "{postgres_url}"
"""


def run_stack(target: Path | None) -> None:
    """Starts the servers, prints their TOML (and writes it to a file), and stays until SIGINT or SIGTERM."""
    # Set by hand: a shell that starts us in the background has SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), Servers() as servers:
        postgres_url = servers.postgres(1, port=_POSTGRES_PORT)[0].create_database(DATABASE)
        text = stack_toml(postgres_url, servers.cassandra().create_keyspace(DATABASE))
        if target is not None:
            target.write_text(text, encoding="utf-8")
        print(text, flush=True)
        print("The servers run until Ctrl-C.", file=sys.stderr, flush=True)
        try:
            signal.pause()
        finally:
            if target is not None:
                target.unlink(missing_ok=True)
