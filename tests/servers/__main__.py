"""python -m tests.servers [stack [--toml FILE] | install | needs] [--with redis,redis-cluster,s3,opensearch,dynamodb]."""

import argparse
import logging
import sys
from pathlib import Path

from tests.servers.cassandra import install_cassandra
from tests.servers.errors import ServerError
from tests.servers.needs import missing
from tests.servers.pgbouncer import install_pgbouncer
from tests.servers.postgres import install_postgres
from tests.servers.stack import PRODUCTS, run_stack


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in PRODUCTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no product {unknown[0]!r}; there are {', '.join(PRODUCTS)}")
    return names


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description="Real servers without Docker.")
    commands = parser.add_subparsers(dest="command")
    stack = commands.add_parser("stack", help="start Postgres and Cassandra, print the TOML, stay until Ctrl-C")
    stack.add_argument("--toml", type=Path, metavar="FILE", help="write the TOML there, too")
    install = commands.add_parser("install", help="fetch them into the cache, start nothing")
    commands.add_parser("needs", help="tell what this machine lacks for installing them all")
    for command in (parser, stack, install):
        # Without a default of its own, the command leaves what stands before it.
        command.add_argument(
            "--with", dest="more", type=_names, default=argparse.SUPPRESS, metavar="NAMES", help=", ".join(PRODUCTS)
        )
    arguments = parser.parse_args()
    more = getattr(arguments, "more", [])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if arguments.command == "needs":
        lacking = missing()
        for sentence in lacking:
            print(f"make test: {sentence}", file=sys.stderr)
        return 2 if lacking else 0
    try:
        if arguments.command == "install":
            print(install_postgres())
            print(install_pgbouncer())
            print(install_cassandra().lib)
            for name in more:
                print(PRODUCTS[name].install())
        else:
            run_stack(getattr(arguments, "toml", None), more)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
