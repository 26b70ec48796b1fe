"""Who is typing where."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from datalayer.domains.soft import Beat
from datalayer.errors import Unavailable
from datalayer.repositories.arguments import as_uuid, deadline_of
from datalayer.repositories.presence import Versions, as_ttl

if TYPE_CHECKING:
    from datalayer.clock import Clock, Deadline
    from datalayer.repositories.limits import Limits
    from datalayer.routing.soft import SoftSides


class Typing:
    """Users who are typing in a conversation. Each method ends by its deadline (default of the settings, 5 s).

    Unavailable or OutcomeUnknown when the store does not answer; the next call makes it good.
    """

    def __init__(self, sides: SoftSides, clock: Clock, limits: Limits) -> None:
        self._sides = sides
        self._clock = clock
        self._limits = limits
        self._versions = Versions(clock)

    async def start(
        self, conversation_id: UUID | str, user_id: UUID | str, *, ttl: float = 6.0, timeout: float | None = None
    ) -> None:
        """The user types in the conversation, for ``ttl`` seconds (1 to 120) unless told again. Idempotent."""
        await self._put(conversation_id, user_id, as_ttl(ttl), timeout)

    async def stop(self, conversation_id: UUID | str, user_id: UUID | str, *, timeout: float | None = None) -> None:
        """The user types no more; a start that was given before counts no more. Idempotent."""
        await self._put(conversation_id, user_id, None, timeout)

    async def who(self, conversation_id: UUID | str, *, timeout: float | None = None) -> tuple[UUID, ...]:
        """Who types there now, who began or went on last first (at most 100)."""
        conversation = as_uuid(conversation_id, "conversation_id")
        entry = (await self._sides.entries([conversation], self._deadline(timeout)))[conversation]
        if entry is None:
            raise Unavailable(f"who types in {conversation} is not known: the store does not answer")
        now = self._clock.now_us()
        alive = sorted((beat for beat in entry if beat.expires_us > now), key=lambda beat: beat.version, reverse=True)
        return tuple(UUID(hex=beat.item) for beat in alive)

    async def _put(
        self, conversation_id: UUID | str, user_id: UUID | str, lifetime_us: int | None, timeout: float | None
    ) -> None:
        conversation, user = as_uuid(conversation_id, "conversation_id"), as_uuid(user_id, "user_id")
        version = self._versions.next()
        end = 0 if lifetime_us is None else version + lifetime_us
        await self._sides.put(Beat(conversation, user.hex, version, end), self._deadline(timeout))

    def _deadline(self, timeout: float | None) -> Deadline:
        return deadline_of(self._clock, timeout, self._limits)
