"""How long each programme of this folder may run in each tier, in seconds of this process's own time."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tests.conftest import TIER

T = TypeVar("T")
SECONDS = {
    "crash matrix": {"check": 1.2, "test": 45.0, "deep": 900.0},
    "simulation": {"check": 1.5, "test": 50.0, "deep": 1800.0},
    "users": {"check": 0.5, "test": 10.0, "deep": 300.0},
    "indexed": {"check": 0.8, "test": 25.0, "deep": 900.0},
    "indexed matrix": {"check": 0.8, "test": 20.0, "deep": 600.0},
    "sharded matrix": {"check": 0.8, "test": 25.0, "deep": 900.0},
    "soft": {"check": 0.15, "test": 4.0, "deep": 120.0},
    "soft mutants": {"check": 20.0, "test": 20.0, "deep": 60.0},
    "soft matrix": {"check": 0.4, "test": 10.0, "deep": 120.0},
    "sessions": {"check": 0.4, "test": 10.0, "deep": 300.0},
    "sharded": {"check": 0.8, "test": 30.0, "deep": 1200.0},
}


def within(programme: str, work: Iterable[T]) -> Iterator[T]:
    """The pieces of work that fit; at least one. Processor time: a busy machine does not shrink the programme."""
    ends = time.process_time() + SECONDS[programme][TIER]
    for one in work:
        yield one
        if time.process_time() >= ends:
            return
