"""The mistakes that unique values over slot groups invite, each as a ``ClaimingWriter`` that makes it."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from uuid import UUID

from datalayer.clock import Deadline
from datalayer.domains.record import Key, Record
from datalayer.domains.users import Swap, next_version
from datalayer.errors import Conflict, DatalayerError, Outcome
from datalayer.routing.claims import ClaimingWriter, Lost

Current = Mapping[Key, Record]


class GivesBackWhatItHeld(ClaimingWriter):
    """Of two changes of one user to one name, the one that fails frees the name of the other."""

    async def _take(self, mine: Sequence[Record], current: Current, deadline: Deadline) -> list[Record]:
        await super()._take(mine, current, deadline)
        return list(mine)


class GivesBackWhatItLost(ClaimingWriter):
    """A claim that another took under the very version that this one would have given it."""

    async def _take(self, mine: Sequence[Record], current: Current, deadline: Deadline) -> list[Record]:
        try:
            return await super()._take(mine, current, deadline)
        except Lost:
            await self._give_back([claim for claim in mine if _free(claim, current)], deadline)
            raise


class GivesBackWhatItMayHaveTaken(ClaimingWriter):
    """A claim whose outcome is unknown may be another's under that version."""

    async def _take(self, mine: Sequence[Record], current: Current, deadline: Deadline) -> list[Record]:
        try:
            return await super()._take(mine, current, deadline)
        except Lost:
            raise
        except DatalayerError:
            await self._give_back([claim for claim in mine if _free(claim, current)], deadline)
            raise


class GivesBackAfterAnUnknownRow(ClaimingWriter):
    """The row may have the name."""

    async def _write_row(self, swap: Swap, fresh: Sequence[Record], deadline: Deadline) -> None:
        try:
            await super()._write_row(swap, fresh, deadline)
        except DatalayerError as error:
            if error.outcome is Outcome.UNKNOWN:
                await self._give_back(fresh, deadline)
            raise


class TakesAnUnknownRowForWritten(ClaimingWriter):
    """And frees the old name, and says so."""

    async def _write_row(self, swap: Swap, fresh: Sequence[Record], deadline: Deadline) -> None:
        try:
            await super()._write_row(swap, fresh, deadline)
        except DatalayerError as error:
            if error.outcome is not Outcome.UNKNOWN:
                raise


class ReadsOldClaimsAfterTheRow(ClaimingWriter):
    """By then the user may have the old name again."""

    async def _write_row(self, swap: Swap, fresh: Sequence[Record], deadline: Deadline) -> None:
        await super()._write_row(swap, fresh, deadline)
        self.owner = swap.record.key

    async def _release(self, claims: Mapping[Record, int], deadline: Deadline) -> list[Record]:
        owner = getattr(self, "owner", b"")
        now = await self._records.read([claim.ident for claim in claims], deadline)
        held = [claim for claim in now.values() if not claim.deleted and claim.fields[0] == owner]
        found = {c._replace(version=next_version(c, self._clock.now_us()), deleted=True): c.version for c in held}
        return await super()._release(found or claims, deadline)


class TakesOrphansAsTheyAre(ClaimingWriter):
    """Neither an absent nor a present owner is kept from finishing."""

    async def _stop(self, owner: UUID, row: Record | None, deadline: Deadline) -> None:
        return


class TakesOrphansOfTheAbsent(ClaimingWriter):
    """A create under way may still write its row."""

    async def _stop(self, owner: UUID, row: Record | None, deadline: Deadline) -> None:
        if row is not None:
            await super()._stop(owner, row, deadline)


class TakesOrphansOfThePresent(ClaimingWriter):
    """A rename under way may still write its row."""

    async def _stop(self, owner: UUID, row: Record | None, deadline: Deadline) -> None:
        if row is None:
            await super()._stop(owner, row, deadline)


class StopsBlindly(ClaimingWriter):
    """That the owner's row has changed meanwhile is not noticed: it may have the name by now."""

    async def _stop(self, owner: UUID, row: Record | None, deadline: Deadline) -> None:
        with suppress(Lost):
            await super()._stop(owner, row, deadline)


