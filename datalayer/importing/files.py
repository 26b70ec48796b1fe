"""Lines of a plain or gzipped file, with bounded memory whatever the file holds."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

from datalayer.errors import InvalidArgument

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path
    from types import TracebackType

PARQUET_MAGIC: Final = b"PAR1"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_SKIP_BYTES: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"


class RawLine(NamedTuple):
    """One line as it stands in the file."""

    number: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be imported, and why in one sentence."""

    number: int
    reason: str
    unit: str = "line"
    """What is numbered: lines, or the rows of a Parquet file."""

    def __str__(self) -> str:
        return f"{self.unit} {self.number}: {self.reason}"

    def in_file(self, path: Path) -> str:
        """With its file, as editors and terminals take it."""
        if self.unit == "line":
            return f"{path}:{self.number}: {self.reason}"
        return f"{path}: {self}"


class Lines(Protocol):
    """A file of records, read in batches. ``broken`` is set when it breaks off before its end."""

    unit: str
    """What is numbered: line or row."""
    number: int
    broken: str | None
    size: int

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def position(self) -> int:
        """How many bytes of the file have been read, about."""
        ...

    def batch(self, lines_max: int, bytes_max: int) -> list[RawLine | BadLine]:
        """The next lines that are not blank; an empty list at the end of the file."""
        ...


def open_lines(path: Path, line_max_bytes: int) -> Lines:
    """A file of JSON lines, or of Parquet rows as JSON. InvalidArgument when it cannot be opened,
    MissingDependencyError for Parquet without pyarrow.
    """
    try:
        with path.open("rb") as file:
            parquet = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
        if not parquet:
            return LineFile(path, line_max_bytes)
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from None
    from datalayer.parquet.source import ParquetRows  # noqa: PLC0415 - pyarrow is an extra

    return ParquetRows(path)


class LineFile:
    """Reads a file line by line. ``broken`` is set when it breaks off before its end."""

    def __init__(self, path: Path, line_max_bytes: int) -> None:
        self._line_max = line_max_bytes
        self._file = path.open("rb")
        self.size = path.stat().st_size
        magic = self._file.peek(2)[:2]
        self._lines: gzip.GzipFile | BufferedReader = (
            gzip.GzipFile(fileobj=self._file) if magic == _GZIP_MAGIC else self._file
        )
        self.unit = "line"
        self.number = 0
        self.broken: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def position(self) -> int:
        """How many bytes of the file have been read."""
        return self._file.tell()

    def batch(self, lines_max: int, bytes_max: int) -> list[RawLine | BadLine]:
        """The next lines that are not blank; an empty list at the end of the file."""
        found: list[RawLine | BadLine] = []
        size = 0
        while len(found) < lines_max and size < bytes_max and self.broken is None:
            line = self._next()
            if line is None:
                break
            if isinstance(line, BadLine):
                found.append(line)
            elif line.raw.strip():
                found.append(line)
                size += len(line.raw)
        return found

    def _next(self) -> RawLine | BadLine | None:
        try:
            raw = self._lines.readline(self._line_max)
            if not raw:
                return None
            self.number += 1
            if len(raw) == self._line_max and not raw.endswith(b"\n"):
                self._skip_rest()
                return BadLine(self.number, f"longer than {self._line_max} bytes")
        except EOFError:
            return self._break_off("the gzip file ends too early: what follows is missing")
        except (zlib.error, gzip.BadGzipFile):
            return self._break_off("the gzip file is damaged: what follows cannot be read")
        except OSError as error:
            return self._break_off(f"the file cannot be read: {error.strerror}")
        return RawLine(self.number, raw.removeprefix(_BOM) if self.number == 1 else raw)

    def _skip_rest(self) -> None:
        while (rest := self._lines.readline(_SKIP_BYTES)) and not rest.endswith(b"\n"):
            pass

    def _break_off(self, reason: str) -> BadLine:
        self.broken = reason
        return BadLine(self.number + 1, reason)
