"""Files below one folder, found step by step from an open folder: no link that somebody plants leads out of it.

Every call names its file by the root's descriptor and plain names, opened without following links. A file gets its name
by a hard link, which never replaces anything, after its bytes are on the disk; then the folder is, too. What was linked
is looked at once more from the root, so that a folder or file that was swapped meanwhile is told.

All of it blocks: it is run in threads.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from datalayer.errors import AlreadyExists, NotFound, PreconditionFailed, Unavailable
from datalayer.stores.objects import ObjectInfo, check_name

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HEX: Final = re.compile(r"[0-9a-f]{32}")
_PART: Final = re.compile(r"\.[0-9a-f]{32}\.[0-9]+\.part")
_FOLDER_MODE: Final = 0o750
_FILE_MODE: Final = 0o640
PARTS_MAX: Final = 1000
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LINKS: Final = frozenset({errno.ELOOP, errno.ENOTDIR})


@contextmanager
def told(what: str) -> Iterator[None]:
    """Errors of the file system as the library's: one sentence that names the folder and no user."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{what} is not there") from error
    except FileExistsError as error:
        raise AlreadyExists(f"{what} exists already") from error
    except OSError as error:
        if error.errno in _FULL:
            raise Unavailable(f"{what} cannot be stored: the disk is full", hint="make room, then try again") from error
        if error.errno in _LINKS:
            raise PreconditionFailed(
                f"{what} is reached by a link, which is not followed", hint="find out who put it there"
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise PreconditionFailed(
                f"{what} cannot be reached: {os.strerror(error.errno)}", hint="let this process read and write there"
            ) from error
        raise Unavailable(f"{what} cannot be reached: {os.strerror(error.errno or 0)}") from error


class Tree:
    """The files of one place: ``root/place/owner/upload``. The root itself may be a link: an operator chose it."""

    def __init__(self, root: Path, place: str) -> None:
        self.root = root
        self.place = place

    def create(self) -> None:
        with told(f"the folder {self.root}"):
            make_root(self.root)
            with self._root() as root:
                _make(root, self.place)

    def begin(self, name: str) -> Upload:
        """A new file under a temporary name beside its final one."""
        owner, upload = check_name(name).split("/")
        with told(self._said(name)):
            for _ in range(3):
                try:
                    return self._begin(owner, upload)
                except FileNotFoundError:
                    make_root(self.root)  # an empty owner's folder was just removed, or there is none yet
            return self._begin(owner, upload)

    def _begin(self, owner: str, upload: str) -> Upload:
        with self._root() as root:
            _make(root, self.place)
            place = os.open(self.place, _DIRECTORY, dir_fd=root)
        try:
            _make(place, owner)
            folder = os.open(owner, _DIRECTORY, dir_fd=place)
        finally:
            os.close(place)
        try:
            for number in range(PARTS_MAX):
                part = f".{upload}.{number}.part"
                with suppress(FileExistsError):
                    return Upload(self, owner, upload, folder, part, os.open(part, _WRITE, _FILE_MODE, dir_fd=folder))
            raise FileExistsError
        except BaseException:  # whatever it was, the descriptor is given back; raised again
            os.close(folder)
            raise

    def open(self, name: str) -> tuple[int, os.stat_result]:
        """A descriptor to read from, and what the file is. NotFound."""
        owner, upload = check_name(name).split("/")
        with told(self._said(name)), self._folder(owner) as folder:
            found = os.open(upload, _READ, dir_fd=folder)
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                os.close(found)
                raise OSError(errno.ELOOP, "no plain file")
            return found, status

    def head(self, name: str) -> ObjectInfo | None:
        """Size and time; None where there is no such file."""
        try:
            found, status = self.open(name)
        except NotFound:
            return None
        os.close(found)
        return ObjectInfo(name, status.st_size, status.st_mtime_ns // 1000)

    def delete(self, name: str) -> None:
        """Remove a file, durably; it may be gone."""
        owner, upload = check_name(name).split("/")
        with told(self._said(name)), suppress(FileNotFoundError):
            with self._folder(owner) as folder:
                os.unlink(upload, dir_fd=folder)
                os.fsync(folder)
            with self._root() as root, _directory(root, self.place) as place, suppress(OSError):
                os.rmdir(owner, dir_fd=place)

    def page(self, after: str, limit: int) -> list[ObjectInfo]:
        """The next files by name."""
        found: list[ObjectInfo] = []
        first, _, beyond = after.partition("/")
        with told(f"the folder {self.root / self.place}"):
            for owner in self._owners():
                if owner < first:
                    continue
                with suppress(FileNotFoundError), self._folder(owner) as folder:
                    names = sorted(name for name in _names(folder) if _HEX.fullmatch(name))
                    for upload in names:
                        if owner == first and upload <= beyond:
                            continue
                        with suppress(FileNotFoundError):
                            status = os.stat(upload, dir_fd=folder, follow_symlinks=False)
                            if stat.S_ISREG(status.st_mode):
                                modified = status.st_mtime_ns // 1000
                                found.append(ObjectInfo(f"{owner}/{upload}", status.st_size, modified))
                        if len(found) == limit:
                            return found
        return found

    def clear(self, before_us: int) -> int:
        """Remove temporary files that were last written before."""
        done = 0
        with told(f"the folder {self.root / self.place}"):
            for owner in self._owners():
                with suppress(FileNotFoundError), self._folder(owner) as folder:
                    for name in _names(folder):
                        if _PART.fullmatch(name) is None:
                            continue
                        with suppress(FileNotFoundError):
                            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                            if status.st_mtime_ns // 1000 < before_us:
                                os.unlink(name, dir_fd=folder)
                                done += 1
        return done

    def drop(self) -> None:
        """Remove every file of ours, and the folders that are empty then."""
        after = ""
        while page := self.page(after, 1000):
            for info in page:
                self.delete(info.name)
            after = page[-1].name
        self.clear(1 << 62)
        with told(f"the folder {self.root / self.place}"), suppress(OSError), self._root() as root:
            with _directory(root, self.place) as place:
                for owner in _names(place):
                    with suppress(OSError):
                        os.rmdir(owner, dir_fd=place)
            os.rmdir(self.place, dir_fd=root)

    def is_linked(self, owner: str, upload: str, status: os.stat_result) -> bool:
        """Whether the file that the root leads to under this name is that one."""
        try:
            with self._folder(owner) as folder:
                found = os.stat(upload, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)

    def _owners(self) -> list[str]:
        try:
            with self._root() as root, _directory(root, self.place) as place:
                return sorted(name for name in _names(place) if _HEX.fullmatch(name))
        except FileNotFoundError:
            return []

    @contextmanager
    def _root(self) -> Iterator[int]:
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield root
        finally:
            os.close(root)

    @contextmanager
    def _folder(self, owner: str) -> Iterator[int]:
        with self._root() as root, _directory(root, self.place) as place, _directory(place, owner) as folder:
            yield folder

    def _said(self, name: str) -> str:
        return f"object {name} in {self.root / self.place}"


class Upload:
    """One file being written; nobody sees it before ``commit``."""

    def __init__(self, tree: Tree, owner: str, upload: str, folder: int, part: str, descriptor: int) -> None:  # noqa: PLR0917 - the parts of one file
        self._tree = tree
        self._owner = owner
        self._upload = upload
        self._folder = folder
        self._part = part
        self._descriptor = descriptor
        self._open = True

    @property
    def _said(self) -> str:
        return f"object {self._owner}/{self._upload} in {self._tree.root / self._tree.place}"

    def write(self, chunk: bytes) -> None:
        with told(self._said):
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def commit(self) -> None:
        """Give the file its name: first its bytes are on the disk, then the folder's entry is."""
        with told(self._said):
            os.fsync(self._descriptor)
            status = os.fstat(self._descriptor)
            os.link(
                self._part,
                self._upload,
                src_dir_fd=self._folder,
                dst_dir_fd=self._folder,
                follow_symlinks=False,
            )
            os.fsync(self._folder)
            linked = self._tree.is_linked(self._owner, self._upload, status)
        if not linked:
            raise PreconditionFailed(
                f"{self._said} was swapped while it was written", hint="find out who else writes to this folder"
            )
        self.close()

    def close(self) -> None:
        """Give the descriptors back and remove the temporary name. Idempotent."""
        if not self._open:
            return
        self._open = False
        with suppress(OSError):
            os.unlink(self._part, dir_fd=self._folder)
        os.close(self._descriptor)
        os.close(self._folder)


@contextmanager
def _directory(parent: int, name: str) -> Iterator[int]:
    found = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        yield found
    finally:
        os.close(found)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def make_root(root: Path) -> None:
    """The store's own folder; the one above it must be there."""
    root.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def _make(parent: int, name: str) -> None:
    """A folder, durably, unless it is there."""
    try:
        os.mkdir(name, _FOLDER_MODE, dir_fd=parent)
    except FileExistsError:
        return
    os.fsync(parent)
