"""Migrations and the steps of their coordinators. Whatever a coordinator writes here compares its fencing token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, insert, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from datalayer.control.audit import INSERT_AUDIT
from datalayer.control.base import Migration, Step, coordinator_lease
from datalayer.control.rules import already_migrating, changed, lost, options_text, rivals, with_options
from datalayer.control.schema import ATTEMPTS, LEASES, MIGRATIONS, STEPS
from datalayer.control.statements import SqlPart, StoreClock, number, text
from datalayer.errors import NotFound
from datalayer.routing.route import Phase, Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.control.base import StepState
    from datalayer.stores.base import Token
    from datalayer.stores.sql.database import Row, SqlTransaction

_NOW: Final = StoreClock()
_COLUMNS: Final = (
    MIGRATIONS.c.id,
    MIGRATIONS.c.domain,
    MIGRATIONS.c.attempt,
    MIGRATIONS.c.source_backend,
    MIGRATIONS.c.source_attempt,
    MIGRATIONS.c.target_backend,
    MIGRATIONS.c.target_attempt,
    MIGRATIONS.c.phase,
    MIGRATIONS.c.milestones,
    MIGRATIONS.c.options,
    MIGRATIONS.c.flips,
    MIGRATIONS.c.started_us,
    MIGRATIONS.c.updated_us,
    MIGRATIONS.c.paused,
)
_UNFINISHED: Final = select(MIGRATIONS.c.id).where(
    or_(
        MIGRATIONS.c.domain == text("domain"),
        and_(MIGRATIONS.c.domain == text("base"), MIGRATIONS.c.phase != Phase.TARGET.value),
        MIGRATIONS.c.domain.like(text("below")),
    ),
    MIGRATIONS.c.finished == 0,
)
_INSERT: Final = (
    insert(MIGRATIONS)
    .values(
        id=text("id"),
        domain=text("domain"),
        attempt=number("attempt"),
        source_backend=text("source_backend"),
        source_attempt=number("source_attempt"),
        target_backend=text("target_backend"),
        target_attempt=number("target_attempt"),
        phase=text("phase"),
        milestones=text("milestones"),
        options=text("options"),
        flips=number("flips"),
        paused=number("paused"),
        finished=number("finished"),
        started_us=_NOW,
        updated_us=_NOW,
    )
    .returning(*_COLUMNS)
)
_NEWEST_FIRST: Final = (MIGRATIONS.c.started_us.desc(), MIGRATIONS.c.id.desc())
_READ_ALL: Final = select(*_COLUMNS).order_by(*_NEWEST_FIRST)
_READ_DOMAIN: Final = _READ_ALL.where(MIGRATIONS.c.domain == text("domain"))
_LOCK: Final = select(*_COLUMNS).where(MIGRATIONS.c.id == text("id")).with_for_update()
_CHANGE: Final = (
    update(MIGRATIONS)
    .where(MIGRATIONS.c.id == text("id"))
    .values(
        milestones=text("milestones"),
        options=text("options"),
        flips=number("flips"),
        paused=number("paused"),
        finished=number("finished"),
        updated_us=_NOW,
    )
    .returning(*_COLUMNS)
)
SET_PHASE: Final = update(MIGRATIONS).where(MIGRATIONS.c.id == text("id")).values(phase=text("phase"), updated_us=_NOW)
_FIRST_ATTEMPT: Final = upsert(ATTEMPTS).values(domain=text("domain"), last=1)
_NEXT_ATTEMPT: Final = _FIRST_ATTEMPT.on_conflict_do_update(
    index_elements=[ATTEMPTS.c.domain], set_={"last": ATTEMPTS.c.last + 1}
).returning(ATTEMPTS.c.last)
# Whatever begins within a domain begins one after the other: its row is locked, and is made where there is none.
_LOCK_DOMAIN: Final = (
    upsert(ATTEMPTS)
    .values(domain=text("domain"), last=0)
    .on_conflict_do_update(index_elements=[ATTEMPTS.c.domain], set_={"last": ATTEMPTS.c.last})
    .returning(ATTEMPTS.c.last)
)
# One statement: the lease's row is locked and compared, and the step entered only where it still is at the token.
_STEP: Final = (
    insert(STEPS)
    .from_select(
        ["migration", "action", "state", "detail", "token", "at_us"],
        select(text("migration"), text("action"), text("state"), text("detail"), LEASES.c.token, _NOW + literal(0))
        .where(LEASES.c.name == text("lease"), LEASES.c.token == number("token"), LEASES.c.holder != "")
        .with_for_update(),
    )
    .returning(STEPS.c.seq)
)
_STEPS: Final = (
    select(STEPS.c.seq, STEPS.c.action, STEPS.c.state, STEPS.c.detail, STEPS.c.token, STEPS.c.at_us)
    .where(STEPS.c.migration == text("migration"))
    .order_by(STEPS.c.seq.desc())
    .limit(number("limit"))
)


class SqlMigrations(SqlPart):
    """Migrations, their attempt numbers, their steps."""

    async def start_migration(
        self, token: Token, migration: Migration, *, actor: str, within: Token | None = None
    ) -> Migration:
        """Enter a new migration; PreconditionFailed when an unfinished one excludes it (``rules.rivals``)."""
        assert token.domain == migration.domain, "a token is of the migration's domain"
        base, below = rivals(migration.domain)
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            if within is not None:
                await self._hold(transaction, within)
            await self._hold(transaction, token)
            await self._do(transaction, _LOCK_DOMAIN, domain=base)
            unfinished = await self._do(transaction, _UNFINISHED, domain=migration.domain, base=base, below=f"{below}%")
            if unfinished:
                raise already_migrating(migration.domain, unfinished[0][0])
            rows = await self._do(transaction, _INSERT, **_values(migration))
            detail = f"{migration.id}: {migration.domain} {migration.source.backend} -> {migration.target.backend}"
            await self._do(transaction, INSERT_AUDIT, actor=actor, action="start", detail=detail)
        return _migration(rows[0])

    async def migrations(self, domain: str | None = None) -> list[Migration]:
        """Newest first."""
        if domain is None:
            rows = await self._fetch(_READ_ALL)
        else:
            rows = await self._fetch(_READ_DOMAIN, domain=domain)
        return [_migration(row) for row in rows]

    async def update_migration(self, token: Token, migration_id: str, **changes: Any) -> Migration:
        """Set milestones, flips or paused, merge options (None takes one away); LostLease when the token is old."""
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            await self._hold(transaction, token)
            stored = await self._locked(transaction, migration_id)
            assert stored.domain == token.domain, "a token is of the migration's domain"
            return await self._change(transaction, changed(stored, changes, stored.updated_us))

    async def set_options(self, migration_id: str, options: Mapping[str, Any], *, actor: str) -> None:
        """Merge options from an operator, without the lease; audited. None takes an option away; ``paused`` sets the
        migration's field.
        """
        async with self._database.transaction(deadline=self._deadline()) as transaction:
            stored = await self._locked(transaction, migration_id)
            await self._change(transaction, with_options(stored, options, stored.updated_us))
            detail = f"{migration_id}: {options_text(options)}"
            await self._do(transaction, INSERT_AUDIT, actor=actor, action="options", detail=detail)

    async def next_attempt(self, domain: str) -> int:
        """A number never used before for this domain."""
        return int((await self._run(_NEXT_ATTEMPT, domain=domain))[0][0])

    async def record_step(self, token: Token, action: str, state: StepState, detail: str = "") -> None:
        """Enter one action of the plan as planned, doing, done or failed; LostLease when the token is old."""
        rows = await self._run(
            _STEP,
            migration=token.migration,
            action=action,
            state=state,
            detail=detail,
            lease=coordinator_lease(token.domain),
            token=token.value,
        )
        if not rows:
            raise lost(token)

    async def steps(self, migration_id: str, limit: int = 200) -> list[Step]:
        """Newest first."""
        return [Step(*row) for row in await self._fetch(_STEPS, migration=migration_id, limit=limit)]

    async def _locked(self, transaction: SqlTransaction, migration_id: str) -> Migration:
        rows = await self._do(transaction, _LOCK, id=migration_id)
        if not rows:
            raise NotFound(f"there is no migration {migration_id!r}")
        return _migration(rows[0])

    async def _change(self, transaction: SqlTransaction, migration: Migration) -> Migration:
        values = _values(migration)
        names = ("id", "milestones", "options", "flips", "paused", "finished")
        return _migration((await self._do(transaction, _CHANGE, **{name: values[name] for name in names}))[0])


def _values(migration: Migration) -> dict[str, Any]:
    return {
        "id": migration.id,
        "domain": migration.domain,
        "attempt": migration.attempt,
        "source_backend": migration.source.backend,
        "source_attempt": migration.source.attempt,
        "target_backend": migration.target.backend,
        "target_attempt": migration.target.attempt,
        "phase": migration.phase,
        "milestones": json.dumps(sorted(migration.milestones)),
        "options": json.dumps(dict(migration.options), sort_keys=True),
        "flips": migration.flips,
        "paused": int(migration.paused),
        "finished": int(migration.finished),
    }


def _migration(row: Row) -> Migration:
    id_, domain, attempt, source, source_attempt, target, target_attempt, phase, *rest = row
    milestones, options, flips, started_us, updated_us, paused = rest
    return Migration(
        id_,
        domain,
        attempt,
        Place(source, source_attempt),
        Place(target, target_attempt),
        phase,
        frozenset(json.loads(milestones)),
        json.loads(options),
        flips,
        started_us,
        updated_us,
        paused == 1,
    )
