"""The flip: fence, drain, fence for good, open the other side. One code path for both directions.

From the first fence to the publication nothing should take longer than max_hold. What follows the permanent fence cannot
be taken back, so the fence must be permanent by half of that: it lapses by itself then, and every step checks that it
has not. Whatever fails before steps back: the fence lapses, the phase stays armed, no client saw an error.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from datalayer.errors import MigrationError, NotFinished, Unavailable
from datalayer.migrators.actions import VERDICT, check_ready
from datalayer.migrators.around import SHORT_BACKLOG, drain_around
from datalayer.migrators.lives import check_same
from datalayer.migrators.together import together
from datalayer.migrators.verify import Verifier
from datalayer.routing.flip import finish_flip, write_roles
from datalayer.routing.route import Phase
from datalayer.routing.together import each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.domains.record import Key
    from datalayer.migrators.work import Work


class HoldTooLong(NotFinished):
    """A hold that stepped back because it came to its limit: its fence lapses by itself, and another may be tried."""


SEALED_BY: Final = 0.5
"""The share of max_hold after which a fence lapses that is not permanent; the rest is for opening the other side."""
LOCK_TIMEOUT_S: Final = 0.2
FENCE_TRIES: Final = 20
CHANGED_MAX: Final = 50
CHANGED_BEFORE_MAX: Final = 5000
SHORT_WAITS_S: Final = (0.0, 0.05, 0.2)
SETTLE_ROUNDS: Final = 50


async def check_hold(work: Work) -> str:
    """Ready, and the journal short enough to be drained within the hold."""
    if await _sealed(work):
        return "the fence is permanent already"
    await check_ready(work)
    assert work.routing.canary_pct == 100, "a flip needs every reader at the journal-first rule (I3)"
    await _check_changed_so_far(work)
    await drain_around(work, enough=SHORT_BACKLOG)
    async with work.replay_lock:
        replayer = await work.replayer()
        backlog = 0
        for _ in range(SETTLE_ROUNDS):
            began = work.clock.monotonic()
            replayed = await replayer.step()
            seconds = work.clock.monotonic() - began
            work.note_changed(replayed.records)
            backlog = await replayer.backlog()
            rate = len(replayed.records) / max(seconds, 1e-6) or 1e6
            if backlog <= SHORT_BACKLOG and backlog / rate < _lapse_s(work):
                return f"backlog {backlog}"
            await asyncio.sleep(0)
    raise NotFinished(f"the journal holds {backlog} keys and does not get shorter: the hold would be too long")


async def fence(work: Work) -> str:
    """Refuse writes of everybody until the fence lapses; no write is running when this returns."""
    async with work.around_lock, work.replay_lock:
        work.flipping = True  # no round of a background replay is under way when the hold begins, and none will be
    if await _sealed(work):
        return "the fence is permanent already"
    authority, _ = work.places.sides(work.routing)
    refused: Unavailable | None = None
    for attempt in range(FENCE_TRIES):
        # A number for each try: of several tables, those fenced by the one before may be open again by now.
        flips = work.migration.flips + 1
        work.migration = await work.control.update_migration(work.token, work.migration.id, flips=flips)
        try:
            await authority.fence(work.token, work.migration.flips, _lapse_s(work), LOCK_TIMEOUT_S)
        except Unavailable as error:
            refused = error
            await asyncio.sleep(min(0.02 * 2**attempt, 0.4))
            continue
        work.hold_began, work.hold_parts = work.clock.monotonic(), {}
        return f"flip {work.migration.flips}"
    raise NotFinished(f"the fence could not be set: {refused.message if refused else 'busy'}") from refused


async def drain(work: Work) -> str:
    """Replay until the journal is empty; step back when the hold takes too long.

    A slot group's part of its domain's journal is handed over meanwhile: it is another journal, to another place.
    """
    if await _sealed(work):
        return "after the permanent fence"
    if work.around is None:
        return f"{await _replay(work)} replayed"
    done, handed = await each((_replay, drain_around), lambda act: act(work))
    return f"{done} replayed" + (f", {handed} of the domain's journal handed over" if handed else "")


async def _replay(work: Work) -> int:
    done = 0
    async with work.replay_lock:
        replayer = await work.replayer()
        while True:
            replayed = await replayer.step()
            done += len(replayed.records)
            work.note_changed(replayed.records)
            if replayed.empty:
                return done
            await _check_budget(work)
            if not replayed.records:
                await asyncio.sleep(0.001)


async def check_changed(work: Work) -> str:
    """Compare the keys replayed since the last clean verification, as many as fit into the hold."""
    if await _sealed(work):
        return "after the permanent fence"
    keys = list(work.changed)[:CHANGED_MAX]
    # What was drained is acknowledged: from the look at the mirror's life on, a loss is the loss of a store that rules.
    wrong, _ = await together(_unequal(work, keys), check_same(work))
    # Before the verdict: once the fence has lapsed, writes go on and the sides may well differ.
    await _check_budget(work)
    if wrong and (await work.places.sides(work.routing)[0].state()).fence == "open":
        raise HoldTooLong(_too_long(work))  # of several tables the first fence may have lapsed by now
    if wrong:
        raise MigrationError(f"{len(wrong)} record(s) differ inside the hold, first: {wrong[0][0]} {wrong[0][1].hex()}")
    return f"{len(keys)} of {len(work.changed)} changed keys equal"


async def _unequal(work: Work, keys: Sequence[Key]) -> list[Key]:
    return await _verifier(work).unequal_now(keys) if keys else []


async def fence_for_good(work: Work) -> str:
    """Make the fence permanent; refused when it lapsed before."""
    if await _sealed(work):
        return "the fence is permanent already"
    authority, _ = work.places.sides(work.routing)
    await _check_budget(work)
    try:
        await authority.seal(work.token, work.migration.flips)
    except MigrationError as error:
        raise HoldTooLong(f"{_too_long(work)}: {error.message}") from error
    return "sealed"


async def open_other(work: Work) -> str:
    """See the journal empty once more, open the other side, publish it."""
    direction = "forward" if work.routing.phase is Phase.ARMED else "back"
    async with work.replay_lock:
        replayer = await work.replayer()
        mine = work.hold_began is not None
        work.routing = await finish_flip(
            work.places,
            work.routing,
            work.migration,
            work.token,
            actor=work.holder,
            replayer=replayer,
            known_sealed=mine,
        )
    published_at = work.clock.monotonic()
    work.flipping = False
    await write_roles(work.places, work.routing)
    if work.hold_began is None:
        return f"finished a flip begun by another coordinator, epoch {work.routing.epoch}"
    hold_ms = (published_at - work.hold_began) * 1000
    work.hold_began = None
    holds = await work.control.document(work.migration.id, "holds") or {"holds": []}
    entry = {
        "flip": work.migration.flips,
        "direction": direction,
        "ms": round(hold_ms, 2),
        "at_us": work.clock.now_us(),
        "parts_ms": work.hold_parts,
    }
    await work.control.put_document(work.migration.id, "holds", {"holds": [*holds["holds"], entry]})
    return f"held {hold_ms:.1f} ms, epoch {work.routing.epoch}"


async def _check_changed_so_far(work: Work) -> None:
    """Before the hold: judge the keys replayed since the last verification; those too hot to judge stay for the hold."""
    verdict = await work.control.document(work.migration.id, VERDICT) or {}
    for name in verdict.get("undecided", ()):
        kind, _, key = name.partition(":")
        work.changed.add((kind, bytes.fromhex(key)))
    keys = list(work.changed)[:CHANGED_BEFORE_MAX]
    differences, undecided = await _verifier(work).judge(keys, waits_s=SHORT_WAITS_S)
    if differences:
        first = differences[0]
        raise MigrationError(f"{len(differences)} record(s) differ before the hold, first: {first.what} {first.key}")
    work.changed.difference_update(keys)
    work.changed.update(undecided)


def _verifier(work: Work) -> Verifier:
    assert work.routing.mirror is not None, "a cut-over has a mirror"
    domain = work.migration.domain
    authority, _ = work.places.sides(work.routing)
    return Verifier(
        domain,
        work.places.store(domain, work.routing.authority),
        work.places.store(domain, work.routing.mirror),
        authority.journal,
        control=work.control,
        clock=work.clock,
        run_name="",
        holder=work.holder,
        failpoints=work.failpoints,
        progress=lambda _: None,
    )


def step_back(work: Work) -> None:
    """End a hold that did not come to its permanent fence: it lapses by itself, at the same authority.

    Nothing is opened here: by the time an ``open`` arrived, the flip might have been sealed and finished by another.
    """
    work.flipping = False
    work.hold_began = None


async def _sealed(work: Work) -> bool:
    """Whether another coordinator sealed already; within a hold of one's own every round trip counts."""
    if work.hold_began is not None:
        return False
    authority, _ = work.places.sides(work.routing)
    return (await authority.state()).fence == "sealed"


async def _check_budget(work: Work) -> None:
    if work.hold_began is None:
        return
    if work.clock.monotonic() - work.hold_began >= _lapse_s(work):
        raise HoldTooLong(_too_long(work))


def _lapse_s(work: Work) -> float:
    return SEALED_BY * work.options.max_hold_ms / 1000


def _too_long(work: Work) -> str:
    return f"the hold took longer than {_lapse_s(work) * 1000:g} ms, half of --max-hold; it stepped back"
