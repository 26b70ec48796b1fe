"""Media in the memory of a server of this process, for tests and trials."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from datalayer.errors import AlreadyExists, NotFound
from datalayer.stores.objects import CHUNK, ObjectInfo, Presigned, check_name, no_urls, wrong_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from datalayer.stores.memory.backend import MemoryBackend
    from datalayer.stores.memory.backend import T as R

UPLOADS: Final = "upload "


class MemoryObjects:
    """``Objects`` of a ``MemoryServer``. What an upload has sent so far is kept beside, as in every store."""

    def __init__(self, backend: MemoryBackend, attempt: int) -> None:
        self._backend = backend
        self._attempt = attempt

    @property
    def _stored(self) -> dict[str, tuple[bytes, int]]:
        return self._backend.server.objects.setdefault(self._attempt, {})

    async def _call(self, name: str, effect: Callable[[], R], *, write: bool = True) -> R:
        return await self._backend.call(name, effect, domain="media", write=write)

    async def create(self) -> None:
        await self._call("create", lambda: None)

    async def drop(self) -> None:
        await self._call("drop", self._stored.clear)

    async def put(self, name: str, chunks: AsyncIterator[bytes], *, content_type: str, size: int | None = None) -> None:
        check_name(name)
        part = UPLOADS + name
        try:
            held = b""
            async for chunk in chunks:
                held += chunk
                self._stored[part] = (held, self._backend.server.clock.now_us())
            await self._call("put", lambda: self._land(name, held))
        finally:
            self._stored.pop(part, None)

    def _land(self, name: str, held: bytes) -> None:
        if name in self._stored:
            raise AlreadyExists(f"object {name} exists already in {self._backend.name}")
        self._stored[name] = (held, self._backend.server.clock.now_us())

    async def read(
        self, name: str, start: int = 0, stop: int | None = None, *, size: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        held = await self._call("read", lambda: self._stored.get(check_name(name), (None, 0))[0] or b"", write=False)
        if check_name(name) not in self._stored:
            raise NotFound(f"object {name} is not in {self._backend.name}")
        if size is not None and len(held) != size:
            raise wrong_size(name)
        wanted = held[start:stop]
        for at in range(0, len(wanted), CHUNK):
            yield wanted[at : at + CHUNK]

    async def head(self, name: str) -> ObjectInfo | None:
        found = await self._call("head", lambda: (self._stored.get(check_name(name)),), write=False)
        return None if found[0] is None else ObjectInfo(name, len(found[0][0]), found[0][1])

    async def delete(self, names: Sequence[str]) -> None:
        def effect() -> None:
            for name in names:
                self._stored.pop(check_name(name), None)

        await self._call("delete", effect)

    async def page(self, after: str, limit: int) -> Sequence[ObjectInfo]:
        def effect() -> Sequence[ObjectInfo]:
            names = sorted(name for name in self._stored if not name.startswith(UPLOADS))
            found = names[bisect_right(names, after) :][:limit]
            return [ObjectInfo(name, len(self._stored[name][0]), self._stored[name][1]) for name in found]

        return await self._call("page", effect, write=False)

    async def clear(self, before_us: int) -> int:
        def effect() -> int:
            old = [name for name, (_, at) in self._stored.items() if name.startswith(UPLOADS) and at < before_us]
            for name in old:
                del self._stored[name]
            return len(old)

        return await self._call("clear", effect)

    async def presign_get(
        self, name: str, expires_s: int, *, content_type: str, filename: str | None, inline: bool
    ) -> str:
        raise no_urls("memory")

    async def presign_put(self, name: str, expires_s: int, *, size: int, content_type: str, sha256: str) -> Presigned:
        raise no_urls("memory")

    def public_url(self, name: str) -> str | None:
        return None
