"""A facade over one event loop in a thread of its own, for as long as the layer is open.

A portal for each call would start a thread each time (705 us against 84 us a call). Threads may share one layer: every
call is a task of its own on the loop. The signatures that editors and type checkers see are generated into
``__init__.pyi`` from the asynchronous ones (``python -m datalayer.sync.stubs``).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial, wraps
from inspect import getmembers, iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.from_thread import start_blocking_portal

from datalayer.errors import Closed
from datalayer.layer import DataLayer as AsyncDataLayer
from datalayer.repositories.conversations import Conversations as AsyncConversations
from datalayer.repositories.media import MediaItems as AsyncMediaItems
from datalayer.repositories.messages import Messages as AsyncMessages
from datalayer.repositories.presence import PresenceRepository
from datalayer.repositories.search import Search as AsyncSearch
from datalayer.repositories.sessions import Sessions as AsyncSessions
from datalayer.repositories.typing import Typing
from datalayer.repositories.users import Users as AsyncUsers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from os import PathLike

    from datalayer.clock import Deadline
    from datalayer.layer import LayerOptions
    from datalayer.routing.consistency import LevelName
    from datalayer.settings import Settings

R = TypeVar("R")
REPOSITORIES: dict[str, type] = {
    "users": AsyncUsers,
    "messages": AsyncMessages,
    "conversations": AsyncConversations,
    "sessions": AsyncSessions,
    "search": AsyncSearch,
    "presence": PresenceRepository,
    "typing": Typing,
    "media": AsyncMediaItems,
}


class Loop:
    """One event loop in a thread, callable from every other thread of this process."""

    def __init__(self) -> None:
        self._portal_open = start_blocking_portal(backend="asyncio")
        self._portal = self._portal_open.__enter__()
        self._pid = os.getpid()
        self._closed = False

    def call(self, function: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        """What ``function`` returns; Closed after ``close`` and in a forked child, where its thread does not exist."""
        if self._closed or os.getpid() != self._pid:
            raise Closed
        return self._portal.call(partial(function, *args, **kwargs))

    def close(self) -> None:
        """End the thread once the calls under way have ended. Idempotent."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._portal_open.__exit__(None, None, None)


class Repository:
    """The coroutine methods of an asynchronous repository as plain ones."""

    def __init__(self, loop: Loop, repository: Any) -> None:
        for name, method in getmembers(type(repository), iscoroutinefunction):
            if not name.startswith("_"):
                setattr(self, name, _plain(loop, method, getattr(repository, name)))


def _plain(loop: Loop, documented: Any, method: Callable[..., Awaitable[R]]) -> Callable[..., R]:
    @wraps(documented)
    def call(*args: Any, **kwargs: Any) -> R:
        return loop.call(method, *args, **kwargs)

    return call


class DataLayer:
    """``datalayer.DataLayer`` without await. Thread-safe; after a fork it is closed in the child."""

    def __init__(self, loop: Loop, layer: AsyncDataLayer) -> None:
        self._loop = loop
        self._layer = layer
        self.settings = layer.settings
        for name in REPOSITORIES:
            setattr(self, name, Repository(loop, getattr(layer, name)))

    @classmethod
    @contextmanager
    def open(
        cls, config: str | PathLike[str] | Settings | None = None, *, options: LayerOptions | None = None
    ) -> Iterator[DataLayer]:
        """As ``datalayer.DataLayer.open``."""
        layer = cls.connect(config, options=options)
        try:
            yield layer
        finally:
            layer.close()

    @classmethod
    def connect(
        cls, config: str | PathLike[str] | Settings | None = None, *, options: LayerOptions | None = None
    ) -> DataLayer:
        """As ``open``, for callers that close it themselves."""
        loop = Loop()
        try:
            return cls(loop, loop.call(AsyncDataLayer.connect, config, options=options))
        except BaseException:  # whatever ended the opening, its thread ends too; raised again
            loop.close()
            raise

    def close(self) -> None:
        """Leave the fleet and give every connection back. Idempotent."""
        try:
            self._loop.call(self._layer.close)
        except Closed:
            return
        self._loop.close()

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[Deadline]:
        """One deadline for every call of this thread inside the block."""
        with self._layer.deadline(seconds) as deadline:
            yield deadline

    @contextmanager
    def reading_after(self, token: str | None) -> Iterator[None]:
        """As ``datalayer.DataLayer.reading_after``, for the calls of this thread inside the block."""
        with self._layer.reading_after(token):
            yield

    @contextmanager
    def reading(self, level: LevelName, *, max_lag_s: float | None = None) -> Iterator[None]:
        """As ``datalayer.DataLayer.reading``, for the calls of this thread inside the block."""
        with self._layer.reading(level, max_lag_s=max_lag_s):
            yield

    def token(self) -> str:
        """As ``datalayer.DataLayer.token``."""
        return self._loop.call(self._layer.token)

    def replicas(self) -> dict[str, list[dict[str, Any]]]:
        """As ``datalayer.DataLayer.replicas``."""

        async def ask() -> dict[str, list[dict[str, Any]]]:
            return self._layer.replicas()

        return self._loop.call(ask)

    def health(self) -> dict[str, Any]:
        """For readiness probes, as ``datalayer.DataLayer.health``."""
        return self._loop.call(self._layer.health)
