"""Every ordered pair of stores of every domain, read from what this version serves, so that a new store cannot be forgotten."""

import tomllib
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

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


def cases(kinds: Sequence[str], *, itself: Container[str] | None = None) -> list[Any]:
    """Every ordered pair of kinds as parameters of a test: `make test` runs those in which each kind is left once and
    reached once, `make deep` all. With ``itself`` pairs of a kind with itself, too, in `make test` of these kinds.
    """
    found: list[Any] = []
    for at, source in enumerate(kinds):
        for target in kinds:
            if source == target and itself is None:
                continue
            chosen = target == kinds[(at + 1) % len(kinds)] or (source == target and source in (itself or ()))
            found.append(pytest.param(source, target, marks=() if chosen else pytest.mark.deep))
    return found


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
