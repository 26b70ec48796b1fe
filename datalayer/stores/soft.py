"""The port of soft domains: presence and typing, at one place."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, runtime_checkable

from datalayer.errors import OutcomeUnknown, Overloaded, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from uuid import UUID

    from datalayer.clock import Deadline
    from datalayer.domains.soft import Beat, Entry


RETRY_S: Final = 0.05
RETRY_MAX_S: Final = 0.4


class SoftPage(NamedTuple):
    """A page of a scan, and the token to go on after; None at the end."""

    beats: list[Beat]
    after: str | None


class Ear(Protocol):
    """Who listens to the changes of some keys."""

    @property
    def keys(self) -> Collection[UUID]:
        """What is listened to now."""
        ...

    def hint(self, key: UUID) -> None:
        """Something may have changed: look. Called for keys of ``keys``, perhaps of others too."""
        ...

    def connected(self) -> None:
        """From now on hints come; what happened before must be looked up."""
        ...

    async def changed(self) -> None:
        """Return once ``keys`` has grown since the last call returned: what grows between two calls is not missed."""
        ...


@runtime_checkable
class SoftStore(Protocol):
    """One soft domain at one place."""

    reach: Literal["process", "network"]
    """``process``: each process has a place of its own, which nobody else can see."""
    pushes: bool
    """Whether ``listen`` gives hints; otherwise watchers read again and again."""

    async def beat(self, beat: Beat, deadline: Deadline) -> None:
        """Keep a beat unless a newer one of its item is known (`datalayer.domains.soft.admit`). Idempotent.

        What is kept here is kept here alone: while a domain moves, a leave that the side which rules next has missed
        counts there only from when it is repeated, or its beat's lifetime ends.

        Unavailable (not written), OutcomeUnknown.
        """
        ...

    async def ends(self, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, int | None]:
        """Of each key when its last item ends or has ended (microseconds; 0: not known, or left), in one round trip a node.

        None where its node did not answer: nothing is known of that key. Never raises for a node.
        """
        ...

    async def entries(self, keys: Sequence[UUID], deadline: Deadline) -> dict[UUID, Entry | None]:
        """All that is kept of each key; None where its node did not answer."""
        ...

    async def apply(self, beats: Sequence[Beat]) -> None:
        """Keep many beats, as ``beat`` does. Idempotent; a copy of another place lands so."""
        ...

    async def scan(self, after: str | None, limit: int) -> SoftPage:
        """About ``limit`` beats, each key at least once while it exists from the first page to the last."""
        ...

    async def listen(self, ear: Ear) -> None:
        """Give hints until the connection ends (returns or raises) or the caller cancels. Only where ``pushes``."""
        ...

    async def create(self) -> None:
        """Make the place. Idempotent."""
        ...

    async def drop(self) -> None:
        """Remove the place with all that is in it. Idempotent."""
        ...

    async def empty(self) -> bool:
        """Whether nothing is kept here (a missing place raises SchemaBehind)."""
        ...


async def until_confirmed(
    send: Callable[[], Awaitable[None]], deadline: Deadline, failed: Unavailable | OutcomeUnknown | None = None
) -> None:
    """Send what may be sent any number of times, until it is confirmed or its time is up; then the last error is raised.

    ``failed``: how the first try ended, where the caller has made it.
    """
    pause = RETRY_S
    while True:
        if failed is not None:
            if isinstance(failed, Overloaded) or deadline.remaining() <= pause:
                raise failed
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)
        try:
            await send()
        except (Unavailable, OutcomeUnknown) as error:
            failed = error
        else:
            return
