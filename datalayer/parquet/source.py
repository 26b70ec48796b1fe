"""Rows of a Parquet file as JSON lines, so that every import reads them as it reads a line; numbered from 1.

A column without a value in a row is as a member that is missing. Times are ISO text, UTC where they name no zone; text in
`attributes` is JSON.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final, Self

from datalayer.errors import InvalidArgument
from datalayer.exporting.sink import MARK
from datalayer.importing.files import BadLine, RawLine
from datalayer.parquet.arrow import pa, pq

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

READ_ROWS: Final = 500


class ParquetRows:
    """Reads a file batch by batch; as ``datalayer.importing.files.LineFile``."""

    def __init__(self, path: Path) -> None:
        """InvalidArgument when it is no Parquet file, or not a whole one."""
        try:
            self._file = pq.ParquetFile(path, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidArgument(f"{path} is no whole Parquet file") from error
        self.unit = "row"
        self.size = path.stat().st_size
        self.number = 0
        self.broken: str | None = None
        self.header = self.end = _about(self._file.metadata.metadata)
        self._rows = max(self._file.metadata.num_rows, 1)
        self._coming: Iterator[dict[str, Any]] = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def position(self) -> int:
        """How much of the file has been read, about, in bytes."""
        return int(self.size * self.number // self._rows)

    def batch(self, lines_max: int, bytes_max: int) -> list[RawLine | BadLine]:
        """The next rows; an empty list at the end of the file."""
        found: list[RawLine | BadLine] = []
        size = 0
        while len(found) < lines_max and size < bytes_max and self.broken is None:
            try:
                row = next(self._coming, None)
            except (pa.ArrowException, OSError):
                self.broken = "the Parquet file is damaged: what follows cannot be read"
                found.append(BadLine(self.number + 1, self.broken))
                break
            if row is None:
                break
            self.number += 1
            line = _line(self.number, row)
            found.append(line)
            size += len(line.raw) if isinstance(line, RawLine) else 0
        return found

    def _read(self) -> Iterator[dict[str, Any]]:
        for batch in self._file.iter_batches(READ_ROWS):
            yield from batch.to_pylist()


def _line(number: int, row: dict[str, Any]) -> RawLine | BadLine:
    try:
        fields = {name: value for name, value in row.items() if value is not None}
        if isinstance(fields.get("attributes"), str):
            fields["attributes"] = json.loads(fields["attributes"])
        return RawLine(number, json.dumps(fields, ensure_ascii=False, default=_plain).encode())
    except json.JSONDecodeError:
        return BadLine(number, "attributes are not valid JSON")
    except UnicodeEncodeError:
        return BadLine(number, "a value contains a lone surrogate, which is not valid Unicode")
    except TypeError as error:
        return BadLine(number, str(error))


def _plain(value: object) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    raise TypeError(f"a column has values of type {type(value).__name__}, which cannot be imported")


def _about(metadata: dict[bytes, bytes] | None) -> dict[str, Any] | None:
    """What an export says of itself."""
    raw = (metadata or {}).get(MARK.encode())
    if raw is None:
        return None
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
