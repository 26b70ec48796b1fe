"""The ledger: what every process of a workload began, had acknowledged, saw and was refused.

One append-only file per process, of records of 128 bytes, each written by one write() before (begin) or right after
(everything else) the call it speaks of. A SIGKILL therefore loses nothing that was acknowledged: the pages belong to
the kernel. Records never straddle a page, so a killed process leaves whole ones; a torn tail is cut off by readers.

The same file serves independent readers: ``Board`` follows the files of all processes and knows, right before a
read begins, what had been acknowledged by anybody. Times are CLOCK_MONOTONIC, which all processes of one machine
share; a ledger says nothing about processes on different machines.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from datalayer.errors import DatalayerError, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

SUFFIX: Final = ".ledger"
NO_TOKEN: Final = bytes(16)
NO_ID: Final = bytes(16)
_FORMAT: Final = struct.Struct("<BBBBIQQQ32sqq16s32s")
RECORD_BYTES: Final = 128
_READ_BYTES: Final = 1 << 20
assert _FORMAT.size == RECORD_BYTES, "a record never straddles a page"


class Kind(IntEnum):
    """What a record speaks of."""

    BEGIN = 1
    ACK = 2
    FAIL = 3
    READ = 4
    PAGE = 5
    ITEM = 6


class Op(IntEnum):
    """Which call."""

    APPEND = 1
    EDIT = 2
    DELETE = 3
    GET = 4
    HISTORY = 5
    LOOK_UP = 6

    @property
    def writes(self) -> bool:
        """Whether the call changes a record."""
        return self in {Op.APPEND, Op.EDIT, Op.DELETE}


class Flag(IntFlag):
    """Facts about a record."""

    NONE = 0
    ABSENT = 1
    """The call showed no live record: never there, or deleted."""
    RETRYABLE = 2
    COMPLETE = 4
    """The page reached the end of the conversation."""
    OLDEST_FIRST = 8
    FINAL = 16
    """Read when everything was over."""
    TORN = 32
    BASELINE = 64
    """There before the workload: not written by any of its processes."""


# Looked up by number: making enum members anew is most of the cost of parsing.
_OUTCOMES: Final = (Outcome.NOT_APPLIED, Outcome.APPLIED, Outcome.UNKNOWN)
_FLAGS: Final = tuple(Flag(bits) for bits in range(128))
_KINDS: Final = {int(kind): kind for kind in Kind}
_OPS: Final = {int(op): op for op in Op}


class Event(NamedTuple):
    """One record. ``process`` is the file it stands in; ``text`` the class of an error, what was torn, or a note."""

    process: str
    kind: Kind
    op: Op
    outcome: Outcome
    flags: Flag
    items: int
    seq: int
    began_ns: int
    at_ns: int
    key: bytes
    version: int
    expected: int
    token: bytes
    text: str


class Ticket(NamedTuple):
    """One call on its way."""

    seq: int
    op: Op
    began_ns: int
    key: bytes
    token: bytes
    expected: int


class Seen(NamedTuple):
    """One message as a read showed it; ``torn`` says what did not match, else it is empty.

    ``note``: up to 32 ASCII characters of a workload's own about what is stored; kept unless it is torn.
    """

    key: bytes
    version: int
    token: bytes
    torn: str = ""
    note: str = ""


class Ledger:
    """The file of this process. Not thread-safe; any number of calls may be on their way."""

    def __init__(self, descriptor: int, process: str, flags: Flag) -> None:
        self.process = process
        self._descriptor = descriptor
        self._flags = flags
        self._seq = 0

    @classmethod
    def create(cls, directory: Path, process: str, *, final: bool = False) -> Self:
        """A new file; FileExistsError when the process has one, for a restarted process is another process."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{process}{SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        return cls(descriptor, process, Flag.FINAL if final else Flag.NONE)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def begin(self, op: Op, key: bytes, token: bytes = NO_TOKEN, *, expected: int = 0, note: str = "") -> Ticket:
        """A write is about to be called: on return this is on record, whatever happens to the process.

        ``expected``: the version that a compare-and-set names.
        """
        ticket = self.look(op, key, expected, token)
        self._write(_record(ticket, Kind.BEGIN, self._flags, ticket.began_ns, text=note))
        return ticket

    def acknowledge(
        self, ticket: Ticket, version: int, token: bytes | None = None, *, absent: bool = False, note: str = ""
    ) -> None:
        """The write returned, with the version it (or, for a repeated append, the stored message) has."""
        at = time.monotonic_ns()
        flags = self._flags | (Flag.ABSENT if absent else Flag.NONE)
        seen = ticket._replace(token=ticket.token if token is None else token)
        self._write(_record(seen, Kind.ACK, flags, at, version=version, outcome=Outcome.APPLIED, text=note))

    def fail(self, ticket: Ticket, error: BaseException, *, what: str = "") -> None:
        """The call raised. What is no error of the data layer has an unknown outcome and is not retryable.

        ``what`` is recorded behind the error's class.
        """
        at = time.monotonic_ns()
        known = isinstance(error, DatalayerError)
        outcome = error.outcome if isinstance(error, DatalayerError) else Outcome.UNKNOWN
        flags = self._flags | (Flag.RETRYABLE if known and getattr(error, "retryable", False) else Flag.NONE)
        self._write(_record(ticket, Kind.FAIL, flags, at, outcome=outcome, text=type(error).__name__ + what))

    def baseline(self, found: Seen) -> None:
        """A message that was there before the workload; it counts as written and acknowledged now."""
        ticket = self.begin(Op.APPEND, found.key, found.token, note=found.note)
        flags = self._flags | Flag.BASELINE
        at = time.monotonic_ns()
        outcome = Outcome.APPLIED
        self._write(_record(ticket, Kind.ACK, flags, at, version=found.version, outcome=outcome, text=found.note))

    def look(self, op: Op, key: bytes, expected: int = 0, token: bytes = NO_TOKEN) -> Ticket:
        """A read is about to be called; ``expected`` = the version known as acknowledged before (0: none)."""
        self._seq += 1
        return Ticket(self._seq, op, time.monotonic_ns(), key, token, expected)

    def saw(self, ticket: Ticket, seen: Seen | None) -> None:
        """The read of one key returned this message, or none."""
        at = time.monotonic_ns()
        self._write(self._read_record(ticket, seen, at))

    def found(self, ticket: Ticket, seen: Seen | None) -> None:
        """The look-up by another value than the key (``ticket.key`` names it) returned this one, or none.

        Two records: whose key was found stands in the token of the first, what it showed in the second.
        """
        at = time.monotonic_ns()
        if seen is None:
            self._write(_record(ticket, Kind.READ, self._flags | Flag.ABSENT, at))
            return
        head = ticket._replace(token=seen.key[16:])
        self._write(
            _record(head, Kind.READ, self._flags, at, version=seen.version) + self._item_record(ticket, seen, at)
        )

    def saw_many(self, ticket: Ticket, keys: Iterable[bytes], seen: Sequence[Seen]) -> None:
        """The read of many keys returned these messages; the keys without one showed none."""
        at = time.monotonic_ns()
        found = {item.key: item for item in seen}
        self._write(b"".join(self._read_record(ticket._replace(key=key), found.get(key), at) for key in keys))

    def saw_page(
        self, ticket: Ticket, items: Sequence[Seen], *, after: bytes = NO_ID, complete: bool, oldest_first: bool = False
    ) -> None:
        """A page of the conversation (first half of the key) beyond the id ``after``; ``complete``: it was the last."""
        at = time.monotonic_ns()
        flags = self._flags | (Flag.COMPLETE if complete else Flag.NONE)
        flags |= Flag.OLDEST_FIRST if oldest_first else Flag.NONE
        last = items[-1].key[16:] if items else NO_ID
        head = ticket._replace(key=ticket.key[:16] + after, token=last)
        records = [_record(head, Kind.PAGE, flags, at, items=len(items))]
        records += [self._item_record(ticket, item, at) for item in items]
        self._write(b"".join(records))

    def _read_record(self, ticket: Ticket, seen: Seen | None, at: int) -> bytes:
        if seen is None:
            return _record(ticket, Kind.READ, self._flags | Flag.ABSENT, at)
        flags = self._flags | (Flag.TORN if seen.torn else Flag.NONE)
        shown = ticket._replace(token=seen.token)
        return _record(shown, Kind.READ, flags, at, version=seen.version, text=seen.torn or seen.note)

    def _item_record(self, ticket: Ticket, seen: Seen, at: int) -> bytes:
        flags = self._flags | (Flag.TORN if seen.torn else Flag.NONE)
        shown = ticket._replace(key=seen.key, token=seen.token)
        return _record(shown, Kind.ITEM, flags, at, version=seen.version, text=seen.torn or seen.note)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


