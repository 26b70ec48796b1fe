"""The projector: brings users' lists of conversations in step with conversations and messages.

Two sources, two ways. *Members* carry the mark of what their user's list does not show (``listed`` below ``version``),
written by the change itself; the mark is taken off by a write that compares versions, once the list has it. So nothing
that dies meanwhile loses a change (the record, not a table beside it, is the journal: it travels with every migration,
and nothing is to be drained when a place is left). *Messages* live in another domain, maybe in a store without
transactions: that one has come is told by the process that appended it, best effort.

A process shows its own changes at once. What nobody showed is found by a sweep that one process of the fleet does at a
time, under a lease: for economy, not for correctness. Every step may be done twice, late and in any order, because a
list takes a membership only when it is newer than the one it shows.

Errors are counted and what failed is left to the sweep (the one place of this component that swallows them).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.clock import Deadline
from datalayer.domains.conversations import Settle, to_member
from datalayer.domains.listings import Show
from datalayer.errors import Closed, DatalayerError, LostLease
from datalayer.routing.consistency import reading, reading_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from datalayer.clock import Clock
    from datalayer.control.base import Control
    from datalayer.domains.record import Record
    from datalayer.routing.router import Jitter, Router
    from datalayer.types import Member, Message

log = logging.getLogger("datalayer.projector")
LEASE: Final = "projector/listings"
LEASE_TTL_S: Final = 10.0
PAUSE_S: Final = 0.05
"""Between two rounds of changed members: what comes meanwhile is done together."""
ACTIVITY_S: Final = 0.4
"""Between two rounds of messages, each of which writes every member's list: a busy conversation costs no more."""
SWEEP_S: Final = 2.0
GRACE_US: Final = 2_000_000
"""A sweep leaves younger changes to the process that made them."""
CALL_S: Final = 5.0
PAGE: Final = 500
AT_ONCE: Final = 16
OFFERS_MAX: Final = 10_000
LAG_MAX: Final = 10_001
UNUSED_S: Final = 10.0
"""How long nobody looks again whether there are conversations at all."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the lists are behind: so many members (counted to 10,001), the oldest change for so many seconds."""

    behind: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Sources:
    """The routers of the three domains that take part."""

    conversations: Router
    messages: Router
    listings: Router


