"""The shape of a chat: how messages spread over conversations, and which of them people touch.

Fitted to a real one (52,208 messages in 3,052 rooms): sizes fall as a power of the rank, half the rooms hold at most
8 messages, the largest more than 1,000; traffic follows size, and inside a room the newest messages.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid5

from datalayer.ids import NAMESPACE

if TYPE_CHECKING:
    import random

LARGEST: Final = 1100
MEDIAN: Final = 8
_NEWEST: Final = 20


def room_sizes(messages: int) -> list[int]:
    """Sizes of the rooms that together hold about ``messages`` messages, largest first."""
    largest = max(min(LARGEST, messages // 15), MEDIAN + 1)
    sizes: list[int] = []
    rooms = 2
    while sum(sizes) < messages:
        exponent = math.log(largest / MEDIAN) / math.log(max(rooms / 2, 2))
        sizes = [max(1, round(largest * rank**-exponent)) for rank in range(1, rooms + 1)]
        rooms = rooms + 1 + rooms // 16
    return sizes


class Rooms:
    """The conversations of a workload, the same in every process that has the same seed and message count."""

    def __init__(self, seed: int, messages: int) -> None:
        self.sizes = room_sizes(messages)
        self.ids = [uuid5(NAMESPACE, f"workload {seed} room {rank}") for rank in range(len(self.sizes))]
        self._ends = list(accumulate(self.sizes))

    def pick(self, rng: random.Random) -> UUID:
        """A room, as often as it has messages."""
        return self.ids[bisect_left(self._ends, rng.randint(1, self._ends[-1]))]


def pick_message(ids: list[bytes], rng: random.Random) -> bytes | None:
    """One of a room's messages: three times of four one of the newest, else any."""
    if not ids:
        return None
    low = max(0, len(ids) - _NEWEST) if rng.random() < 0.75 else 0
    return ids[rng.randrange(low, len(ids))]
