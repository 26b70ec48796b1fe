"""Every ordered pair of stores of every domain, read from what this version serves, so that a new store cannot be forgotten."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datalayer.clock import SystemClock
from datalayer.domains.movement import Movement, movement_of
from datalayer.layer import make_backends
from datalayer.migrators.sizes import KINDS, KindOfBackend
from datalayer.settings import parse_settings
from datalayer.stores.base import Backend
from datalayer.stores.registry import SCHEMES

EXCUSED = {
    "memory": "what lies in the memory of one process cannot be moved by another: such moves are simulated (tests/simulation)"
}
"""Kinds of backend whose pairs need no life cycle for domains that are stored or derived, not renewed."""
EXCUSING = frozenset({Movement.RECORDS, Movement.PROJECTION})

KIND_OF = {
    "memory": "memory",
    "sqlite": "SQLite",
    "postgres": "Postgres",
    "shards": "sharded Postgres",
    "cassandra": "Cassandra",
    "redis": "Redis",
    "cluster": "Redis cluster",
    "dynamodb": "DynamoDB",
    "files": "a folder",
    "s3": "S3",
    "opensearch": "OpenSearch",
}
"""What tests call the kinds."""


class Pair(NamedTuple):
    """A domain and two kinds of backend that can both hold it."""

    domain: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.domain}: {self.source} -> {self.target}"


def backend_of(kind: KindOfBackend) -> Backend | None:
    """A backend of a kind that is connected to nothing; None for one that this version does not serve."""
    document = {**tomllib.loads(kind.toml), "control": {"url": "memory://"}}
    settings = parse_settings(document, directory=Path.cwd())
    name = next(iter(settings.backends))
    if not set(kind.schemes) & set(SCHEMES):
        return None
    return make_backends(settings, SystemClock(), make_folders=False)[name]


def stores_of(domain: str) -> list[str]:
    """The kinds of backend that can hold a domain."""
    found = ((kind.name, backend_of(kind)) for kind in KINDS)
    return [name for name, backend in found if backend is not None and backend.refuses(domain) is None]


def refusals_of(domain: str) -> dict[str, str]:
    """Why the other kinds cannot."""
    found = {kind.name: backend_of(kind) for kind in KINDS}
    said = {name: backend.refuses(domain) for name, backend in found.items() if backend is not None}
    return {name: reason for name, reason in said.items() if reason is not None}


def pairs_of(domain: str) -> Iterator[Pair]:
    """Every ordered pair of stores of a domain, the excused left out."""
    excused = EXCUSED if movement_of(domain) in EXCUSING else {}
    kinds = [kind for kind in stores_of(domain) if kind not in excused]
    for source in kinds:
        for target in kinds:
            yield Pair(domain, source, target)
