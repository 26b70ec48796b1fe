"""The recorded history of a workload, by key: the writes that may have happened and the looks that were taken.

A *write* is one intention (a repeated append is the same one); its outcome is applied, not applied or unknown. A
*look* is anything that showed one key's state to somebody: a get, an item of a page, a gap in a page, a NotFound.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final
from uuid import UUID

from datalayer.errors import Outcome
from datalayer.ids import id_time_us
from datalayer.testing.ledger import NO_ID, Event, Flag, Kind, Op

if TYPE_CHECKING:
    from collections.abc import Iterable

NEVER: Final = 1 << 62
"""The end of a write that nobody saw end."""
LEAKED: Final = frozenset({"Fenced", "StaleRoute", "Quarantine", "LostLease"})
"""Errors between the library's own parts: a caller must never see one, retryable or not."""


@dataclass(slots=True)
class Write:
    """One intended change of one key. ``version`` is 0 while unknown."""

    op: Op
    token: bytes
    process: str
    began_ns: int
    ended_ns: int = NEVER
    """When it was first acknowledged."""
    version: int = 0
    attempts: int = 1
    refused: int = 0
    """Attempts known as not applied; one that was killed or timed out is neither refused nor acknowledged."""

    @property
    def applied(self) -> bool:
        """Whether it was acknowledged."""
        return self.ended_ns != NEVER

    @property
    def possible(self) -> bool:
        """Whether it may have happened."""
        return self.applied or self.refused < self.attempts


@dataclass(frozen=True, slots=True)
class Look:
    """What one call showed of one key; ``token`` is None when no live record was there."""

    op: Op
    process: str
    began_ns: int
    ended_ns: int
    version: int
    token: bytes | None
    expected: int = 0
    final: bool = False


@dataclass(slots=True)
class Story:
    """Everything recorded about one key."""

    key: bytes
    writes: list[Write] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something wrong in itself, whatever else happened: torn values, pages out of order, errors."""

    kind: str
    key: bytes
    detail: str
    at_ns: int


@dataclass(slots=True)
class _Page:
    head: Event
    items: list[Event]


@dataclass(slots=True)
class Recorded:
    """The history, sorted by key, and what was counted on the way."""

    stories: dict[bytes, Story] = field(default_factory=dict)
    oddities: list[Oddity] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    """Calls that raised, by class, NotFound left out (it is a look)."""
    acknowledged: int = 0
    answered: int = 0
    unknown: int = 0
    finished: bool = False
    """Whether a final read was recorded."""


def collect(events: Iterable[Event]) -> Recorded:
    """Sort a ledger's events into stories. Events of one process must come in the order it wrote them."""
    recorded = Recorded()
    open_writes: dict[tuple[str, int], Write] = {}
    page: _Page | None = None
    pages: list[_Page] = []
    for event in events:
        recorded.finished |= Flag.FINAL in event.flags
        if event.kind is Kind.BEGIN:
            open_writes[event.process, event.seq] = _begin(recorded, event)
        elif event.kind is Kind.ACK:
            _acknowledge(recorded, open_writes[event.process, event.seq], event)
        elif event.kind is Kind.FAIL:
            _fail(recorded, open_writes.get((event.process, event.seq)), event)
        elif event.kind is Kind.PAGE:
            page = _Page(event, [])
            pages.append(page)
        else:
            if event.kind is Kind.ITEM:
                assert page is not None, "an item follows the head of its page"
                page.items.append(event)
            _read(recorded, event)
    _gaps(recorded, pages)
    recorded.unknown = sum(
        write.possible and not write.applied for story in recorded.stories.values() for write in story.writes
    )
    return recorded


def _story(recorded: Recorded, key: bytes) -> Story:
    return recorded.stories.setdefault(key, Story(key))


