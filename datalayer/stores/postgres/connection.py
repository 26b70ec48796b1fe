"""A psycopg connection whose every wait ends at a deadline, and which is never left inside a statement.

psycopg waits for its socket in one place, ``AsyncConnection.wait``; overriding it costs no task and no second timer
per call. When the time is up, or the caller is cancelled, the same is done: the server is asked to cancel, its answer
is awaited for a short grace (it says whether the statement took effect), and else the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.adapt import AdaptersMap, Loader
from psycopg.pq import ConnStatus, Format, TransactionStatus
from psycopg.types.string import ByteaBinaryLoader, TextBinaryLoader, TextLoader

if TYPE_CHECKING:
    from psycopg.abc import Buffer, PQGen
    from psycopg.errors import Diagnostic

RV = TypeVar("RV")
GRACE_S: Final = 0.1
"""How long a statement that was told to stop may take to answer."""
NEVER: Final = float("inf")
_UUIDS_OID: Final = 2951
_ARRAY_HEAD: Final = 20
_READ: Final = 1
_WRITE: Final = 2
_FAREWELLS: Final = frozenset({"FATAL", "PANIC"})
_WAITS_FOR_STANDBY: Final = "SyncRepWaitForLSN"
"""The server's function that warns of a wait given up; the warning's SQLSTATE is every warning's."""

ADAPTERS: Final = AdaptersMap(psycopg.adapters)
# JSON stays the text it was stored as: parsing is the domain's business, and a copy must be bit-equal.
ADAPTERS.register_loader("json", TextLoader)
ADAPTERS.register_loader("json", TextBinaryLoader)


