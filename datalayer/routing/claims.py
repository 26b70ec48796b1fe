"""Users whose row and unique values lie in different slot groups: one change as a chain of single-record swaps.

There is no transaction over groups and no two-phase commit. The user's row is the truth about who has a name; a claim
is the right to write it into a row. So: claims first, then the row, then old claims are released - and each step
replaces exactly what was seen before (``Swap``). A process may die between any two of them:

- claim taken, row never written: an orphan. Whoever wants the name next first changes the row the orphan's owner was
  going to write (an absent one gets a tombstone with the owner's id, a present one a higher version), so that the
  change under way cannot finish, and only then takes the claim. To lock the row instead gave two owners: there is no
  row to lock.
- row written, old claim not released: the claim's owner no longer has the name in the row. Same treatment.

An orphan younger than ``GRACE_US`` counts as taken: its change may well be under way. Time decides only that politeness;
what keeps names unique is the order of the swaps. Old claims are read before the row is swapped, so that a release that
comes late cannot hit a claim that was taken again meanwhile. (PROTOCOL "Unique values".)

Versions of a claim rise with each swap, but two processes that saw the same claim may choose the same next version: in
one microsecond, or whenever their clocks are behind the claim's version. So a claim is given back only by who knows
that he took it. One whose swap was lost, or whose outcome is unknown, may be another's under that very version.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

from datalayer.domains.users import (
    CreateUser,
    Swap,
    UserMutation,
    check_expected,
    claim_keys,
    decide,
    given_up,
    next_version,
    taken,
    to_user,
    wanted_claims,
)
from datalayer.errors import Conflict, DatalayerError, Outcome, Unavailable
from datalayer.stores.base import Executed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.clock import Clock, Deadline
    from datalayer.domains.record import Key, Record

GRACE_US: Final = 60_000_000
"""Twice the longest deadline: no change begun with a claim this old is still under way, but for a sleeper."""
RACES_MAX: Final = 16


class Records(Protocol):
    """Single records wherever they lie, read and swapped at their authority."""

    async def read(self, keys: Sequence[Key], deadline: Deadline) -> dict[Key, Record]:
        """Those that exist, tombstones too."""
        ...

    async def swap(self, swap: Swap, deadline: Deadline) -> Record:
        """Run one swap; Conflict when something else is stored."""
        ...


class ClaimingWriter:
    """Executes the mutations of users over several groups. Stateless but for counters."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self.left_behind = 0
        """Claims that could not be released: the next who wants the name, or a sweep, frees them."""

    async def execute(self, mutation: UserMutation, deadline: Deadline) -> Executed:
        """As ``Transactional.execute``. After a crash at any step: the row is as before or as after, never between."""
        lost: Conflict | None = None
        for _ in range(RACES_MAX):
            if lost is not None and deadline.remaining() <= 0:
                break
            try:
                return await self._once(mutation, deadline)
            except Lost as error:
                lost = error
        raise Unavailable(f"user {mutation.id} kept changing under this write") from lost

    async def _once(self, mutation: UserMutation, deadline: Deadline) -> Executed:
        creates = isinstance(mutation, CreateUser)
        user_key: Key = ("user", mutation.id.bytes)
        claims = claim_keys(mutation.username, mutation.email) if isinstance(mutation, CreateUser) else ()
        current = await self._records.read([user_key, *(("claim", key) for key in claims)], deadline)
        row = current.get(user_key)
        stored = None if row is None else to_user(row)
        nothing_to_do = stored is not None if creates else stored is None or stored.deleted
        if nothing_to_do:
            return Executed(decide(mutation, current, self._clock.now_us())[0], ())
        take, release = wanted_claims(mutation, stored)
        if not isinstance(mutation, CreateUser):
            assert stored is not None, "a user that is not created here exists"
            check_expected(mutation, stored)
            current |= await self._records.read([("claim", key) for key in (*take, *release)], deadline)
        for key in take:
            await self._free(current, key, mutation, deadline)
        user, (changed, *others) = decide(mutation, current, self._clock.now_us())
        mine = [claim for claim in others if not claim.deleted]
        fresh = await self._take(mine, current, deadline)
        await self._write_row(Swap(changed, None if row is None else row.version), fresh, deadline)
        old = [claim for claim in others if claim.deleted]
        freed = await self._release({claim: current[claim.ident].version for claim in old}, deadline)
        # Only what is stored: a release that came too late must not reach a copy.
        return Executed(user, (changed, *mine, *freed))

    async def _take(self, mine: Sequence[Record], current: Mapping[Key, Record], deadline: Deadline) -> list[Record]:
        """Take claims; those that this user did not hold already. All or none, but for an unknown outcome.

        One after the other, so that of two who want the same values one gets them all: at once, each could get one of
        them and both be refused the other. A claim of one's own is taken again, at a higher version, for another
        change of the same user may be about to give it back.
        """
        fresh: list[Record] = []
        for claim in mine:
            seen = current.get(claim.ident)
            try:
                await self._records.swap(Swap(claim, None if seen is None else seen.version), deadline)
            except DatalayerError as error:
                await self._give_back(fresh, deadline)
                if isinstance(error, Conflict):
                    raise Lost(error) from error
                if error.outcome is Outcome.UNKNOWN:
                    msg = f"a unique value could not be claimed: {error.message}; nothing was written"
                    raise Unavailable(msg) from error
                raise
            if seen is None or seen.deleted:
                fresh.append(claim)
        return fresh

    async def _write_row(self, swap: Swap, fresh: Sequence[Record], deadline: Deadline) -> None:
        try:
            await self._records.swap(swap, deadline)
        except DatalayerError as error:
            # Of an unknown outcome: the row may have the names. Its claims stay, and are judged by the row.
            if error.outcome is Outcome.NOT_APPLIED:
                await self._give_back(fresh, deadline)
            if isinstance(error, Conflict):
                raise Lost(error) from error
            raise

    async def _give_back(self, fresh: Sequence[Record], deadline: Deadline) -> None:
        """Release claims that were just taken, for a row that was not written.

        Not what this user held already: another change of the same user may be about to write it into the row,
        trusting that same claim.
        """
        now = self._clock.now_us()
        released = {claim._replace(version=next_version(claim, now), deleted=True): claim.version for claim in fresh}
        await self._release(released, deadline)

    async def _release(self, claims: Mapping[Record, int], deadline: Deadline) -> list[Record]:
        """Release claims, each at the version that was seen; those that were released."""

        async def swap(claim: Record, seen: int) -> Record | None:
            with suppress(Conflict):  # taken again meanwhile
                return await self._records.swap(Swap(claim, seen), deadline)
            return None

        released = []
        answers = await asyncio.gather(*(swap(*one) for one in claims.items()), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, DatalayerError):
                self.left_behind += 1
            elif isinstance(answer, BaseException):
                raise answer
            elif answer is not None:
                released.append(answer)
        return released

    # --- orphans ---------------------------------------------------------------------------------------------------

    async def _free(self, current: dict[Key, Record], key: bytes, wants: UserMutation, deadline: Deadline) -> None:
        """Leave in ``current`` a claim that ``wants`` may take, or raise AlreadyExists."""
        claim = current.get(("claim", key))
        if claim is None or claim.deleted or claim.fields[0] == wants.id.bytes:
            return
        if not await self.is_orphan(claim, deadline):
            raise taken(key, wants)
        current["claim", key] = claim._replace(deleted=True)

    async def is_orphan(self, claim: Record, deadline: Deadline) -> bool:
        """Whether nobody has this claim's value, and no change under way can come to have it any more.

        True means that the claim may be swapped at the version seen. A young orphan's change is left alone: False.
        Lost when its owner changed meanwhile.
        """
        owner = UUID(bytes=bytes(claim.fields[0]))  # type: ignore[arg-type]
        row = (await self._records.read([("user", owner.bytes)], deadline)).get(("user", owner.bytes))
        if row is not None:
            user = to_user(row)
            if user.deleted:
                return True  # for good: nothing can be under way
            if claim.key in claim_keys(user.username, user.email):
                return False
        if self._clock.now_us() - claim.version < GRACE_US:
            return False
        await self._stop(owner, row, deadline)
        return True

    async def _stop(self, owner: UUID, row: Record | None, deadline: Deadline) -> None:
        """Change the row, so that no change of it that is under way can finish."""
        now = self._clock.now_us()
        stop = given_up(owner, now) if row is None else row._replace(version=next_version(row, now))
        try:
            await self._records.swap(Swap(stop, None if row is None else row.version), deadline)
        except Conflict as error:
            raise Lost(error) from error

    async def sweep(self, claim: Record, deadline: Deadline) -> bool:
        """Release a claim if it is an orphan; whether it was."""
        try:
            if claim.deleted or not await self.is_orphan(claim, deadline):
                return False
            freed = claim._replace(version=next_version(claim, self._clock.now_us()), deleted=True)
            await self._records.swap(Swap(freed, claim.version), deadline)
        except Conflict:
            return False
        return True


class Lost(Conflict):
    """Another change came first: begin again."""

    def __init__(self, cause: Conflict) -> None:
        super().__init__(cause.message, current_version=cause.current_version)
