"""Counts distinct records and sums their digests with bounded memory: what does not fit goes to temporary files."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Final, Self

from datalayer.domains.messages import MESSAGE, to_record
from datalayer.domains.record import DIGEST_MODULUS, digest

if TYPE_CHECKING:
    from types import TracebackType

    from datalayer.domains.record import Kind, Record
    from datalayer.types import Message

_PARTS: Final = 64
_IN_MEMORY_BYTES: Final = 1 << 18
_KEY_BYTES: Final = 32
_ENTRY_BYTES: Final = _KEY_BYTES + 16


class Tally:
    """Records as they are stored; the digest does not depend on their order, nor on the store."""

    def __init__(self) -> None:
        self._open = ExitStack()
        # One part at a time is held as a dictionary at the end, so the parts bound the memory.
        self._parts: list[IO[bytes]] = []
        for _ in range(_PARTS):
            part = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - the stack closes it
            self._parts.append(self._open.enter_context(part))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add(self, message: Message) -> None:
        """Count a stored message; the same one again counts once, with its last digest."""
        self.add_record(MESSAGE, to_record(message))

    def add_record(self, kind: Kind, record: Record) -> None:
        """The same of a record of any kind whose keys have one length, of at most 32 bytes."""
        entry = record.key.ljust(_KEY_BYTES, b"\0") + digest(kind, record).to_bytes(16, "big")
        self._parts[record.key[-1] % _PARTS].write(entry)

    def total(self) -> tuple[int, str]:
        """(distinct records, digest of all of them as 32 hex digits)."""
        count = total = 0
        for part in self._parts:
            part.seek(0)
            latest: dict[bytes, bytes] = {}
            while entry := part.read(_ENTRY_BYTES):
                latest[entry[:_KEY_BYTES]] = entry[_KEY_BYTES:]
            count += len(latest)
            total += sum(int.from_bytes(value, "big") for value in latest.values())
        return count, format(total % DIGEST_MODULUS, "032x")
