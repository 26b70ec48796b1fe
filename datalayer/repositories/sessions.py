"""Sessions: who is logged in."""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from datalayer.domains.sessions import (
    LIFETIME_MAX_US,
    CreateSession,
    RevokeSession,
    RevokeSessions,
    TouchSession,
    is_live,
)
from datalayer.errors import InvalidArgument, NotFound
from datalayer.repositories.arguments import as_attributes, as_limit, deadline_of
from datalayer.routing.consistency import reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datalayer.clock import Clock, Deadline
    from datalayer.repositories.limits import Limits
    from datalayer.routing.router import Router
    from datalayer.stores.base import SessionReads
    from datalayer.types import Session, SessionCut

SECRET_BYTES: Final = 32
_TOKEN_CHARACTERS: Final = (16 + SECRET_BYTES) * 4 // 3
DAY_S: Final = 86_400
TTL_S: Final = 14 * DAY_S
LIFETIME_S: Final = 90 * DAY_S
_Token = tuple[UUID, UUID, bytes]
"""(user, id, proof): what a token says, its secret hashed."""


class Sessions:
    """Create, look up, prolong and revoke sessions. Each method ends by its deadline (default of the settings, 5 s).

    Reads go to the authority, never to a replica: what was revoked is refused from that moment on. A token is in no
    error, log or repr, and stored as a hash alone. Raises besides what is named: Unavailable, DeadlineExceeded (nothing
    was written), OutcomeUnknown (a write may or may not have been applied: every one of them may be repeated),
    InvalidArgument.
    """

    def __init__(self, router: Router, clock: Clock, limits: Limits, *, random_bytes: Callable[[int], bytes]) -> None:
        """``random_bytes``: a source fit for secrets."""
        self._router = router
        self._clock = clock
        self._limits = limits
        self._random_bytes = random_bytes

    async def create(
        self,
        user_id: UUID | str,
        *,
        ttl: float = TTL_S,
        lifetime: float = LIFETIME_S,
        attributes: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Session:
        """A new session; its ``token`` is on the returned one alone, and shown nowhere again.

        It expires ``ttl`` seconds from now unless it is touched, and ends for good after ``lifetime`` seconds, at most
        366 days. After OutcomeUnknown make another one: nobody has the token of the first.
        """
        user, secret = _as_user(user_id), self._random_bytes(SECRET_BYTES)
        _, id, proof = hashed(user, secret)
        mutation = CreateSession(
            user, id, proof, _as_us(ttl, "ttl"), _as_us(lifetime, "lifetime"), as_attributes(attributes)
        )
        made = cast("Session", await self._router.write(mutation, self._deadline(timeout)))
        return replace(made, token=urlsafe_b64encode(user.bytes + secret).decode())

    async def get(self, token: str, *, timeout: float | None = None) -> Session | None:
        """The session of a token; None when it expired, was revoked or never existed, or the token is malformed."""
        said = parse_token(token)
        if said is None:
            return None
        user, id, proof = said

        def call(store: SessionReads, deadline: Deadline) -> Any:
            return store.get(user, id, deadline)

        session: Session | None
        cut: SessionCut | None
        with reading("primary"):
            session, cut = await self._router.read((user.bytes,), call, self._deadline(timeout))
        if session is None or not hmac.compare_digest(session.proof, proof):
            return None
        return session if is_live(session, cut, self._clock.now_us()) else None

    async def touch(self, token: str, *, ttl: float = TTL_S, timeout: float | None = None) -> Session | None:
        """Let a session expire ``ttl`` seconds from now, not later than its end and not earlier than it does already.

        The session as it is then; None where ``get`` gives None.
        """
        said = parse_token(token)
        if said is None:
            return None
        mutation = TouchSession(*said, _as_us(ttl, "ttl"))
        try:
            return cast("Session", await self._router.write(mutation, self._deadline(timeout)))
        except NotFound:
            return None

    async def revoke(self, token: str, *, timeout: float | None = None) -> None:
        """End a session for good: once this has returned, no ``get`` anywhere gives it. Twice is no error.

        In Redis this holds over a failover only for what the promoted replica has (``wait_replicas``), and over a crash
        only for what is on the disk (``appendfsync``).
        """
        said = parse_token(token)
        if said is None:
            raise InvalidArgument("the token of a session is malformed")
        await self._router.write(RevokeSession(*said), self._deadline(timeout))

    async def revoke_session(
        self, user_id: UUID | str, session_id: UUID | str, *, timeout: float | None = None
    ) -> None:
        """As ``revoke``, for one of ``of_user`` whose token nobody here has. Twice, or an unknown one, is no error."""
        mutation = RevokeSession(_as_user(user_id), _as_user(session_id, "session_id"))
        await self._router.write(mutation, self._deadline(timeout))

    async def revoke_all(self, user_id: UUID | str, *, timeout: float | None = None) -> None:
        """End every session of a user that was made before, also those that another process is making now.

        One record, however many there are. Sessions made afterwards are not touched.
        """
        await self._router.write(RevokeSessions(_as_user(user_id)), self._deadline(timeout))

    async def of_user(
        self, user_id: UUID | str, *, limit: int = 100, timeout: float | None = None
    ) -> tuple[Session, ...]:
        """Live sessions among the first ``limit`` (at most 1,000) that a user has, in no particular order."""
        user, size = _as_user(user_id), as_limit(limit)

        def call(store: SessionReads, deadline: Deadline) -> Any:
            return store.of_user(user, size, deadline)

        with reading("primary"):
            found, cut = await self._router.read((user.bytes,), call, self._deadline(timeout))
        now_us = self._clock.now_us()
        return tuple(session for session in found if is_live(session, cut, now_us))

    def _deadline(self, timeout: float | None) -> Deadline:
        return deadline_of(self._clock, timeout, self._limits)


def hashed(user: UUID, secret: bytes) -> _Token:
    """What a store is asked and compared: the halves of the secret's sha256 are the session's id and its proof."""
    digest = hashlib.sha256(secret).digest()
    return user, UUID(bytes=digest[:16]), digest[16:]


def parse_token(token: object) -> _Token | None:
    """What a token says, or None for any text that is none."""
    if not isinstance(token, str) or len(token) != _TOKEN_CHARACTERS or not token.isascii():
        return None
    try:
        raw = urlsafe_b64decode(token)
    except Base64Error:
        return None
    # the decoder takes padding, and skips what is not of its alphabet
    if len(raw) != 16 + SECRET_BYTES or urlsafe_b64encode(raw).decode() != token:
        return None
    return hashed(UUID(bytes=raw[:16]), raw[16:])


def _as_user(value: UUID | str, what: str = "user_id") -> UUID:
    """As ``as_uuid``, without what was passed: it may be a token that got into the wrong place."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise InvalidArgument(f"{what} must be a UUID") from None


def _as_us(seconds: object, what: str) -> int:
    most = LIFETIME_MAX_US // 1_000_000
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= most:
        raise InvalidArgument(f"{what} is {seconds!r}; it must be above 0 and at most {most} seconds")
    return int(seconds * 1_000_000)
