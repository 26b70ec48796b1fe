"""Exported files: how they are told from others, and that they are whole.

An export begins with a line (in Parquet: has metadata) that says what it holds, and ends with one that says how many
records and their digest.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import InvalidArgument
from datalayer.exporting.sink import FORMAT, MARK
from datalayer.importing.files import BadLine, RawLine, open_lines

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

_START: Final = f'{{"{MARK}"'.encode()
_MARK_LINE_MAX: Final = 4096


def header_in(path: Path, line_max_bytes: int) -> dict[str, Any] | None:
    """What an export says of itself; None for a file that is none."""
    with open_lines(path, line_max_bytes) as file:
        found = getattr(file, "header", None)
        if isinstance(found, dict):
            return found
        first = file.batch(1, 1)
    return marked(first[0].raw) if first and isinstance(first[0], RawLine) else None


def check_header(header: dict[str, Any], domain: str) -> None:
    """InvalidArgument for an export of another domain, or by a later version."""
    if header.get("export") != domain:
        raise InvalidArgument(f"the file is an export of {header.get('export')}, not of {domain}")
    if header.get("format") != FORMAT:
        raise InvalidArgument(
            f"the export has format {header.get('format')}, and this version reads {FORMAT}",
            hint="import it with the version that made it, or a later one",
        )


def marked(raw: bytes) -> dict[str, Any] | None:
    """The content of a line that is about the file, not about a record."""
    if not raw.startswith(_START) or len(raw) > _MARK_LINE_MAX:
        return None
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    inside = found.get(MARK) if isinstance(found, dict) else None
    return inside if isinstance(inside, dict) else None


class ExportedLines:
    """The records of an export; what is missing at its end breaks it off."""

    def __init__(self, path: Path, line_max_bytes: int) -> None:
        self._file = open_lines(path, line_max_bytes)
        self.size = self._file.size
        self.unit = self._file.unit
        self.end: dict[str, Any] | None = getattr(self._file, "end", None)
        self.records = 0

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    @property
    def number(self) -> int:
        """The last line that was read."""
        return self._file.number

    @number.setter
    def number(self, value: int) -> None:
        self._file.number = value

    @property
    def broken(self) -> str | None:
        """Why it breaks off."""
        return self._file.broken

    @broken.setter
    def broken(self, value: str | None) -> None:
        self._file.broken = value

    @property
    def position(self) -> int:
        """How many bytes have been read, about."""
        return self._file.position

    def batch(self, lines_max: int, bytes_max: int) -> list[RawLine | BadLine]:
        """The next records; what is about the file is taken out."""
        while True:
            raw = self._file.batch(lines_max, bytes_max)
            if not raw:
                return self._ended()
            found: list[RawLine | BadLine] = []
            for line in raw:
                about = marked(line.raw) if isinstance(line, RawLine) else None
                if about is None:
                    found.append(line)
                elif about.get("end"):
                    self.end = about
            self.records += len(found)
            if found:
                return found

    def _ended(self) -> list[RawLine | BadLine]:
        if self.broken is not None:
            return []
        if self.end is None:
            reason = "the export is not whole: its last line, with the number of records, is missing"
        elif self.end.get("records") != self.records:
            reason = f"{self.records} records, but {self.end.get('records')} were exported"
        else:
            return []
        self.broken = reason
        return [BadLine(self.number + 1, reason)]
