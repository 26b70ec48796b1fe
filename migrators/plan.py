"""The plan as data: which actions bring a migration from one phase to the next.

Dry run, crash matrix, resume and rollback all read these lists. An action is idempotent: a stage that was cut short
is run again from its first action. A stage ends with its milestone or with the routing that it publishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from datalayer.routing.route import Phase


class Action(StrEnum):
    """What a coordinator can do; each has one handler and is recorded as one step."""

    CHECK_TARGET = "check_target"
    CREATE_TARGET = "create_target"
    SEAL_TARGET = "seal_target"
    ARM_JOURNAL = "arm_journal"
    PUBLISH_DUAL = "publish_dual"
    AWAIT_WRITERS = "await_writers"
    BACKFILL = "backfill"
    CATCH_UP = "catch_up"
    VERIFY = "verify"
    CHECK_ARM = "check_arm"
    JOIN_DOMAIN = "join_domain"
    JOIN_INDEXES = "join_indexes"
    PUBLISH_ARMED = "publish_armed"
    AWAIT_READERS = "await_readers"
    CHECK_HOLD = "check_hold"
    FENCE = "fence"
    DRAIN = "drain"
    CHECK_CHANGED = "check_changed"
    FENCE_FOR_GOOD = "fence_for_good"
    OPEN_OTHER = "open_other"
    PUBLISH_COMPLETE = "publish_complete"
    PUBLISH_SOURCE = "publish_source"
    AWAIT_FLEET = "await_fleet"
    LAST_DRAIN = "last_drain"
    LEAVE_SOURCE = "leave_source"
    RETIRE_SOURCE = "retire_source"
    REMOVE_REVERSE = "remove_reverse"
    REMOVE_JOURNAL = "remove_journal"
    LEAVE_TARGET = "leave_target"
    DROP_TARGET = "drop_target"
    PURGE_SOURCE = "purge_source"


class Stage(StrEnum):
    """A run of actions between two resting points of a migration."""

    START = "start"
    BACKFILL = "backfill"
    VERIFY = "verify"
    ARM = "arm"
    FLIP = "flip"
    COMPLETE = "complete"
    CANCEL = "cancel"
    PURGE = "purge"


PLAN: Final[dict[Stage, tuple[Action, ...]]] = {
    Stage.START: (
        Action.CHECK_TARGET,
        Action.CREATE_TARGET,
        Action.SEAL_TARGET,
        Action.ARM_JOURNAL,
        Action.PUBLISH_DUAL,
    ),
    # The waits stand before what needs them, not after what made them necessary: a coordinator that died while it
    # waited has published already, and the next one begins with the stage that follows.
    Stage.BACKFILL: (Action.AWAIT_WRITERS, Action.BACKFILL, Action.CATCH_UP),
    Stage.VERIFY: (Action.CATCH_UP, Action.VERIFY),
    Stage.ARM: (
        Action.CHECK_ARM,
        Action.JOIN_DOMAIN,
        Action.JOIN_INDEXES,
        Action.PUBLISH_ARMED,
        Action.AWAIT_READERS,
    ),
    Stage.FLIP: (
        Action.AWAIT_READERS,
        Action.CHECK_HOLD,
        Action.FENCE,
        Action.DRAIN,
        Action.CHECK_CHANGED,
        Action.FENCE_FOR_GOOD,
        Action.OPEN_OTHER,
    ),
    Stage.COMPLETE: (
        Action.PUBLISH_COMPLETE,
        Action.AWAIT_FLEET,
        Action.LAST_DRAIN,
        Action.LEAVE_SOURCE,
        Action.RETIRE_SOURCE,
        Action.REMOVE_REVERSE,
    ),
    Stage.CANCEL: (
        Action.PUBLISH_SOURCE,
        Action.AWAIT_FLEET,
        Action.LAST_DRAIN,
        Action.REMOVE_JOURNAL,
        Action.LEAVE_TARGET,
        Action.DROP_TARGET,
    ),
    Stage.PURGE: (Action.PURGE_SOURCE,),
}

IN_HOLD: Final = (Action.DRAIN, Action.CHECK_CHANGED, Action.FENCE_FOR_GOOD, Action.OPEN_OTHER)


class Until(StrEnum):
    """Where ``migrate --until`` stops."""

    DUAL = "dual"
    BACKFILLED = "backfilled"
    VERIFIED = "verified"
    ARMED = "armed"
    TARGET = "target"
    COMPLETE = "complete"


_ORDER: Final = list(Until)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a migration stands: all that the next stage depends on."""

    phase: Phase
    milestones: frozenset[str]
    sealed: bool = False
    """The authority of a cut-over phase is fenced for good: the flip must be finished."""
    canary: bool = False
    """Armed for a share of the routing keys only: no flip before all of them follow the journal-first rule."""