class WritesTheRowFirst(ClaimingWriter):
    """Then claims: two rows may have the name."""

    async def _take(self, mine: Sequence[Record], current: Current, deadline: Deadline) -> list[Record]:
        self.mine, self.current = mine, current
        return []

    async def _write_row(self, swap: Swap, fresh: Sequence[Record], deadline: Deadline) -> None:
        await super()._write_row(swap, fresh, deadline)
        await super()._take(self.mine, self.current, deadline)


class ReleasesBeforeTheRow(ClaimingWriter):
    """The row still has the old name."""

    async def _take(self, mine: Sequence[Record], current: Current, deadline: Deadline) -> list[Record]:
        self.current = current
        return await super()._take(mine, current, deadline)

    async def _write_row(self, swap: Swap, fresh: Sequence[Record], deadline: Deadline) -> None:
        now = self._clock.now_us()
        taken = {claim.ident for claim in fresh}
        old = [
            claim
            for claim in self.current.values()
            if claim.kind == "claim" and claim.fields[0] == swap.record.key and claim.ident not in taken
        ]
        await self._release({c._replace(version=next_version(c, now), deleted=True): c.version for c in old}, deadline)
        await super()._write_row(swap, fresh, deadline)


class TrustsItsOwnClaims(ClaimingWriter):
    """A claim that this user has already is not taken again, so whoever took it may give it back."""

    async def _take(self, mine: Sequence[Record], current: Current, deadline: Deadline) -> list[Record]:
        return await super()._take([claim for claim in mine if _free(claim, current)], current, deadline)


class WritesOverAnyRow(ClaimingWriter):
    """The row is swapped as it is now, not as it was when the claims were chosen."""

    async def _write_row(self, swap: Swap, fresh: Sequence[Record], deadline: Deadline) -> None:
        row = (await self._records.read([swap.record.ident], deadline)).get(swap.record.ident)
        version = next_version(row, swap.record.version)
        changed = swap.record._replace(version=version)
        await super()._write_row(Swap(changed, None if row is None else row.version), fresh, deadline)


class TakesAllAtOnce(ClaimingWriter):
    """Each of two gets one of the values, and both are refused the other."""

    async def _take(self, mine: Sequence[Record], current: Current, deadline: Deadline) -> list[Record]:
        one_by_one = super()._take
        taken = await asyncio.gather(*(one_by_one([c], current, deadline) for c in mine), return_exceptions=True)
        fresh = [claim for one in taken if not isinstance(one, BaseException) for claim in one]
        for one in taken:
            if isinstance(one, BaseException):
                await self._give_back(fresh, deadline)
                raise one
        return fresh


class ReturnsWhatItCouldNotRelease(ClaimingWriter):
    """A copy would free a claim that is taken."""

    async def _release(self, claims: Mapping[Record, int], deadline: Deadline) -> list[Record]:
        await super()._release(claims, deadline)
        return list(claims)


class KeepsWhatItTook(ClaimingWriter):
    """Nobody may have a name for a minute because somebody was refused his address."""

    async def _give_back(self, fresh: Sequence[Record], deadline: Deadline) -> None:
        return


class HoldsNobodyForBusy(ClaimingWriter):
    """Whoever is slower than another is held for dead."""

    async def is_orphan(self, claim: Record, deadline: Deadline) -> bool:
        return await super().is_orphan(claim._replace(version=0), deadline)


class SweepsBlindly(ClaimingWriter):
    """The claim is released at whatever version it has by now."""

    async def sweep(self, claim: Record, deadline: Deadline) -> bool:
        try:
            if claim.deleted or not await self.is_orphan(claim, deadline):
                return False
        except Lost:
            return False
        now = (await self._records.read([claim.ident], deadline))[claim.ident]
        freed = now._replace(version=next_version(now, self._clock.now_us()), deleted=True)
        with suppress(Conflict):
            await self._records.swap(Swap(freed, now.version), deadline)
        return True


def _free(claim: Record, current: Current) -> bool:
    seen = current.get(claim.ident)
    return seen is None or seen.deleted


MUTANTS: tuple[type[ClaimingWriter], ...] = tuple(
    mutant for mutant in list(globals().values()) if isinstance(mutant, type) and ClaimingWriter in mutant.__bases__
)
