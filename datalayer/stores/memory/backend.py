"""The client of an in-memory server: every call goes over a wire on which a test may let anything go wrong."""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, TypeVar

from datalayer.domains.registry import DOMAINS
from datalayer.domains.soft import SOFT_DOMAINS
from datalayer.errors import (
    Closed,
    ConfigurationError,
    DatalayerError,
    DeadlineExceeded,
    OutcomeUnknown,
    SchemaBehind,
    Unavailable,
)
from datalayer.stores.memory.faults import Call, Fault, Injection, Injector, ProcessCrash, no_faults
from datalayer.stores.memory.objects import MemoryObjects
from datalayer.stores.memory.server import MemoryServer, server_named
from datalayer.stores.memory.sessions import MemorySessions, TransactionalSessions
from datalayer.stores.memory.soft import MemorySoft
from datalayer.stores.memory.store import (
    MemoryCatalogue,
    MemoryConversations,
    MemoryListings,
    MemoryMessages,
    MemoryPort,
    MemorySearch,
    MemoryUsers,
    TransactionalCatalogue,
    TransactionalConversations,
    TransactionalListings,
    TransactionalMessages,
    TransactionalUsers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datalayer.clock import Clock, Deadline
    from datalayer.stores.base import MetaRow, Token

T = TypeVar("T")
_STORES: Final[dict[tuple[str, str], type[MemoryPort]]] = {
    ("messages", "transactional"): TransactionalMessages,
    ("messages", "last_writer"): MemoryMessages,
    ("users", "transactional"): TransactionalUsers,
    ("users", "last_writer"): MemoryUsers,
    ("conversations", "transactional"): TransactionalConversations,
    ("conversations", "last_writer"): MemoryConversations,
    ("listings", "transactional"): TransactionalListings,
    ("listings", "last_writer"): MemoryListings,
    ("sessions", "transactional"): TransactionalSessions,
    ("sessions", "last_writer"): MemorySessions,
    ("search", "transactional"): MemorySearch,
    ("search", "last_writer"): MemorySearch,
    ("catalogue", "transactional"): TransactionalCatalogue,
    ("catalogue", "last_writer"): MemoryCatalogue,
}
_HANGS: Final = frozenset({Fault.HANG, Fault.HANG_APPLIED})
_WITH_EFFECT: Final = frozenset({Fault.LOST_REPLY, Fault.HANG_APPLIED, Fault.CRASH_AFTER})


class MemoryBackend:
    """One client of one ``MemoryServer``. Several may share a server; a crash of one loses nothing of it.

    ``soft_alone``: it was not configured, and holds nothing that a process must not lose. ``inject`` chooses what happens to each call; ``timeout_s`` bounds calls that carry no deadline.
    """

    product: str = "memory"

    def __init__(
        self,
        server: MemoryServer,
        *,
        name: str | None = None,
        client: str = "client",
        inject: Injector = no_faults,
        timeout_s: float = 5.0,
        soft_alone: bool = False,
    ) -> None:
        self.server: Final = server
        self.name = server.name if name is None else name
        self.authority_class = server.authority_class
        self._client = client
        self._inject = inject
        self._timeout_s = timeout_s
        self._soft_alone = soft_alone
        self._closed = False

    async def open(self) -> None:
        self._closed = False
        await self.call("open", lambda: None, write=False)

    async def close(self) -> None:
        self._closed = True

    async def ping(self, deadline: Deadline) -> None:
        await self.call("ping", lambda: None, deadline, write=False)

    def refuses(self, domain: str) -> str | None:
        if domain in SOFT_DOMAINS:
            return None
        if self._soft_alone:
            return f"{self.name} is the memory of each process, for presence and typing alone"
        if domain == "media":
            return "media would be gone with this process"
        if domain not in DOMAINS:
            return f"memory does not store {domain}"
        if DOMAINS[domain].needs_compare_and_set and self.authority_class == "last_writer":
            return f"{domain} needs compare-and-set"
        return None

    def store(self, domain: str, attempt: int) -> Any:
        if domain in SOFT_DOMAINS:
            return MemorySoft(self, domain, attempt)
        if domain == "media":
            return MemoryObjects(self, attempt)
        kind = _STORES.get((domain, self.authority_class))
        if kind is None:
            msg = f"backend {self.name}: memory does not store {domain}"
            raise ConfigurationError(msg)
        return kind(self, domain, attempt)

    async def ensure_schema(self, *, create: bool) -> None:
        places = [(domain, 0) for domain in DOMAINS if self.refuses(domain) is None]

        def effect() -> None:
            for place in places:
                if create:
                    self.server.create(place)
                elif place not in self.server.tables:
                    msg = f"{place[0]} has no tables in {self.name} yet"
                    raise SchemaBehind(msg, hint="run `datalayer schema upgrade`")

        await self.call("ensure_schema", effect)

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        return await self.call("read_meta", lambda: dict(self.server.meta), write=False)

    async def write_meta(self, row: MetaRow) -> None:
        def effect() -> None:
            stored = self.server.meta.get((row.domain, row.attempt))
            if stored is None or stored.epoch <= row.epoch:
                self.server.meta[row.domain, row.attempt] = row

        await self.call("write_meta", effect, domain=row.domain)

    async def raise_token(self, token: Token) -> None:
        await self.call("raise_token", lambda: self.server.check_token(token), domain=token.domain)

    async def incarnation(self, deadline: Deadline) -> str:
        if not self.server.forgetful:
            return ""
        return await self.call("incarnation", lambda: str(self.server.life), deadline, write=False)

    async def call(
        self,
        name: str,
        effect: Callable[[], T],
        deadline: Deadline | None = None,
        *,
        domain: str = "",
        write: bool = True,
        partial: Callable[[], object] | None = None,
    ) -> T:
        """The one way to the server. The effect happens at one instant or not at all, as the injector says.

        Raises what the effect raises; Unavailable, DeadlineExceeded, OutcomeUnknown or ProcessCrash for a fault.
        """
        if self._closed:
            raise Closed
        if deadline is not None and deadline.passed:
            raise DeadlineExceeded
        call = Call(self._client, self.server.name, domain, name, write, deadline)
        return await self._call(call, effect, partial)

    async def _call(self, call: Call, effect: Callable[[], T], partial: Callable[[], object] | None) -> T:
        injection = self._inject(call)
        if injection.fault is Fault.CRASH_BEFORE:
            raise ProcessCrash(call.name)
        left_s = self._left_s(call)
        if injection.request_s > left_s:
            # The caller gives up; the request is still on its way and lands late, whatever becomes of the caller:
            # a context of its own, since a simulation freezes what runs in a dead process's.
            loop = asyncio.get_running_loop()
            loop.call_later(
                injection.request_s, lambda: self._land(Fault.LOST_REPLY, effect, partial), context=Context()
            )
            await asyncio.sleep(left_s)
            raise _lost(call, Fault.HANG)
        # Also without any delay other tasks run before and so between calls, as they would over a network.
        await asyncio.sleep(injection.request_s)
        if not self.server.up or injection.fault is Fault.ERROR:
            msg = f"backend {self.name} does not answer"
            raise Unavailable(msg)
        result = self._land(injection.fault, effect, partial)
        await self._reply(call, injection)
        assert result is not None, "without a fault the effect has happened"
        return result[0]

    def _land(self, fault: Fault, effect: Callable[[], T], partial: Callable[[], object] | None) -> tuple[T] | None:
        if fault is Fault.NONE:
            return (effect(),)
        # Nobody will hear of a refusal, and an outage lets nothing land.
        with contextlib.suppress(DatalayerError):
            if fault in _WITH_EFFECT and self.server.up:
                effect()
            elif fault is Fault.PARTIAL and partial is not None:
                partial()
        return None

    async def _reply(self, call: Call, injection: Injection) -> None:
        """Bring the answer, or whatever the caller gets instead."""
        if injection.fault is Fault.CRASH_AFTER:
            raise ProcessCrash(call.name)
        left_s = self._left_s(call)
        late = injection.reply_s > left_s
        if injection.fault in _HANGS or late:
            await asyncio.sleep(left_s)
        elif injection.reply_s:
            await asyncio.sleep(injection.reply_s)
        if late or injection.fault is not Fault.NONE:
            raise _lost(call, Fault.HANG if late else injection.fault)

    def _left_s(self, call: Call) -> float:
        return self._timeout_s if call.deadline is None else max(0.0, call.deadline.remaining())


def _lost(call: Call, fault: Fault) -> DatalayerError:
    """What a caller is told when no answer came."""
    if call.write:
        return OutcomeUnknown(f"{call.server} did not answer {call.name}: it may or may not have happened")
    if fault in _HANGS:
        return DeadlineExceeded(f"{call.server} did not answer {call.name} in time")
    return Unavailable(f"the connection to {call.server} broke during {call.name}")


def create_backend(
    name: str,
    url: Any,
    *,
    pool_max: int,  # noqa: ARG001 - as every factory
    clock: Clock,
    soft_alone: bool = False,
) -> MemoryBackend:
    """The client of ``memory://``: its server is that of the URL's database, else of the backend's name, in this
    process (``SERVERS``).
    """
    return MemoryBackend(server_named(url.database or name, clock, "transactional"), name=name, soft_alone=soft_alone)
