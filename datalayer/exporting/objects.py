"""The bytes of exported media: one file for each content, in a folder beside the exported file.

A file is called by the hash of its content, below two folders of its first digits, and has that name when it is whole
and on the disk. What is read is compared with its name: whoever reads gets the last piece when the hash is right.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final

from datalayer.domains.catalogue import SHA256
from datalayer.errors import InvalidArgument, NotFinished

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from pathlib import Path

CHUNK: Final = 256 << 10
ENDING: Final = ".objects"


class ObjectFolder:
    """The folder beside a file: its name is the file's and ``.objects``."""

    def __init__(self, file: Path) -> None:
        self.path = file.with_name(file.name + ENDING)

    def file(self, sha256: str) -> Path:
        """Where a content lies."""
        assert SHA256.fullmatch(sha256), "hashes are checked where they come in"
        return self.path / sha256[:2] / sha256[2:4] / sha256

    async def has(self, sha256: str, size: int) -> bool:
        """Whether a content is there and is what it is called."""
        try:
            async for _ in self.read(sha256, size):
                pass
        except InvalidArgument:
            return False
        return True

    async def read(self, sha256: str, size: int) -> AsyncGenerator[bytes, None]:
        """A content in pieces. InvalidArgument, before the last piece, where it is missing or not what it is called."""
        path = self.file(sha256)
        with _unreadable(path):
            file = await asyncio.to_thread(_open, path)
        try:
            digest, kept, count = hashlib.sha256(), b"", 0
            while True:
                with _unreadable(path):
                    chunk = await asyncio.to_thread(file.read, CHUNK)
                count += len(chunk)
                if count > size or (not chunk and count < size):
                    found = (await asyncio.to_thread(os.fstat, file.fileno())).st_size
                    raise InvalidArgument(f"{path} has {found} bytes, not {size}")
                if not chunk:
                    break
                await asyncio.to_thread(digest.update, chunk)
                if kept:
                    yield kept
                kept = chunk
            if digest.hexdigest() != sha256:
                raise InvalidArgument(f"{path} has other bytes: their hash is {digest.hexdigest()}")
            if kept:
                yield kept
        finally:
            await asyncio.to_thread(file.close)

    async def write(self, sha256: str, chunks: AsyncIterator[bytes]) -> int:
        """Store a content, durable on return; how many bytes it has. What ``chunks`` raises leaves no file. OSError."""
        path = self.file(sha256)
        part = path.with_name(f".{sha256}.part")
        await asyncio.to_thread(_make, self.path, path.parent.parent, path.parent)
        file = await asyncio.to_thread(part.open, "wb")
        size = 0
        try:
            async for chunk in chunks:
                size += len(chunk)
                await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(_finish, file, part, path)
        except BaseException:  # whatever it was, half a file is no content; raised again
            await asyncio.to_thread(part.unlink, missing_ok=True)
            raise
        finally:
            await asyncio.to_thread(_close, file)
        return size

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What is written here. NotFinished where the operating system refuses, as on a full disk."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            hint = "run it again when that is mended: contents that are whole stay"
            raise NotFinished(f"{self.path} cannot be written: {reason}", hint=hint) from error


def sync_folder(folder: Path) -> None:
    """The names in a folder are on the disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InvalidArgument(f"{path} is missing") from None
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from None


def _open(path: Path) -> IO[bytes]:
    # without O_NONBLOCK the opening of a pipe waits for whoever writes to it
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidArgument(f"{path} is no plain file")
    return os.fdopen(descriptor, "rb", buffering=0)


def _make(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        sync_folder(folder.absolute().parent)


def _finish(file: IO[bytes], part: Path, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def _close(file: IO[bytes]) -> None:
    try:
        file.close()
    except OSError:  # what could not be written before cannot now
        return