def _record(
    ticket: Ticket,
    kind: Kind,
    flags: Flag,
    at_ns: int,
    *,
    version: int = 0,
    outcome: Outcome = Outcome.UNKNOWN,
    items: int = 0,
    text: str = "",
) -> bytes:
    return _FORMAT.pack(
        kind,
        ticket.op,
        _OUTCOMES.index(outcome),
        flags,
        items,
        ticket.seq,
        ticket.began_ns,
        at_ns,
        ticket.key,
        version,
        ticket.expected,
        ticket.token,
        text.encode("ascii", "replace")[:32],
    )


def _parse(process: str, data: bytes | memoryview) -> Iterator[Event]:
    whole = len(data) - len(data) % RECORD_BYTES
    for kind, op, outcome, flags, items, seq, began, at, key, version, expected, token, text in _FORMAT.iter_unpack(
        memoryview(data)[:whole]
    ):
        yield Event(
            process,
            _KINDS[kind],
            _OPS[op],
            _OUTCOMES[outcome],
            _FLAGS[flags],
            items,
            seq,
            began,
            at,
            key,
            version,
            expected,
            token,
            text.rstrip(b"\0").decode(),
        )


def read_ledgers(directory: Path) -> Iterator[Event]:
    """Every record of every process, file by file in the order written."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        yield from _parse(path.name.removesuffix(SUFFIX), path.read_bytes())


@dataclass(slots=True)
class _Tail:
    descriptor: int
    process: str
    offset: int = 0


@dataclass(slots=True)
class Acknowledged:
    """What is known of one key: the highest acknowledged version, and whether a delete was acknowledged."""

    version: int
    deleted: bool
    process: str


class Board:
    """What all processes together have had acknowledged, followed as it grows. For one process; reads files only."""

    def __init__(self, directory: Path, *, own: str = "", recent: int = 256) -> None:
        self.keys: dict[bytes, Acknowledged] = {}
        self.rooms: dict[bytes, list[bytes]] = {}
        """Message ids of a conversation in the order they became known, deleted ones included."""
        self.recent: deque[bytes] = deque(maxlen=recent)
        """Keys that *other* processes changed last."""
        self.foreign: set[bytes] = set()
        """Keys that were there before the workload."""
        self._directory = directory
        self._own = own
        self._tails: dict[str, _Tail] = {}

    def refresh(self) -> int:
        """Take in what was written since; the number of new acknowledgements. Cheap enough for before every read."""
        for entry in os.scandir(self._directory):
            if entry.name not in self._tails and entry.name.endswith(SUFFIX):
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
                self._tails[entry.name] = _Tail(descriptor, entry.name.removesuffix(SUFFIX))
        return sum(self._follow(tail) for tail in self._tails.values())

    def close(self) -> None:
        """Close the files. Idempotent."""
        for tail in self._tails.values():
            os.close(tail.descriptor)
        self._tails.clear()

    def expected(self, key: bytes) -> int:
        """The version acknowledged so far; 0 when none is known or the key is deleted."""
        known = self.keys.get(key)
        return 0 if known is None or known.deleted else known.version

    def live(self, conversation: bytes) -> list[bytes]:
        """Ids of a conversation that no acknowledged delete has taken away."""
        return [id_ for id_ in self.rooms.get(conversation, ()) if not self.keys[conversation + id_].deleted]

    def _follow(self, tail: _Tail) -> int:
        taken = 0
        while data := os.pread(tail.descriptor, _READ_BYTES, tail.offset):
            whole = len(data) - len(data) % RECORD_BYTES
            view = memoryview(data)
            for at in range(0, whole, RECORD_BYTES):
                if data[at] == Kind.ACK:
                    taken += 1
                    self._take(next(_parse(tail.process, view[at : at + RECORD_BYTES])))
            tail.offset += whole
            if len(data) < _READ_BYTES:
                break
        return taken

    def _take(self, event: Event) -> None:
        deleted = event.op is Op.DELETE or Flag.ABSENT in event.flags
        known = self.keys.get(event.key)
        if known is None:
            self.keys[event.key] = Acknowledged(event.version, deleted, event.process)
            self.rooms.setdefault(event.key[:16], []).append(event.key[16:])
        else:
            known.version = max(known.version, event.version)
            known.deleted = known.deleted or deleted
            known.process = event.process
        if Flag.BASELINE in event.flags:
            self.foreign.add(event.key)
        elif event.process != self._own:
            self.recent.append(event.key)
