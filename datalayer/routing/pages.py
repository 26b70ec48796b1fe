"""How many rows a page of a scan may have: about as many bytes each time, whatever the rows hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.domains.record import Record

PAGE_BYTES: Final = 2 << 20
PAGE_ROWS_FIRST: Final = 100
PAGE_ROWS_MAX: Final = 4000
WEIGHED_ROWS: Final = 500


def row_bytes(records: Sequence[Record]) -> float:
    """About how many bytes the fields of a record hold, by at most twice WEIGHED_ROWS records of a page."""
    some = records[:: max(1, len(records) // WEIGHED_ROWS)]
    held = sum(len(value) for record in some for value in record.fields if isinstance(value, (str, bytes)))
    return held / len(some)


def next_limit(limit: int, records: Sequence[Record]) -> int:
    """The row limit of the next page: about PAGE_BYTES, at most doubled at a time."""
    if not records:
        return limit
    fits = int(PAGE_BYTES / max(row_bytes(records), 64))
    return max(1, min(limit * 2, fits, PAGE_ROWS_MAX))
