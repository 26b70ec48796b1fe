"""Chunks of a backfill or a verification pass: leased one by one to any number of workers, with checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import and_, delete, select, update
from sqlalchemy.dialects.postgresql import insert

from datalayer.control.base import Chunk
from datalayer.control.schema import CHUNKS, RUNS
from datalayer.control.statements import LONG_CALL_S, SqlPart, StoreClock, number, text
from datalayer.errors import LostLease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.stores.sql.database import Row

_COLUMNS: Final = (
    CHUNKS.c.run,
    CHUNKS.c.number,
    CHUNKS.c.range,
    CHUNKS.c.after,
    CHUNKS.c.rows,
    CHUNKS.c.payload,
    CHUNKS.c.done,
    CHUNKS.c.token,
)
_PLAN_RUN: Final = insert(RUNS).values(run=text("run")).on_conflict_do_nothing().returning(RUNS.c.run)
_PLAN: Final = (
    insert(CHUNKS)
    .values(
        run=text("run"),
        number=number("number"),
        range=text("range"),
        rows=0,
        payload="",
        done=0,
        token=0,
        holder="",
        until_us=0,
    )
    .inline()
)
_READ: Final = select(*_COLUMNS).where(CHUNKS.c.run == text("run")).order_by(CHUNKS.c.number)
_FREE: Final = (
    select(CHUNKS.c.number)
    .where(CHUNKS.c.run == text("run"), CHUNKS.c.done == 0, CHUNKS.c.until_us <= StoreClock())
    .order_by(CHUNKS.c.number)
    .limit(1)
    .with_for_update(skip_locked=True)
    .scalar_subquery()
)
_TAKE: Final = (
    update(CHUNKS)
    .where(CHUNKS.c.run == text("run"), CHUNKS.c.number == _FREE)
    .values(token=CHUNKS.c.token + 1, holder=text("holder"), until_us=StoreClock() + number("ttl_us"))
    .returning(*_COLUMNS)
)
_CHECKPOINT: Final = (
    update(CHUNKS)
    .where(
        and_(CHUNKS.c.run == text("run"), CHUNKS.c.number == number("number"), CHUNKS.c.token == number("lease_token"))
    )
    .values(
        after=text("after"),
        rows=number("rows"),
        payload=text("payload"),
        done=number("done"),
        until_us=StoreClock() + number("ttl_us"),
    )
    .returning(CHUNKS.c.number)
)
_DROP_RUN: Final = delete(RUNS).where(RUNS.c.run == text("run"))
_DROP: Final = delete(CHUNKS).where(CHUNKS.c.run == text("run"))


class SqlChunks(SqlPart):
    """A chunk's lease is bound to a token; a checkpoint of a worker that lost it lands nowhere."""

    async def plan_chunks(self, run: str, ranges: Sequence[str]) -> None:
        """Enter a run's ranges once; a second call changes nothing, whatever its ranges."""
        rows = [{"run": run, "number": at, "range": range_} for at, range_ in enumerate(ranges)]
        async with self._database.transaction(deadline=self._deadline(LONG_CALL_S)) as transaction:
            if await self._do(transaction, _PLAN_RUN, run=run):
                await self._do_many(transaction, _PLAN, rows)

    async def chunks(self, run: str) -> list[Chunk]:
        """All chunks of a run, in order."""
        return [_chunk(row) for row in await self._fetch(_READ, run=run)]

    async def take_chunk(self, run: str, holder: str, ttl_s: float) -> Chunk | None:
        """A chunk that is not done and not leased (to anybody), now leased to the holder; None when there is none."""
        rows = await self._run(_TAKE, run=run, holder=holder, ttl_us=round(ttl_s * 1e6))
        return _chunk(rows[0]) if rows else None

    async def checkpoint(self, chunk: Chunk, ttl_s: float) -> None:
        """Store after, rows, payload, done; LostLease when the chunk's lease token is not the newest."""
        rows = await self._run(
            _CHECKPOINT,
            run=chunk.run,
            number=chunk.number,
            lease_token=chunk.lease_token,
            after=chunk.after,
            rows=chunk.rows,
            payload=chunk.payload,
            done=int(chunk.done),
            ttl_us=round(ttl_s * 1e6),
        )
        if not rows:
            raise LostLease(f"chunk {chunk.number} of {chunk.run} went to another worker")

    async def drop_run(self, run: str) -> None:
        """Forget the chunks of a run. Idempotent."""
        async with self._database.transaction(deadline=self._deadline(LONG_CALL_S)) as transaction:
            await self._do(transaction, _DROP_RUN, run=run)
            await self._do(transaction, _DROP, run=run)


def _chunk(row: Row) -> Chunk:
    run, at, range_, after, rows, payload, done, token = row
    return Chunk(run, at, range_, after, rows, payload, done == 1, token)
