"""A folder as a backend of media."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from datalayer.errors import ConfigurationError, DeadlineExceeded, PreconditionFailed, Unavailable
from datalayer.stores.filesystem.tree import Tree, make_root, told
from datalayer.stores.objects import CHUNK, ObjectInfo, ObjectMeta, Presigned, check_name, no_urls, wrong_size
from datalayer.stores.threads import Threads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

    from datalayer.clock import Clock, Deadline
    from datalayer.stores.base import AuthorityClass, MetaRow, Token

R = TypeVar("R")
NOTES: Final = ".datalayer"
THREADS_MAX: Final = 8


class FilesystemBackend:
    """One folder. Its parent must exist; the folder itself is made when something is stored."""

    product: str = "filesystem"
    authority_class: AuthorityClass = "transactional"

    def __init__(self, name: str, path: Path, *, clock: Clock, threads: int = 4, cdn_url: str | None = None) -> None:
        self.name = name
        self.path = path
        self.cdn_url = cdn_url
        self._threads = Threads(name, threads)
        self._meta = ObjectMeta(_Notes(self), f"backend {name!r}")

    async def open(self) -> None:
        if not self.path.parent.is_dir():
            raise PreconditionFailed(
                f"the folder of backend {self.name!r} cannot be made: {self.path.parent} does not exist",
                hint="make that folder, mount it, or correct the backend's url",
            )
        self._threads.open()
        await self.run(self._look)

    def _look(self) -> None:
        """What is there must be ours to use; what is not is made with the first thing that is stored."""
        with told(f"the folder {self.path}"):
            if self.path.exists() and not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not allowed")
            if self.path.exists() and not self.path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "no folder")

    async def close(self) -> None:
        self._threads.close()

    async def ping(self, deadline: Deadline) -> None:
        if deadline.passed:
            raise DeadlineExceeded
        if not await self.run(self.path.parent.is_dir):
            raise Unavailable(f"the folder {self.path.parent} is not there")

    def refuses(self, domain: str) -> str | None:
        return None if domain == "media" else f"a folder holds media, not {domain}"

    def store(self, domain: str, attempt: int) -> FilesystemObjects:
        if self.refuses(domain):
            raise ConfigurationError(f"backend {self.name}: {self.refuses(domain)}")
        return FilesystemObjects(self, attempt)

    async def ensure_schema(self, *, create: bool) -> None:
        """A folder has no schema."""

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        return await self._meta.read_meta()

    async def write_meta(self, row: MetaRow) -> None:
        await self._meta.write_meta(row)

    async def raise_token(self, token: Token) -> None:
        await self._meta.raise_token(token)

    async def run(self, function: Callable[..., R], *args: Any) -> R:
        """A blocking call in a thread. A cancelled caller waits for its end: what it holds open is used until then."""
        return await self._threads.run(function, *args)


class _Notes:
    """Empty files in a folder of their own."""

    def __init__(self, backend: FilesystemBackend) -> None:
        self._backend = backend
        self._folder = backend.path / NOTES

    async def notes(self) -> list[str]:
        return await self._backend.run(self._list)

    def _list(self) -> list[str]:
        with told(f"the folder {self._folder}"):
            return sorted(one.name for one in self._folder.iterdir()) if self._folder.is_dir() else []

    async def note(self, name: str) -> None:
        await self._backend.run(self._touch, name)

    def _touch(self, name: str) -> None:
        with told(f"the folder {self._folder}"):
            make_root(self._backend.path)
            self._folder.mkdir(mode=0o750, exist_ok=True)
            (self._folder / name).touch()
            self._sync()

    async def unnote(self, name: str) -> None:
        await self._backend.run(self._remove, name)

    def _remove(self, name: str) -> None:
        with told(f"the folder {self._folder}"):
            (self._folder / name).unlink(missing_ok=True)
            self._sync()

    def _sync(self) -> None:
        for folder in (self._folder, self._folder.parent):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class FilesystemObjects:
    """``Objects`` below one folder."""

    def __init__(self, backend: FilesystemBackend, attempt: int) -> None:
        self._backend = backend
        self.place = "media" if attempt == 0 else f"media_{attempt}"
        self.tree = Tree(backend.path, self.place)

    async def create(self) -> None:
        await self._backend.run(self.tree.create)

    async def drop(self) -> None:
        await self._backend.run(self.tree.drop)

    async def put(self, name: str, chunks: AsyncIterator[bytes], *, content_type: str, size: int | None = None) -> None:
        upload = await self._backend.run(self.tree.begin, name)
        try:
            async for chunk in chunks:
                await self._backend.run(upload.write, chunk)
            await self._backend.run(upload.commit)
        finally:
            await self._backend.run(upload.close)

    async def read(
        self, name: str, start: int = 0, stop: int | None = None, *, size: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        run = self._backend.run
        descriptor, status = await run(self.tree.open, name)
        try:
            if size is not None and status.st_size != size:
                raise wrong_size(name)
            at, end = start, status.st_size if stop is None else min(stop, status.st_size)
            while at < end:
                chunk = await run(os.pread, descriptor, min(CHUNK, end - at), at)
                if not chunk:
                    return  # somebody cut it meanwhile: whoever reads compares the size
                at += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    async def head(self, name: str) -> ObjectInfo | None:
        return await self._backend.run(self.tree.head, name)

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            await self._backend.run(self.tree.delete, name)

    async def page(self, after: str, limit: int) -> Sequence[ObjectInfo]:
        return await self._backend.run(self.tree.page, after, limit)

    async def clear(self, before_us: int) -> int:
        return await self._backend.run(self.tree.clear, before_us)

    async def presign_get(
        self, name: str, expires_s: int, *, content_type: str, filename: str | None, inline: bool
    ) -> str:
        raise no_urls("a folder")

    async def presign_put(self, name: str, expires_s: int, *, size: int, content_type: str, sha256: str) -> Presigned:
        raise no_urls("a folder")

    def public_url(self, name: str) -> str | None:
        cdn = self._backend.cdn_url
        return None if cdn is None else f"{cdn.rstrip('/')}/{self.place}/{check_name(name)}"


def create_backend(
    name: str, url: Any, *, pool_max: int, clock: Clock, cdn_url: str | None = None
) -> FilesystemBackend:
    """The backend of a ``file:///`` URL; ``pool_max`` bounds its threads."""
    threads = max(1, min(THREADS_MAX, pool_max))
    return FilesystemBackend(name, Path(url.path), clock=clock, threads=threads, cdn_url=cdn_url)