def _begin(recorded: Recorded, event: Event) -> Write:
    story = _story(recorded, event.key)
    if event.op is Op.APPEND:
        for earlier in story.writes:
            if earlier.op is Op.APPEND and earlier.token == event.token:
                earlier.began_ns = min(earlier.began_ns, event.began_ns)
                earlier.attempts += 1
                return earlier
    write = Write(event.op, event.token, event.process, event.began_ns)
    if event.op is Op.APPEND:
        write.version = id_time_us(UUID(bytes=event.key[16:]))
    story.writes.append(write)
    return write


def _acknowledge(recorded: Recorded, write: Write, event: Event) -> None:
    recorded.acknowledged += 1
    write.ended_ns = min(write.ended_ns, event.at_ns)
    if event.op is Op.APPEND:
        # A repeated append answers with the message as stored, which may have been edited or deleted meanwhile.
        token = None if Flag.ABSENT in event.flags else event.token
        if token != write.token or event.version != write.version:
            _look(recorded, event, token)
        return
    if event.op is Op.EDIT:
        write.version = event.version
        if event.token != write.token:
            recorded.oddities.append(Oddity("torn", event.key, "an edit returned another value", event.at_ns))


def _fail(recorded: Recorded, write: Write | None, event: Event) -> None:
    if event.text == "NotFound" and event.op.writes:
        recorded.answered += 1
        _look(recorded, event, None)
    else:
        recorded.errors[event.text] += 1
        if Flag.RETRYABLE not in event.flags or event.text in LEAKED:
            detail = f"{event.op.name.lower()} of {event.process} raised {event.text}"
            recorded.oddities.append(Oddity("error", event.key, detail, event.at_ns))
    if write is not None and event.outcome is Outcome.NOT_APPLIED:
        write.refused += 1


def _read(recorded: Recorded, event: Event) -> None:
    if event.kind is Kind.READ:
        recorded.answered += 1
    if Flag.TORN in event.flags:
        detail = f"{event.op.name.lower()} of {event.process}: {event.text}"
        recorded.oddities.append(Oddity("torn", event.key, detail, event.at_ns))
        return
    _look(recorded, event, None if Flag.ABSENT in event.flags else event.token)


def _look(recorded: Recorded, event: Event, token: bytes | None) -> None:
    look = Look(
        event.op,
        event.process,
        event.began_ns,
        event.at_ns,
        0 if token is None else event.version,
        token,
        event.expected,
        Flag.FINAL in event.flags,
    )
    _story(recorded, event.key).looks.append(look)


def _gaps(recorded: Recorded, pages: list[_Page]) -> None:
    """Add a look that showed nothing for each known key that a page covers and leaves out."""
    rooms: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for key in recorded.stories:
        rooms[key[:16]].append(key[16:])
    for ids in rooms.values():
        ids.sort()
    for page in pages:
        recorded.answered += 1
        shown = [item.key[16:] for item in page.items]
        _check_order(recorded, page.head, shown)
        present = set(shown)
        for id_ in _covered(rooms[page.head.key[:16]], page.head):
            if id_ not in present:
                _look(recorded, page.head._replace(key=page.head.key[:16] + id_), None)


def _check_order(recorded: Recorded, head: Event, shown: list[bytes]) -> None:
    after = [] if head.key[16:] == NO_ID else [head.key[16:]]
    chain = after + shown
    if Flag.OLDEST_FIRST not in head.flags:
        chain.reverse()
    if any(one >= two for one, two in pairwise(chain)):
        detail = f"a page for {head.process} is out of order or repeats a message"
        recorded.oddities.append(Oddity("torn", head.key, detail, head.at_ns))


def _covered(ids: list[bytes], head: Event) -> list[bytes]:
    """The ids that a page has decided about: beyond its cursor, up to its last item or the end."""
    after, last = head.key[16:], head.token
    bound_after = after != NO_ID
    bound_last = Flag.COMPLETE not in head.flags
    if Flag.OLDEST_FIRST in head.flags:
        start = bisect_right(ids, after) if bound_after else 0
        stop = bisect_right(ids, last) if bound_last else len(ids)
    else:
        start = bisect_left(ids, last) if bound_last else 0
        stop = bisect_left(ids, after) if bound_after else len(ids)
    return ids[start:stop]
