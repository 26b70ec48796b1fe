"""Leases with fencing tokens. A token is never used twice: a lease that was given back keeps its row and number."""

from __future__ import annotations

from typing import Final

from sqlalchemy import case, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from datalayer.control.schema import LEASES
from datalayer.control.statements import SqlPart, StoreClock, number, text
from datalayer.errors import LostLease

_NOW: Final = StoreClock()
_UNTIL: Final = StoreClock() + number("ttl_us")
_NEW: Final = insert(LEASES).values(name=text("name"), token=1, holder=text("holder"), until_us=_UNTIL)
_OWN: Final = (LEASES.c.holder == text("holder")) & (LEASES.c.until_us > _NOW)
_TAKE: Final = _NEW.on_conflict_do_update(
    index_elements=[LEASES.c.name],
    set_={
        "token": case((_OWN, LEASES.c.token), else_=LEASES.c.token + 1),
        "holder": _NEW.excluded.holder,
        "until_us": _NEW.excluded.until_us,
    },
    where=or_(LEASES.c.holder == text("holder"), LEASES.c.until_us <= _NOW),
).returning(LEASES.c.token)
_MINE: Final = (LEASES.c.name == text("name")) & (LEASES.c.token == number("token")) & (LEASES.c.holder != "")
_KEEP: Final = update(LEASES).where(_MINE).values(until_us=_UNTIL).returning(LEASES.c.token)
_RELEASE: Final = update(LEASES).where(_MINE).values(holder="", until_us=0)
_HOLDER: Final = select(LEASES.c.holder, LEASES.c.until_us - _NOW).where(
    LEASES.c.name == text("name"), LEASES.c.until_us > _NOW
)


class SqlLeases(SqlPart):
    """Each call is one statement, so two that race are ordered by the row."""

    async def take(self, name: str, holder: str, ttl_s: float) -> int | None:
        """A new, higher token, or None while somebody else's lease lives.

        A holder that takes its own live lease again gets the same token, prolonged: a repeat after a lost reply.
        """
        assert holder, "a lease has a holder"
        rows = await self._run(_TAKE, name=name, holder=holder, ttl_us=_us(ttl_s))
        return int(rows[0][0]) if rows else None

    async def keep(self, name: str, token: int, ttl_s: float) -> None:
        """Prolong; LostLease when it went to somebody else. One that ran out, but that nobody took, lives again."""
        if not await self._run(_KEEP, name=name, token=token, ttl_us=_us(ttl_s)):
            raise LostLease(f"the lease {name!r} went to somebody else")

    async def release(self, name: str, token: int) -> None:
        """Give back; no error when it is lost already. The token is refused from now on."""
        await self._run(_RELEASE, name=name, token=token)

    async def holder(self, name: str) -> tuple[str, float] | None:
        """(holder, seconds left) of a live lease."""
        rows = await self._fetch(_HOLDER, name=name)
        return (rows[0][0], rows[0][1] / 1e6) if rows else None


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
