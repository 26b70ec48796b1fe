"""Reading lines: plain and gzipped, whatever the file holds, with bounded memory."""

import gzip
import tracemalloc
from pathlib import Path

import pytest

from datalayer.importing.files import BadLine, LineFile, RawLine


def read(path: Path, line_max_bytes: int = 1000) -> tuple[list[RawLine | BadLine], LineFile]:
    found = []
    with LineFile(path, line_max_bytes) as file:
        while batch := file.batch(3, 1 << 20):
            found += batch
    return found, file


@pytest.fixture(params=["plain", "gzip"])
def compressed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "gzip")


def written(folder: Path, data: bytes, *, compressed: bool) -> Path:
    path = folder / "lines"  # by its content, not its name
    path.write_bytes(gzip.compress(data) if compressed else data)
    return path


def test_lines_are_numbered_and_blank_ones_left_out(tmp_path: Path, compressed: bool) -> None:
    found, file = read(written(tmp_path, b"\xef\xbb\xbfa\n\n  \r\nb\r\nc", compressed=compressed))
    assert [(line.number, line.raw.strip()) for line in found if isinstance(line, RawLine)] == [
        (1, b"a"),
        (4, b"b"),
        (5, b"c"),
    ]
    assert file.broken is None
    assert file.size > 0


def test_an_empty_file_has_no_lines(tmp_path: Path, compressed: bool) -> None:
    assert read(written(tmp_path, b"", compressed=compressed))[0] == []


def test_a_line_that_is_too_long_is_named_and_the_next_one_read(tmp_path: Path, compressed: bool) -> None:
    data = b"a\n" + b"x" * (3 << 20) + b"\nb\n" + b"y" * 1000
    found, _ = read(written(tmp_path, data, compressed=compressed))
    assert found == [
        RawLine(1, b"a\n"),
        BadLine(2, "longer than 1000 bytes"),
        RawLine(3, b"b\n"),
        BadLine(4, "longer than 1000 bytes"),
    ]
    assert str(found[1]) == "line 2: longer than 1000 bytes"


@pytest.mark.parametrize("cut", [1, 8, 9, 20, 40])
def test_a_truncated_gzip_file_is_named(tmp_path: Path, cut: int) -> None:
    data = gzip.compress(b"".join(b"line %d of many\n" % n for n in range(1000)))
    path = tmp_path / "cut.gz"
    path.write_bytes(data[:-cut])
    found, file = read(path)
    assert isinstance(found[-1], BadLine)
    assert found[-1].reason == "the gzip file ends too early: what follows is missing"
    assert file.broken == found[-1].reason
    assert [line.number for line in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize("at", [15, 200, -6])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, at: int) -> None:
    data = bytearray(gzip.compress(bytes(range(256)) * 40 + b"\n", 9))
    data[at] ^= 0xFF
    path = tmp_path / "bad.gz"
    path.write_bytes(bytes(data))
    found, file = read(path, 1 << 20)
    assert isinstance(found[-1], BadLine)
    assert "gzip file" in found[-1].reason
    assert file.broken is not None


def test_memory_is_bounded_by_the_longest_line_allowed(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", 9) as file:
        for _ in range(64):
            file.write(b" " * (1 << 20))
    tracemalloc.start()
    try:
        found, _ = read(path, 1 << 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [BadLine(1, "longer than 65536 bytes")]
    assert peak < 8 << 20
