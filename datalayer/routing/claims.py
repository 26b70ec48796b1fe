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
    from collections.abc import Sequence

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
        user_key: Key = ("user", mutation.id.bytes)
        keys = [user_key]
        if isinstance(mutation, CreateUser):
            keys += [("claim", key) for key in claim_keys(mutation.username, mutation.email)]
        current = await self._records.read(keys, deadline)
        row = current.get(user_key)
        stored = None if row is None else to_user(row)
        if (stored is None or stored.deleted) and not isinstance(mutation, CreateUser):
            return Executed(decide(mutation, current, self._clock.now_us())[0], ())
        if isinstance(mutation, CreateUser):
            if stored is not None:
                return Executed(decide(mutation, current, self._clock.now_us())[0], ())
        else:
            check_expected(mutation, stored)  # type: ignore[arg-type]
        take, release = wanted_claims(mutation, stored)
        if stored is not None:
            current |= await self._records.read([("claim", key) for key in (*take, *release)], deadline)
        for key in take:
            await self._free(current, key, mutation.id, deadline)
        user, records = decide(mutation, current, self._clock.now_us())
        mine = [r for r in records if r.kind == "claim" and not r.deleted]
        # Given back if the row cannot be written: but not what this user held already, for another change of the same
        # user may be about to write it into the row, trusting that same claim.
        fresh = [r for r in mine if r.ident not in current or current[r.ident].deleted]
        await self._take(mine, fresh, current, deadline)
        changed = next(r for r in records if r.kind == "user")
        try:
            await self._records.swap(Swap(changed, None if row is None else row.version), deadline)
        except DatalayerError as error:
            # Of an unknown outcome: the row may have the names. Its claims stay, and are judged by the row.
            if error.outcome is Outcome.NOT_APPLIED:
                await self._release(fresh, deadline)
            if isinstance(error, Conflict):
                raise Lost(error) from error
            raise
        freed = [r for r in records if r.kind == "claim" and r.deleted]
        await self._swap_claims(freed, {r.ident: current[r.ident].version for r in freed}, deadline)
        return Executed(user, records)

    async def _take(
        self, mine: Sequence[Record], fresh: Sequence[Record], current: dict[Key, Record], deadline: Deadline
    ) -> None:
        swaps = [Swap(r, current[r.ident].version if r.ident in current else None) for r in mine]
        answers = await asyncio.gather(*(self._records.swap(s, deadline) for s in swaps), return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        if not failed:
            return
        # Also those of an unknown outcome: the row was not touched, so nobody has the names yet.
        await self._release(fresh, deadline)
        first = next((error for error in failed if not isinstance(error, Conflict)), failed[0])
        if isinstance(first, Conflict):
            raise Lost(first) from first
        if isinstance(first, DatalayerError) and first.outcome is Outcome.UNKNOWN:
            raise Unavailable(f"a unique value could not be claimed: {first.message}; nothing was written") from first
        raise first

    async def _release(self, mine: Sequence[Record], deadline: Deadline) -> None:
        """Give back claims that were just taken, for a row that was not written."""
        now = self._clock.now_us()
        given_back = [r._replace(version=max(r.version + 2, now), deleted=True) for r in mine]
        await self._swap_claims(given_back, {r.ident: r.version for r in mine}, deadline)

    async def _swap_claims(self, claims: Sequence[Record], seen: dict[Key, int], deadline: Deadline) -> None:
        async def swap(claim: Record) -> None:
            with suppress(Conflict):  # taken again meanwhile, or never taken
                await self._records.swap(Swap(claim, seen[claim.ident]), deadline)

        for answer in await asyncio.gather(*(swap(claim) for claim in claims), return_exceptions=True):
            if isinstance(answer, DatalayerError):
                self.left_behind += 1
            elif isinstance(answer, BaseException):
                raise answer

    # --- orphans ---------------------------------------------------------------------------------------------------

    async def _free(self, current: dict[Key, Record], key: bytes, wants: UUID, deadline: Deadline) -> None:
        """Leave in ``current`` a claim that ``wants`` may take, or raise AlreadyExists."""
        claim = current.get(("claim", key))
        if claim is None or claim.deleted or claim.fields[0] == wants.bytes:
            return
        if not await self.is_orphan(claim, deadline):
            raise taken(key)
        current["claim", key] = claim._replace(deleted=True)

    async def is_orphan(self, claim: Record, deadline: Deadline) -> bool:
        """Whether nobody has this claim's value, and no change under way can come to have it any more.

        True means that the claim may be swapped at the version seen. A young orphan's change is left alone: False.
        """
        owner = UUID(bytes=bytes(claim.fields[0]))  # type: ignore[arg-type]
        row = (await self._records.read([("user", owner.bytes)], deadline)).get(("user", owner.bytes))
        if row is not None:
            user = to_user(row)
            if user.deleted:
                return True  # for good: nothing can be under way
            if claim.key in claim_keys(user.username, user.email):
                return False
        now = self._clock.now_us()
        if now - claim.version < GRACE_US:
            return False
        stop = given_up(owner, now) if row is None else row._replace(version=next_version(row, now))
        try:
            await self._records.swap(Swap(stop, None if row is None else row.version), deadline)
        except Conflict:
            return False
        return True

    async def sweep(self, claim: Record, deadline: Deadline) -> bool:
        """Release a claim if it is an orphan; whether it was."""
        if claim.deleted or not await self.is_orphan(claim, deadline):
            return False
        freed = claim._replace(version=next_version(claim, self._clock.now_us()), deleted=True)
        try:
            await self._records.swap(Swap(freed, claim.version), deadline)
        except Conflict:
            return False
        return True


class Lost(Conflict):
    """Another change came first: begin again."""

    def __init__(self, cause: Conflict) -> None:
        super().__init__(cause.message, current_version=cause.current_version)
