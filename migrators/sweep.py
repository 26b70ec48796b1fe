"""The sweep: frees claims that no user has.

A change of a user over several slot groups that died half way leaves a claim behind (routing/claims.py). Whoever wants
the value frees it then; a sweep frees all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from datalayer.clock import Deadline
from datalayer.domains.users import claim_keys, to_user
from datalayer.errors import PreconditionFailed
from datalayer.routing.claims import ClaimingWriter
from datalayer.routing.route import LEASE_BINDS
from datalayer.routing.together import each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.domains.record import Key, Record
    from datalayer.domains.users import Swap
    from datalayer.migrators.options import Failpoints
    from datalayer.routing.places import Places

PAGE: Final = 1000
CALL_S: Final = 30.0


@dataclass(slots=True)
class Swept:
    """Claims looked at, orphans freed, and orphans too young to judge."""

    claims: int = 0
    freed: int = 0
    young: int = 0


class _AtAuthority:
    """``claims.Records`` at the authority of the users as it is now; a fence or an old route refuses."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.store = places.store("users", places.routing_of("users").authority)

    async def read(self, keys: Sequence[Key], deadline: Deadline) -> dict[Key, Record]:
        del deadline
        found: dict[Key, Record] = await self.store.fetch(keys)
        return found

    async def swap(self, swap: Swap, deadline: Deadline) -> Record:
        await self.places.group_store(self.store, swap.record).execute(swap, deadline)
        return swap.record


async def sweep_claims(places: Places, failpoints: Failpoints) -> Swept:
    """Free every orphan of the users' claims, where users are served now. Repeating it is harmless.

    PreconditionFailed in the middle of a cut-over.
    """
    _, routings = await places.control.routings()
    places.learn(routings)
    if "users" not in routings:
        raise PreconditionFailed("users have no place yet", hint="open the application once")
    routing = routings["users"]
    if routing.phase in LEASE_BINDS:
        raise PreconditionFailed(
            f"users are being cut over: the phase is {routing.phase}", hint="sweep when the migration has gone on"
        )
    await places.ensure_open(routing.authority)
    records = _AtAuthority(places)
    writer = ClaimingWriter(records, places.clock)
    swept = Swept()
    for range_ in await records.store.plan_scan(1):
        after: str | None = None
        while True:
            page = await records.store.scan(range_, after, PAGE)
            await _sweep_page(records, writer, [r for r in page.records if r.kind == "claim" and not r.deleted], swept)
            await failpoints.reach("sweep.page")
            if page.done:
                break
            after = page.after
    return swept


async def _sweep_page(records: _AtAuthority, writer: ClaimingWriter, claims: Sequence[Record], swept: Swept) -> None:
    swept.claims += len(claims)
    owners = {("user", bytes(claim.fields[0])) for claim in claims}  # type: ignore[arg-type]
    rows = await records.read(list(owners), Deadline(records.places.clock, CALL_S))
    held = {
        UUID(bytes=key[1]): claim_keys((u := to_user(row)).username, u.email)
        for key, row in rows.items()
        if not row.deleted
    }
    suspects = [c for c in claims if c.key not in held.get(UUID(bytes=bytes(c.fields[0])), ())]  # type: ignore[arg-type]

    async def judge(claim: Record) -> bool:
        return await writer.sweep(claim, Deadline(records.places.clock, CALL_S))

    freed = sum(await each(suspects, judge))
    swept.freed += freed
    swept.young += len(suspects) - freed
