"""How long each programme of this folder may run in each tier, in seconds of this process's own time."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tests.conftest import TIER

T = TypeVar("T")
SECONDS = {
    "crash matrix": {"check": 1.2, "test": 20.0, "deep": 900.0},
    "simulation": {"check": 1.5, "test": 25.0, "deep": 1800.0},
    "users": {"check": 0.5, "test": 5.0, "deep": 300.0},
    "indexed": {"check": 0.8, "test": 12.0, "deep": 900.0},
    "indexed matrix": {"check": 0.8, "test": 10.0, "deep": 600.0},
    "sharded matrix": {"check": 0.8, "test": 12.0, "deep": 900.0},
    "soft": {"check": 0.15, "test": 4.0, "deep": 120.0},
    "soft mutants": {"check": 20.0, "test": 20.0, "deep": 60.0},
    "soft matrix": {"check": 0.4, "test": 5.0, "deep": 120.0},
    "sessions": {"check": 0.4, "test": 5.0, "deep": 300.0},
    "sharded": {"check": 0.8, "test": 15.0, "deep": 1200.0},
}


LONGEST = {"check": 20, "test": 10, "deep": 2}[TIER]
"""How often a programme may take its seconds until it has met what it must."""


def within(programme: str, work: Iterable[T], enough: Callable[[], object] = lambda: True) -> Iterator[T]:
    """The pieces of work that fit, at least one, and beyond that as many as it takes until there is ``enough``.

    Processor time: a busy machine does not shrink the programme much; but a second of it does less there.
    """
    began, seconds = time.process_time(), SECONDS[programme][TIER]
    for one in work:
        yield one
        spent = time.process_time() - began
        if (spent >= seconds and enough()) or spent >= LONGEST * seconds:
            return
