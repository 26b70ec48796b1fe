"""Runs a stage of the plan: each action is recorded as doing and done, with a failpoint before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from datalayer.errors import DatalayerError
from datalayer.migrators import actions, around, following, hold
from datalayer.migrators.plan import Action, Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from enum import StrEnum

    from datalayer.migrators.work import Work

HANDLERS: Final[dict[Action, Callable[[Work], Awaitable[str]]]] = {
    Action.CHECK_TARGET: actions.check_target,
    Action.CREATE_TARGET: actions.create_target,
    Action.SEAL_TARGET: actions.seal_target,
    Action.ARM_JOURNAL: actions.arm_journal,
    Action.PUBLISH_DUAL: actions.publish_dual,
    Action.AWAIT_WRITERS: actions.await_writers,
    Action.BACKFILL: actions.backfill,
    Action.CATCH_UP: actions.catch_up,
    Action.VERIFY: actions.verify,
    Action.CHECK_ARM: actions.check_arm,
    Action.JOIN_DOMAIN: around.join_domain,
    Action.JOIN_INDEXES: following.join_indexes,
    Action.PUBLISH_ARMED: actions.publish_armed,
    Action.AWAIT_READERS: actions.await_readers,
    Action.CHECK_HOLD: hold.check_hold,
    Action.FENCE: hold.fence,
    Action.DRAIN: hold.drain,
    Action.CHECK_CHANGED: hold.check_changed,
    Action.FENCE_FOR_GOOD: hold.fence_for_good,
    Action.OPEN_OTHER: hold.open_other,
    Action.PUBLISH_COMPLETE: actions.publish_complete,
    Action.PUBLISH_SOURCE: actions.publish_source,
    Action.AWAIT_FLEET: actions.await_rest,
    Action.LAST_DRAIN: actions.last_drain,
    Action.LEAVE_SOURCE: following.leave_source,
    Action.RETIRE_SOURCE: actions.retire_source,
    Action.REMOVE_REVERSE: actions.remove_reverse,
    Action.REMOVE_JOURNAL: actions.remove_journal,
    Action.LEAVE_TARGET: following.leave_target,
    Action.DROP_TARGET: actions.drop_target,
    Action.PURGE_SOURCE: actions.purge_source,
}
QUIET: Final = frozenset({Action.DRAIN, Action.CHECK_CHANGED, Action.FENCE_FOR_GOOD})
"""Of the hold only its first and last action are recorded, and that behind it: each record is a write to the control
store, and writers wait meanwhile. Whoever dies in it leaves the first one at ``doing``."""


async def run_stage(work: Work, stage: Stage) -> None:
    """Run every action of a stage, as the domain's strategy has it, in order. On an error inside a hold, step back; then raise it."""
    work.reporter.stage(stage, str(work.routing.phase))
    strategy = work.strategy
    held: list[tuple[StrEnum, str]] = []
    for action in strategy.plan[stage]:
        quiet = action in strategy.quiet
        if not quiet and work.hold_began is None:
            await work.control.record_step(work.token, action, "doing")
        work.reporter.step(action, "doing", "")
        await work.failpoints.reach(f"{action}.before")
        began = work.clock.monotonic()
        try:
            detail = await strategy.handlers[action](work)
        except DatalayerError as error:
            hold.step_back(work)
            parts = f" {work.hold_parts}" if work.hold_parts else ""
            await _record(work, held)
            await work.control.record_step(work.token, action, "failed", error.message + parts)
            work.reporter.step(action, "failed", error.message)
            raise
        if work.hold_began is not None:
            work.hold_parts[str(action)] = round((work.clock.monotonic() - max(began, work.hold_began)) * 1000, 1)
        await work.failpoints.reach(f"{action}.after")
        if not quiet:
            held.append((action, detail))
        if work.hold_began is None:
            await _record(work, held)
        work.reporter.step(action, "done", detail)


async def _record(work: Work, done: list[tuple[StrEnum, str]]) -> None:
    for action, detail in done:
        await work.control.record_step(work.token, action, "done", detail)
    done.clear()
