"""python -m tests.servers [stack [--toml FILE] | install]."""

import argparse
import logging
import sys
from pathlib import Path

from tests.servers.cassandra import install_cassandra
from tests.servers.errors import ServerError
from tests.servers.pgbouncer import install_pgbouncer
from tests.servers.postgres import install_postgres
from tests.servers.stack import run_stack


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description="Real servers without Docker.")
    commands = parser.add_subparsers(dest="command")
    stack = commands.add_parser("stack", help="start Postgres and Cassandra, print the TOML, stay until Ctrl-C")
    stack.add_argument("--toml", type=Path, metavar="FILE", help="write the TOML there, too")
    commands.add_parser("install", help="fetch everything into the cache, start nothing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if arguments.command == "install":
            print(install_postgres())
            print(install_pgbouncer())
            print(install_cassandra().lib)
        else:
            run_stack(getattr(arguments, "toml", None))
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
