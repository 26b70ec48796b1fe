"""Messages of the shape of real chat, generated: same seed, same rows.

Every distribution is given by quantiles measured on 52,208 messages of a public chat archive (3,052 conversations
over seven years): bytes of a body, messages of a conversation, seconds between two messages of one. Between two
quantiles a value lies evenly on a logarithmic scale.
"""

import bisect
import itertools
import math
import random
import uuid
from collections.abc import Iterator

from datalayer.domains.record import Record
from datalayer.ids import id_time_us, uuid7_at

Quantiles = tuple[tuple[float, float], ...]
BODY_BYTES: Quantiles = (
    (0, 8), (1, 14), (5, 30), (10, 44), (25, 81), (50, 160), (75, 403), (90, 1317), (95, 2987), (99, 10166),
    (99.5, 16131), (99.9, 36232), (100, 148906),
)  # fmt: skip
CONVERSATION_ROWS: Quantiles = (
    (0, 1), (5, 1), (10, 2), (25, 4), (50, 8), (75, 17), (90, 36), (95, 58), (99, 149), (99.5, 222), (99.9, 422),
    (100, 1408),
)  # fmt: skip
GAP_S: Quantiles = (
    (0, 1), (1, 2), (5, 8), (10, 15), (25, 38), (50, 145), (75, 1254), (90, 17519), (95, 72284), (99, 1290341),
    (99.5, 6403042), (99.9, 37901506), (100, 193900499),
)  # fmt: skip
FIRST_DAY_S = 1_514_764_800
DAYS = 2800
SENDERS = 1346
_WORDS = [
    "the",
    "a",
    "to",
    "of",
    "is",
    "that",
    "it",
    "in",
    "and",
    "for",
    "this",
    "you",
    "have",
    "with",
    "not",
    "but",
    "be",
    "on",
    "as",
    "are",
    "can",
    "so",
    "if",
    "what",
    "there",
    "do",
    "one",
    "would",
    "like",
    "from",
    "think",
    "which",
    "just",
    "or",
    "any",
    "an",
    "we",
    "some",
    "how",
    "use",
    "about",
    "at",
    "more",
    "when",
    "theorem",
    "lemma",
    "proof",
    "instance",
    "simp",
    "rewrite",
    "tactic",
    "goal",
    "type",
    "nat",
    "real",
    "list",
    "function",
    "error",
    "import",
    "file",
    "version",
    "branch",
    "thread",
    "message",
]
_BEYOND_ASCII = " naïve Gödel → ∀ ε > 0,"
_LINE = "</p>\n<p>"
_CODE = '<div class="codehilite"><pre><span></span><code>def f (n : Nat) : Nat :=\n  n + 1\n</code></pre></div>\n'
_POOL_CHARS = 1 << 19


class Drawn:
    """Draws from a distribution given by its quantiles."""

    def __init__(self, quantiles: Quantiles) -> None:
        self._at = [percent / 100 for percent, _ in quantiles]
        self._logs = [math.log(value) for _, value in quantiles]

    def draw(self, chance: random.Random) -> float:
        at = chance.random()
        high = bisect.bisect_right(self._at, at)
        low = high - 1
        part = (at - self._at[low]) / (self._at[high] - self._at[low])
        return math.exp(self._logs[low] + part * (self._logs[high] - self._logs[low]))


class Bodies:
    """Texts of HTML, cut out of one pool at random places."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._size = Drawn(BODY_BYTES)
        self._pool = _pool(chance)

    def draw(self) -> str:
        size = round(self._size.draw(self._chance))
        inner = max(1, size - len("<p></p>"))
        start = self._chance.randrange(_POOL_CHARS)
        text = self._pool[start : start + inner]
        while len(text) < inner:
            text += self._pool[: inner - len(text)]
        return f"<p>{text}</p>"


def records(rows: int, seed: int = 1) -> Iterator[Record]:
    """Exactly ``rows`` messages, conversation by conversation, each in order of time."""
    chance = random.Random(seed)
    bodies = Bodies(chance)
    many, gap = Drawn(CONVERSATION_ROWS), Drawn(GAP_S)
    senders = [uuid.UUID(int=chance.getrandbits(128)).bytes for _ in range(SENDERS)]
    left = rows
    while left:
        conversation = uuid.UUID(int=chance.getrandbits(128), version=5).bytes
        at_us = (FIRST_DAY_S + chance.randrange(DAYS * 86_400)) * 1_000_000
        taking_part = chance.choices(senders, k=8)
        size = min(left, max(1, round(many.draw(chance))))
        for _ in range(size):
            ident = uuid7_at(at_us, chance.getrandbits(62))
            fields = (chance.choice(taking_part), bodies.draw(), "text", None, b"", None, "{}")
            yield Record("message", conversation + ident.bytes, id_time_us(ident), False, fields)
            at_us += round(gap.draw(chance) * 1_000_000)
        left -= size


def in_parts(rows: int, size: int, seed: int = 1) -> Iterator[list[Record]]:
    """The same, so many at a time: a million need not lie in memory."""
    every = records(rows, seed)
    while part := list(itertools.islice(every, size)):
        yield part


def _pool(chance: random.Random) -> str:
    parts: list[str] = []
    size = 0
    for number in itertools.count():
        beyond = _BEYOND_ASCII if number % 25 == 24 else ""
        part = _CODE if number % 40 == 39 else " ".join(chance.choices(_WORDS, k=12)) + beyond + _LINE
        parts.append(part)
        size += len(part)
        if size >= 2 * _POOL_CHARS:
            break
    return "".join(parts)
