"""What a caller wants of a read, what it has written, and the token that carries this to another process.

Levels: ``primary`` reads at the authority; ``own_writes``, the default, misses no write of the same caller; ``replica``
may miss what is younger than a bound. The same caller is: everything inside one ``reading_after`` block, tasks begun
there included, and whatever the token came from. What follows a block in its task, up to the next one, sees what was
written in it, too. Outside of blocks all calls of one DataLayer are one caller, for a task cannot know what the tasks
that it waited for have written.

A write costs nothing here but a note of the time. Where the log stood is asked for when somebody wants to know: any
position taken after the acknowledgement lies beyond the write.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import struct
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from datalayer.errors import InvalidArgument, InvalidToken

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from datalayer.clock import Clock

LevelName = Literal["primary", "own_writes", "replica"]
LAG_MAX_S: Final = 1.0
"""How far behind the primary a replica may be where the caller names no bound."""
NEVER: Final = -math.inf
_VERSION: Final = b"\x01"
_CHECK_BYTES: Final = 6
_ENTRY: Final = struct.Struct("!QQIQ")
_NAME_MAX: Final = 255
_TOKEN_MAX: Final = 8192


@dataclass(frozen=True, slots=True)
class Level:
    """How fresh a read must be."""

    name: LevelName = "own_writes"
    max_lag_s: float = LAG_MAX_S


PRIMARY: Final = Level("primary")
ambient_level: ContextVar[Level | None] = ContextVar("datalayer_level", default=None)


class Position(NamedTuple):
    """Where the log of a domain's authority stood: what lies before it must be seen by who holds it."""

    epoch: int
    system: int
    timeline: int
    lsn: int


class Caller:
    """What one caller has written and must see."""

    __slots__ = ("_marks", "_positions", "ended", "outer")

    def __init__(self, outer: Caller | None = None, positions: Mapping[str, Position] | None = None) -> None:
        self.outer = outer
        self.ended = False
        """The block has been left: what its task goes on to write is written outside every block."""
        self._marks: dict[str, float] = {}
        self._positions = dict(positions or {})

    def wrote(self, domain: str, at: float) -> None:
        """A write was answered at this time, here and thus within everything around."""
        self._marks[domain] = max(at, self._marks.get(domain, NEVER))
        if self.outer is not None:
            self.outer.wrote(domain, at)

    def end(self, earlier: Caller | None) -> None:
        """The block has been left; what an earlier one of the same task wrote counts after this one, too."""
        self.ended = True
        for domain, at in ({} if earlier is None else earlier.marks()).items():
            self.wrote(domain, at)

    def marks(self) -> dict[str, float]:
        """When the last write of each domain was answered."""
        return dict(self._marks)

    def mark(self, domain: str) -> float:
        """When the last write was answered, the writes of those around it included."""
        own = self._marks.get(domain, NEVER)
        return own if self.outer is None else max(own, self.outer.mark(domain))

    def positions(self, domain: str) -> list[Position]:
        """What tokens demand, those of the blocks around included."""
        own = [self._positions[domain]] if domain in self._positions else []
        return own if self.outer is None else own + self.outer.positions(domain)


ambient_caller: ContextVar[Caller | None] = ContextVar("datalayer_caller", default=None)


class Callers:
    """The callers of one DataLayer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all = Caller()
        """Who writes outside every block: whatever it wrote counts for everybody."""

    def wrote(self, domain: str) -> None:
        """Note that a write of the present caller was answered just now, refusals included: they tell of the data."""
        now = self._clock.monotonic()
        caller = ambient_caller.get()
        if caller is None or caller.ended:
            self._all.wrote(domain, now)
        if caller is not None:
            caller.wrote(domain, now)

    def mark(self, domain: str) -> float:
        """When the last write that the present caller must see was answered (monotonic clock); NEVER."""
        caller = ambient_caller.get()
        everybody = self._all.mark(domain)
        return everybody if caller is None else max(everybody, caller.mark(domain))

    def positions(self, domain: str) -> list[Position]:
        """The positions that the present caller must see."""
        caller = ambient_caller.get()
        return [] if caller is None else caller.positions(domain)


@contextmanager
def reading_after(token: str | None) -> Iterator[None]:
    """See ``DataLayer.reading_after``."""
    before = ambient_caller.get()
    # Threads and tasks that take request after request begin a new caller with each.
    around = None if before is None or before.ended else before
    caller = Caller(around, {} if token is None else decode_token(token))
    ambient_caller.set(caller)
    try:
        yield
    finally:
        if around is None:
            # What was written inside must still be seen by who goes on after it.
            caller.end(before)
        ambient_caller.set(caller if around is None else around)


@contextmanager
def reading(level: LevelName, max_lag_s: float | None = None) -> Iterator[None]:
    """See ``DataLayer.reading``."""
    if level not in get_args(LevelName):
        raise InvalidArgument(f"level is {str(level)[:60]!r}; it must be one of: {', '.join(get_args(LevelName))}")
    bound_s = LAG_MAX_S if max_lag_s is None else max_lag_s
    if not 0 < bound_s < math.inf:
        raise InvalidArgument(f"max_lag_s is {max_lag_s!r}; it must be a number of seconds above 0")
    with at_level(Level(level, bound_s)):
        yield


@contextmanager
def at_level(level: Level | None) -> Iterator[None]:
    """Reads inside are at this level; None: at the default one."""
    before = ambient_level.set(level)
    try:
        yield
    finally:
        ambient_level.reset(before)


# --- the token -------------------------------------------------------------------------------------------------------


def encode_token(positions: Mapping[str, Position]) -> str:
    """Opaque text, safe in a header, a cookie or a URL."""
    parts = []
    for domain, position in sorted(positions.items()):
        name = domain.encode()
        assert len(name) <= _NAME_MAX, "names of domains and slot groups are short"
        parts.append(bytes([len(name)]) + name + _ENTRY.pack(*position))
    body = b"".join(parts)
    return base64.urlsafe_b64encode(_VERSION + _checksum(body) + body).decode().rstrip("=")


def decode_token(token: str) -> dict[str, Position]:
    """The positions of a token by domain; InvalidToken when it is damaged."""
    damaged = InvalidToken("the consistency token is damaged or of another version", hint="go on without it")
    if len(token) > _TOKEN_MAX:
        raise damaged
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise damaged from None
    body = raw[1 + _CHECK_BYTES :]
    if raw[:1] != _VERSION or raw[1 : 1 + _CHECK_BYTES] != _checksum(body):
        raise damaged
    found: dict[str, Position] = {}
    at = 0
    try:
        while at < len(body):
            end = at + 1 + body[at]
            found[body[at + 1 : end].decode()] = Position(*_ENTRY.unpack_from(body, end))
            at = end + _ENTRY.size
    except (struct.error, UnicodeDecodeError):
        raise damaged from None
    return found


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(b"datalayer token\x00" + body, digest_size=_CHECK_BYTES).digest()