class _UuidsLoader(Loader):
    """A uuid[] as the concatenation of its items: head of 20 bytes, then length and bytes of each."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        raw = bytes(data)
        return b"".join([raw[at : at + 16] for at in range(_ARRAY_HEAD + 4, len(raw), 20)])


class TimeUp(Exception):
    """The deadline passed; ``undone``: the server confirmed that the statement had no effect."""

    def __init__(self, *, undone: bool) -> None:
        super().__init__("the deadline passed")
        self.undone = undone


class Unconfirmed(Exception):
    """A transaction was committed, but not confirmed by the synchronous standby that it waited for."""


class _Wakeup:
    """What one wait reacts to: the socket, or the time being up."""

    __slots__ = ("expired", "future", "ready")

    def __init__(self) -> None:
        self.ready = 0
        self.expired = False
        self.future: asyncio.Future[None] | None = None

    def on_socket(self, how: int) -> None:
        self.ready |= how
        self._wake()

    def on_time(self) -> None:
        self.expired = True
        self._wake()

    def _wake(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)


class DeadlineConnection(AsyncConnection[Any]):
    """``until`` is the event loop's time at which the current call must have ended; NEVER at rest."""

    until: float = NEVER
    expires_at: float = NEVER
    idle_since: float = 0.0
    refused_writes: bool = False
    """The server is a standby, or was made read-only, since this connection was made."""
    unconfirmed: bool = False
    """A commit was answered that its synchronous standby did not confirm. Whoever cancels one that waits - we do, when
    the deadline passes - gets a success and a warning: it is committed here alone, and lost if this server is.
    """
    _dismissed: bool = False
    _poll: select.poll | None = None
    _reused: AsyncCursor[Any] | None = None
    _raw: AsyncCursor[Any] | None = None

    @property
    def reused(self) -> AsyncCursor[Any]:
        """One cursor for all short statements, with binary results; a connection serves one call at a time."""
        if self._reused is None:
            self._reused = self.cursor()
            self._reused.format = Format.BINARY
        return self._reused

    @property
    def raw(self) -> AsyncCursor[Any]:
        """As ``reused``, but a uuid is its 16 bytes and a uuid[] their concatenation."""
        if self._raw is None:
            self._raw = self.cursor()
            self._raw.format = Format.BINARY
            self._raw.adapters.register_loader("uuid", ByteaBinaryLoader)
            self._raw.adapters.register_loader(_UUIDS_OID, _UuidsLoader)
        return self._raw

    def usable(self) -> bool:
        """Whether the server has not hung up since the last call: what is known dead before a write is not applied.

        A connection at rest has nothing to say. Whatever came - a farewell, the end of the stream - ends it; reading the
        farewell alone would look like a living connection until the socket is closed too. A farewell that came with
        the last answer was read with it: libpq takes an error outside a call for a notice.
        """
        pgconn = self.pgconn
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(pgconn.socket, select.POLLIN)
        if self._poll.poll(0):
            return False
        pgconn.is_busy()  # parses what was read already
        if self._dismissed:
            return False
        return pgconn.status == ConnStatus.OK and pgconn.transaction_status == TransactionStatus.IDLE

    def watch(self) -> None:
        """Notice farewells and commits without a standby from now on. Called once, after connecting."""
        self.add_notice_handler(self._heard)

    def _heard(self, notice: Diagnostic) -> None:
        if notice.severity_nonlocalized in _FAREWELLS:
            self._dismissed = True
        if notice.source_function == _WAITS_FOR_STANDBY:
            self.unconfirmed = True

    def discard(self) -> None:
        """Close without a word to the server, which rolls back whatever is open. Idempotent."""
        self._closed = True
        self.pgconn.finish()

    async def wait(self, gen: PQGen[RV], interval: float = 0.0, timeout: float | None = None) -> RV:
        """Drive a protocol generator until it ends or ``until`` comes (TimeUp)."""
        del interval
        until = self.until
        if timeout is not None:
            until = min(until, asyncio.get_running_loop().time() + timeout)
        try:
            done, value = await self._drive(gen, until)
            if not done:
                outcome, value = await self._settle(gen)
                if outcome != "done":
                    raise TimeUp(undone=outcome == "undone")
        except asyncio.CancelledError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                with contextlib.suppress(psycopg.Error):  # the caller left: nobody waits for the answer
                    await self._settle(gen)
            raise
        except psycopg.errors.ReadOnlySqlTransaction:
            self.refused_writes = True
            raise
        finally:
            if self.closed:
                # A pipeline's would still ask for its results when it is collected, of a connection that is gone.
                with contextlib.suppress(psycopg.Error):
                    gen.close()
        return cast("RV", value)

    async def _drive(self, gen: PQGen[Any], until: float) -> tuple[bool, Any]:
        """(True, the generator's value), or (False, None) when the time is up and the generator still alive."""
        try:
            state = next(gen)
        except StopIteration as stop:
            return True, stop.value
        loop = asyncio.get_running_loop()
        fileno = self.pgconn.socket
        wakeup = _Wakeup()
        timer = None if until == NEVER else loop.call_at(until, wakeup.on_time)
        registered = 0
        try:
            while not wakeup.expired:
                registered = self._register(fileno, wakeup, registered, state)
                wakeup.future = loop.create_future()
                await wakeup.future
                ready, wakeup.ready = wakeup.ready, 0
                if ready:
                    state = gen.send(ready)  # the bits of psycopg's Ready
            return False, None
        except StopIteration as stop:
            return True, stop.value
        except OSError as error:
            raise psycopg.OperationalError("connection socket closed") from error
        finally:
            if timer is not None:
                timer.cancel()
            self._register(fileno, wakeup, registered, 0)

    @staticmethod
    def _register(fileno: int, wakeup: _Wakeup, registered: int, wanted: int) -> int:
        changed = registered ^ wanted
        if not changed:
            return registered
        loop = asyncio.get_running_loop()
        if changed & _READ:
            if wanted & _READ:
                loop.add_reader(fileno, wakeup.on_socket, _READ)
            else:
                loop.remove_reader(fileno)
        if changed & _WRITE:
            if wanted & _WRITE:
                loop.add_writer(fileno, wakeup.on_socket, _WRITE)
            else:
                loop.remove_writer(fileno)
        return wanted

    async def _settle(self, gen: PQGen[Any]) -> tuple[Literal["done", "undone", "lost"], Any]:
        """Bring a statement that must not go on to an end; ``lost``: the connection is closed.

        Shielded: a second cancellation of the caller must not leave the connection inside a statement.
        """
        task = asyncio.ensure_future(self._cancel_and_drain(gen))
        interrupted: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                interrupted = error
            except psycopg.Error:
                break
        if interrupted is not None:
            task.exception()
            raise interrupted
        return task.result()

    async def _cancel_and_drain(self, gen: PQGen[Any]) -> tuple[Literal["done", "undone", "lost"], Any]:
        end = asyncio.get_running_loop().time() + GRACE_S
        try:
            await self.cancel_safe(timeout=GRACE_S)
            done, value = await self._drive(gen, end)
            if done:
                return "done", value
        except psycopg.errors.QueryCanceled:
            return "undone", None
        except psycopg.Error:
            if self.pgconn.transaction_status not in (TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN):
                raise
        self.discard()
        return "lost", None
