"""Users as a service might have them, as JSON lines: names of many countries, most with an address, over three years.

    python -m tests.acceptance.users_data FILE.jsonl[.gz] [--users 1000000]

The same number of users gives the same file. Numbers are read back from names by datalayer/testing/user_values.py.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from datalayer.importing import user_id
from datalayer.testing.user_values import email_of, username_of

SINCE_S = 1_640_995_200  # 2022-01-01
SPAN_S = 3 * 365 * 24 * 3600
_LANGUAGES = ("en", "de", "fr", "pl", "tr", "es", "it", "pt")


def created_at_s(number: int) -> int:
    """When a user was created, in seconds; neighbours in the file are far apart in time."""
    return SINCE_S + number * 2_654_435_761 % SPAN_S


def line_of(number: int) -> dict[str, Any]:
    """One line; numbers begin with 1."""
    username = username_of(number)
    found: dict[str, Any] = {"id": number, "username": username, "created_at": created_at_s(number)}
    if number % 5:
        found["email"] = email_of(number)
    if number % 3:
        found["display_name"] = username.rstrip("0123456789").replace(".", " ").title()
    if number % 4 == 0:
        found["attributes"] = {"language": _LANGUAGES[number % len(_LANGUAGES)], "newsletter": number % 8 == 0}
    return found


def id_of(number: int) -> UUID:
    """The id that an import gives to a user of the file."""
    return user_id(number, created_at_s(number) * 1_000_000)


def lines(users: int) -> Iterator[str]:
    """The file, line by line."""
    for number in range(1, users + 1):
        yield json.dumps(line_of(number), ensure_ascii=False)


def write(path: Path, users: int) -> None:
    """Write a file, gzipped when its name says so."""
    text = (f"{line}\n" for line in lines(users))
    if path.suffix == ".gz":
        with gzip.open(path, "wt", 4) as packed:
            packed.writelines(text)
    else:
        with path.open("w") as file:
            file.writelines(text)


def main() -> None:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--users", type=int, default=1_000_000)
    chosen = parser.parse_args()
    write(chosen.file, chosen.users)


if __name__ == "__main__":
    main()