def reached(standing: Standing) -> Until | None:
    """The furthest resting point that a migration has reached on its way forward; None before dual."""
    match standing.phase:
        case Phase.SOURCE:
            return None
        case Phase.DUAL:
            if "verified" in standing.milestones:
                return Until.VERIFIED
            return Until.BACKFILLED if "backfilled" in standing.milestones else Until.DUAL
        case Phase.ARMED | Phase.HOLD:
            return Until.ARMED
        case Phase.TARGET | Phase.ARMED_BACK | Phase.HOLD_BACK:
            return Until.TARGET
        case Phase.COMPLETE:
            return Until.COMPLETE


def next_stage(standing: Standing, until: Until, *, held: bool = True) -> Stage | None:
    """The stage that brings a migration nearer to ``until``; None when it is there.

    Without a hold (``held`` of its strategy) there is no `armed`: what is verified flips.
    """
    at = reached(standing)
    if not held and until is Until.ARMED:
        until = Until.VERIFIED
    if standing.phase is Phase.ARMED and standing.sealed:
        return Stage.FLIP
    if standing.phase is Phase.ARMED and standing.canary and until is not Until.ARMED:
        return Stage.ARM
    if at is Until.COMPLETE:
        return None if "completed" in standing.milestones else Stage.COMPLETE
    if at is not None and _ORDER.index(at) >= _ORDER.index(until):
        return None
    if at is None:
        return Stage.START
    return {
        Until.DUAL: Stage.BACKFILL,
        Until.BACKFILLED: Stage.VERIFY,
        Until.VERIFIED: Stage.ARM if held else Stage.FLIP,
        Until.ARMED: Stage.FLIP,
        Until.TARGET: Stage.COMPLETE,
    }[at]


def next_stage_back(standing: Standing, *, held: bool = True) -> Stage | None:
    """The stage that brings a migration nearer to dual from beyond its flip; None when it is there."""
    if standing.phase is Phase.TARGET:
        return Stage.ARM if held else Stage.FLIP
    if standing.phase is Phase.ARMED_BACK:
        return Stage.FLIP
    return None


def stages_to(standing: Standing, until: Until, *, held: bool = True) -> list[Stage]:
    """Every stage from here to ``until``, for a dry run."""
    stages: list[Stage] = []
    steps = {
        Stage.START: Standing(Phase.DUAL, frozenset()),
        Stage.BACKFILL: Standing(Phase.DUAL, frozenset({"backfilled"})),
        Stage.VERIFY: Standing(Phase.DUAL, frozenset({"backfilled", "verified"})),
        Stage.ARM: Standing(Phase.ARMED, standing.milestones),
        Stage.FLIP: Standing(Phase.TARGET, standing.milestones),
        Stage.COMPLETE: Standing(Phase.COMPLETE, frozenset({"completed"})),
    }
    while (stage := next_stage(standing, until, held=held)) is not None:
        stages.append(stage)
        standing = steps[stage]
    return stages