class Projector:
    """The projection of one open DataLayer."""

    def __init__(self, sources: Sources, control: Control, clock: Clock, process_id: str, jitter: Jitter) -> None:
        self._sources = sources
        self._control = control
        self._clock = clock
        self._process_id = process_id
        self._jitter = jitter
        self._members: dict[bytes, Record] = {}
        self._active: dict[UUID, UUID] = {}
        self._wake_members = asyncio.Event()
        self._wake_active = asyncio.Event()
        self._round = asyncio.Lock()
        self._stopped = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._unused_until = float("-inf")
        self.errors = 0
        self.dropped = 0
        """Tidings of messages that came faster than lists could be written."""

    # --- what the repositories tell --------------------------------------------------------------------------------

    def changed(self, records: Sequence[Record]) -> None:
        """Records of conversations were written here. What does not fit in the queue is found by a sweep."""
        for record in records:
            if record.kind == "member" and (len(self._members) < OFFERS_MAX or record.key in self._members):
                self._members[record.key] = record
        if self._members:
            self._wake_members.set()

    def appended(self, message: Message) -> None:
        """A message was appended here: a queue put, and nothing else."""
        known = self._active.get(message.conversation_id)
        if known is None and len(self._active) >= OFFERS_MAX:
            self.dropped += 1
            return
        if known is None or known.bytes < message.id.bytes:
            self._active[message.conversation_id] = message.id
            self._wake_active.set()

    # --- the task --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Follow from now on, until ``stop``."""
        self._tasks = [
            asyncio.create_task(
                self._follow(self._wake_members, PAUSE_S, self.show_members), name="datalayer-projector-members"
            ),
            asyncio.create_task(
                self._follow(self._wake_active, ACTIVITY_S, self.show_activity), name="datalayer-projector-activity"
            ),
            asyncio.create_task(self._sweep_forever(), name="datalayer-projector-sweep"),
        ]

    async def stop(self) -> None:
        """Follow no more; what is queued is found by another process's sweep. Idempotent."""
        self._stopped.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _follow(self, wake: asyncio.Event, pause_s: float, act: Callable[[], Awaitable[None]]) -> None:
        with _as_nobody():
            while not self._stopped.is_set():
                await wake.wait()
                wake.clear()
                await self._pause(pause_s)
                await act()

    async def show_members(self) -> None:
        """Show the members that were changed here until now."""
        members, self._members = self._members, {}
        await self._try(self._show_members(list(members.values())))

    async def show_activity(self) -> None:
        """Show the messages that were appended here until now; also those that a round under way has taken."""
        async with self._round:
            active, self._active = self._active, {}
            if active and await self._used():
                await self._all(self._show_activity, active.items())

    async def _sweep_forever(self) -> None:
        with _as_nobody():
            while not self._stopped.is_set():
                await self._pause(SWEEP_S * (0.75 + 0.5 * self._jitter()))
                await self._try(self._sweep_leased())

    async def _sweep_leased(self) -> None:
        if self._stopped.is_set() or not self._sources.conversations.serves:
            return
        holder = await self._control.holder(LEASE)
        if holder is not None and holder[0] != self._process_id:
            return
        value = await self._control.take(LEASE, self._process_id, LEASE_TTL_S)
        if value is None:
            return
        # kept between rounds, so that one process goes on: it runs out by itself when that one is gone
        await self.sweep(GRACE_US, lease=value)

    async def sweep(self, grace_us: int = 0, *, lease: int | None = None) -> int:
        """Show every member whose change is older than ``grace_us`` and that no list shows; how many there were."""
        done, after = 0, b""
        while True:
            deadline = self._deadline()

            def call(store: Any, deadline: Deadline, after: bytes = after) -> Any:
                return store.unlisted(PAGE, deadline, after=after)

            page: list[Record] = await self._sources.conversations.read(None, call, deadline)
            old = self._clock.now_us() - grace_us
            waiting = [record for record in page if record.version <= old]
            await self._show_members(waiting)
            done += len(waiting)
            if len(page) < PAGE:
                return done
            after = page[-1].key
            if lease is not None:
                await self._control.keep(LEASE, lease, LEASE_TTL_S)

    async def lag(self) -> Lag:
        """How far the lists are behind now."""

        def call(store: Any, deadline: Deadline) -> Any:
            return store.lag(LAG_MAX, deadline)

        behind, oldest = await self._sources.conversations.read(None, call, self._deadline())
        return lag_of(behind, oldest, self._clock.now_us())

    # --- one change ------------------------------------------------------------------------------------------------

    async def _show_members(self, records: Sequence[Record]) -> None:
        by_conversation: dict[bytes, list[Record]] = {}
        for record in records:
            by_conversation.setdefault(record.routing, []).append(record)
        await self._all(self._show_conversation, [(UUID(bytes=key), mine) for key, mine in by_conversation.items()])

    async def _show_conversation(self, conversation: UUID, records: Sequence[Record]) -> None:
        """Show these members of one conversation, then take their marks off."""
        newest = await self._newest(conversation) if any(not record.deleted for record in records) else None
        shown: list[tuple[UUID, int]] = []
        for record in records:
            member = to_member(record)
            await self._sources.listings.execute(_show(member, newest), self._deadline())
            shown.append((member.user_id, record.version))
            if len(shown) == PAGE or record is records[-1]:
                await self._sources.conversations.execute(Settle(conversation, tuple(shown)), self._deadline())
                shown = []

    async def _show_activity(self, conversation: UUID, newest: UUID) -> None:
        """Show a message to every member. With the membership: its own entry may still be on its way."""
        after: UUID | None = None
        while True:

            def call(store: Any, deadline: Deadline, after: UUID | None = after) -> Any:
                return store.members(conversation, PAGE, deadline, after=after)

            page: list[Member] = await self._sources.conversations.read((conversation.bytes,), call, self._deadline())
            for member in page:
                await self._sources.listings.execute(_show(member, newest), self._deadline())
            if len(page) < PAGE:
                return
            after = page[-1].user_id

    async def _newest(self, conversation: UUID) -> UUID | None:
        def call(store: Any, deadline: Deadline) -> Any:
            return store.history(conversation, 1, deadline, include_deleted=True)

        try:
            found: list[Message] = await self._sources.messages.read((conversation.bytes,), call, self._deadline())
        except DatalayerError as error:
            self._failed(error)  # a list without its newest message is better than none
            return None
        return found[0].id if found else None

    async def _used(self) -> bool:
        """Whether there is any conversation: who uses messages alone pays nothing for lists."""
        now = self._clock.monotonic()
        if now < self._unused_until:
            return False
        try:
            if await self._sources.conversations.route.authority.empty():
                self._unused_until = now + UNUSED_S
                return False
        except DatalayerError as error:
            self._failed(error)  # not known: the lists are tried
        return True

    # --- parts -----------------------------------------------------------------------------------------------------

    async def _all(self, step: Callable[..., Awaitable[None]], of: Iterable[tuple[Any, ...]]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(*arguments: Any) -> None:
            async with room:
                # made no earlier: one that waits here when the layer closes would be a coroutine that nobody awaits
                await self._try(step(*arguments))

        await asyncio.gather(*(one(*arguments) for arguments in of))

    async def _try(self, step: Any) -> None:
        try:
            await step
        except (Closed, LostLease):
            return
        except DatalayerError as error:
            self._failed(error)

    def _failed(self, error: DatalayerError) -> None:
        self.errors += 1
        log.debug("a list is behind: %s", error.message)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    def _deadline(self) -> Deadline:
        return Deadline(self._clock, CALL_S)


@contextlib.contextmanager
def _as_nobody() -> Iterator[None]:
    """A caller of its own: what the projector writes keeps no application's read from a replica, and it needs none."""
    with reading_after(None), reading("primary"):
        yield


def lag_of(behind: int, oldest: int | None, now_us: int) -> Lag:
    """The lag of so many members, the oldest of them at this version."""
    return Lag(behind, 0.0 if oldest is None else max(0.0, (now_us - oldest) / 1e6))


def _show(member: Member, newest: UUID | None) -> Show:
    return Show(
        member.user_id,
        member.conversation_id,
        member.version,
        member.deleted,
        member.role,
        member.joined_at_us,
        member.read_up_to,
        newest,
    )
