"""Where exported records go: a file that has its name only when it is whole.

Until then it is called NAME.part. A run that dies leaves that behind, and the next one begins it anew. The first line (in
Parquet: the metadata) says what the file holds, the last one how many records and their digest: a file without it is
not whole, whatever its name is.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, Self

from datalayer.errors import InvalidArgument, NotFinished, PreconditionFailed
from datalayer.exporting.objects import sync_folder
from datalayer.exporting.shapes import RECORD, shapes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from datalayer.domains.record import Record

FORMAT: Final = 1
"""The version of the file's shape; an import refuses a later one."""
MARK: Final = "datalayer"
_GZIP_LEVEL: Final = 4
_LINE_ENDS: Final = "\x85\u2028\u2029"
_LOCK_TRIES: Final = 10
SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".parquet")


class Sink(Protocol):
    """Takes records, in calls from one thread at a time."""

    def write(self, records: Sequence[Record]) -> None:
        """Add records."""
        ...

    def finish(self, count: int, digest: str) -> None:
        """Add what makes the file whole."""
        ...


class PartFile:
    """The file under its temporary name, which nobody else writes meanwhile."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """InvalidArgument when there cannot be such a file, PreconditionFailed when there is one or another run makes it."""
        if not path.name.endswith(SUFFIXES):
            raise InvalidArgument(f"{path} has no known ending", hint=f"one of: {', '.join(SUFFIXES)}")
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self.file = self._locked()
        if path.exists() and not overwrite:
            self.part.unlink(missing_ok=True)
            self.file.close()
            raise PreconditionFailed(f"{path} exists already", hint="--overwrite replaces it when the export is whole")
        self.file.truncate(0)

    def _locked(self) -> IO[bytes]:
        """The file of the temporary name, which is nobody else's from here on."""
        for _ in range(_LOCK_TRIES):
            try:
                file = self.part.open("ab")
            except OSError as error:
                raise InvalidArgument(f"{self.part} cannot be written: {error.strerror}") from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                break
            # Opened before another run ended, it is by now that run's whole export, or nobody's.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self.part.stat()):
                    return file
            file.close()
        raise PreconditionFailed(f"another export is writing {self.part}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                with self.writing():
                    self._finish()
            except NotFinished:
                self._forget()
                raise
            self.file.close()
        else:
            self._forget()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What is written here to the file. NotFinished where the operating system refuses, as on a full disk."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            hint = "nothing of it is kept; run it again when that is mended"
            raise NotFinished(f"{self.part} cannot be written: {reason}", hint=hint) from error

    def _finish(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.part.replace(self.path)
        sync_folder(self.path.absolute().parent)

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        # what could not be written before cannot now
        with suppress(OSError):
            self.file.close()


def header_of(domain: str, *, include_deleted: bool) -> dict[str, Any]:
    """What an export says of itself first."""
    return {"export": domain, "format": FORMAT, "include_deleted": include_deleted}


def open_sink(file: PartFile, domain: str, *, include_deleted: bool) -> Sink:
    """The sink of a file by its ending. MissingDependencyError for Parquet without pyarrow."""
    header = header_of(domain, include_deleted=include_deleted)
    if file.path.suffix == ".parquet":
        from datalayer.parquet.sink import ParquetSink  # noqa: PLC0415 - pyarrow is an extra

        return ParquetSink(file.file, domain, header)
    return JsonLinesSink(file.file, domain, header, packed=file.path.suffix == ".gz")


class JsonLinesSink:
    """One object a line, UTF-8, plain or gzipped."""

    def __init__(self, file: IO[bytes], domain: str, header: dict[str, Any], *, packed: bool) -> None:
        self._shapes = shapes_of(domain)
        self._packed = gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) if packed else None
        self._lines: IO[bytes] = file if self._packed is None else self._packed  # type: ignore[assignment]
        self._lines.write(f"{json.dumps({MARK: header})}\n".encode())

    def write(self, records: Sequence[Record]) -> None:
        named = len(self._shapes) > 1
        lines = []
        for record in records:
            plain = self._shapes[record.kind].to_object(record)
            if named:
                plain = {RECORD: record.kind, **plain}
            lines.append(json.dumps(plain, ensure_ascii=False, separators=(",", ":")))
        lines.append("")
        text = "\n".join(lines)
        # valid in JSON as they are, but the end of a line to programs that split text by Unicode
        for mark in _LINE_ENDS:
            text = text.replace(mark, f"\\u{ord(mark):04x}")
        self._lines.write(text.encode())

    def finish(self, count: int, digest: str) -> None:
        self._lines.write(f"{json.dumps({MARK: {'end': True, 'records': count, 'digest': digest}})}\n".encode())
        if self._packed is not None:
            self._packed.close()
