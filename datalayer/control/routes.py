"""Routes: epochs per domain, and the news counter by which processes notice a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select, true, update
from sqlalchemy.dialects.postgresql import insert  # its ON CONFLICT compiles for SQLite as well

from datalayer.control.audit import INSERT_AUDIT
from datalayer.control.migrations import SET_PHASE
from datalayer.control.news import SqlNews
from datalayer.control.schema import ROUTES, STATE
from datalayer.control.statements import SqlPart, number, text
from datalayer.errors import PreconditionFailed, SchemaAhead
from datalayer.routing.route import Phase, Place, Routing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.stores.base import Token
    from datalayer.stores.sql.database import Row

_COLUMNS: Final = (
    ROUTES.c.domain,
    ROUTES.c.epoch,
    ROUTES.c.phase,
    ROUTES.c.source_backend,
    ROUTES.c.source_attempt,
    ROUTES.c.target_backend,
    ROUTES.c.target_attempt,
    ROUTES.c.attempt,
    ROUTES.c.canary_pct,
    ROUTES.c.floor,
)
_READ: Final = select(STATE.c.news, *_COLUMNS).select_from(STATE.outerjoin(ROUTES, true()))
_FIRST: Final = (
    insert(ROUTES)
    .values(
        domain=text("domain"),
        epoch=1,
        phase=Phase.SOURCE.value,
        source_backend=text("source_backend"),
        source_attempt=number("source_attempt"),
        attempt=0,
        canary_pct=100,
        floor=0,
    )
    .on_conflict_do_nothing()
    .returning(ROUTES.c.domain)
)
_PUBLISH: Final = (
    update(ROUTES)
    .where(ROUTES.c.domain == text("domain"))
    .values(
        epoch=ROUTES.c.epoch + 1,
        phase=text("phase"),
        source_backend=text("source_backend"),
        source_attempt=number("source_attempt"),
        target_backend=text("target_backend"),
        target_attempt=number("target_attempt"),
        attempt=number("attempt"),
        canary_pct=number("canary_pct"),
        floor=number("floor"),
    )
    .returning(*_COLUMNS)
)
RAISE_NEWS: Final = update(STATE).where(STATE.c.id == 1).values(news=STATE.c.news + 1).returning(STATE.c.news)


class SqlRoutes(SqlNews, SqlPart):
    """The routing of every domain."""

    async def ensure_routes(self, first: Mapping[str, Place]) -> None:
        """Publish the first placement of each domain that has none yet."""
        _, known = await self.routings()
        missing = {domain: place for domain, place in first.items() if domain not in known}
        if not missing:
            return
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            new = False
            for domain, place in sorted(missing.items()):
                values = {"domain": domain, "source_backend": place.backend, "source_attempt": place.attempt}
                new = bool(await self._do(transaction, _FIRST, **values)) or new
            if new:
                await self._do(transaction, RAISE_NEWS)
                await self._announce(transaction)
        self._stir()

    async def routings(self) -> tuple[int, dict[str, Routing]]:
        """(news, routing by domain), read together."""
        rows = await self._fetch(_READ)
        if not rows:
            raise PreconditionFailed("the control store is empty", hint="open it once with create=True")
        return int(rows[0][0]), {row[1]: _routing(row[1:]) for row in rows if row[1] is not None}

    async def publish(self, token: Token, routing: Routing, *, actor: str) -> Routing:
        """Make this the routing of its domain at the next epoch; LostLease when the token is not the newest."""
        values = _values(routing)
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            await self._hold(transaction, token)
            rows = await self._do(transaction, _PUBLISH, **values)
            if not rows:
                raise PreconditionFailed(f"{routing.domain} has no routing to replace")
            published = _routing(rows[0])
            await self._do(transaction, SET_PHASE, id=token.migration, phase=routing.phase.value)
            detail = f"{routing.domain} epoch {published.epoch} phase {published.phase}"
            await self._do(transaction, INSERT_AUDIT, actor=actor, action="publish", detail=detail)
            await self._do(transaction, RAISE_NEWS)
            await self._announce(transaction)
        self._stir()
        return published


def _values(routing: Routing) -> dict[str, Any]:
    target = routing.target
    return {
        "domain": routing.domain,
        "phase": routing.phase.value,
        "source_backend": routing.source.backend,
        "source_attempt": routing.source.attempt,
        "target_backend": None if target is None else target.backend,
        "target_attempt": None if target is None else target.attempt,
        "attempt": routing.attempt,
        "canary_pct": routing.canary_pct,
        "floor": routing.floor,
    }


def _routing(row: Row) -> Routing:
    domain, epoch, phase, source, source_attempt, target, target_attempt, attempt, canary_pct, floor = row
    return Routing(
        domain,
        epoch,
        known_phase(phase),
        Place(source, source_attempt),
        None if target is None else Place(target, target_attempt),
        attempt,
        canary_pct,
        floor,
    )


def known_phase(value: str) -> Phase:
    """The phase of this name. An unknown one is never guessed at (SchemaAhead)."""
    try:
        return Phase(value)
    except ValueError:
        message = f"the control store holds a phase {value!r} that this version of datalayer does not know"
        raise SchemaAhead(message, hint="upgrade datalayer") from None
