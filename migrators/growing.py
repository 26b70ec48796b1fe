"""Runs one step of a plan of growth. Whoever runs them plans again after each: there is no other state."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from datalayer.errors import NotFinished, PreconditionFailed
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.plan import Until
from datalayer.migrators.schema_plan import load_revisions
from datalayer.migrators.schema_upgrade import Upgrade, UpgradeOptions

if TYPE_CHECKING:
    from datalayer.migrators.growth import Growth, Step
    from datalayer.migrators.options import Failpoints, MigrateOptions, Reporter
    from datalayer.routing.places import Places
    from datalayer.settings import Settings


def check_ready(plan: Growth) -> None:
    """PreconditionFailed naming what is missing or in the way, before anything is begun."""
    lacking = [p for p in plan.domains if p.standing == "lacks"]
    blocked = [p for p in plan.domains if p.standing == "blocked"]
    if not lacking and not blocked:
        return
    reasons = [f"{p.domain}: {p.detail}" for p in (*blocked, *lacking)]
    raise PreconditionFailed(
        f"size {plan.size} cannot be reached yet: {'; '.join(reasons)}",
        hint=f"datalayer plan --size {plan.size} shows what to add or to finish",
    )


async def run_step(
    places: Places,
    settings: Settings,
    step: Step,
    *,
    holder: str,
    options: MigrateOptions,
    reporter: Reporter,
    failpoints: Failpoints,
) -> None:
    """Run one step to its end. Raises what a migration or a schema upgrade raises; running it again goes on.

    A migration whose cut-over is not confirmed (``options.yes``) ends verified, with NotFinished.
    """
    if step.verb == "schema":
        await _upgrade(places, settings, step, failpoints)
        return
    until = Until.TARGET if options.yes else Until.VERIFIED
    coordinator = Coordinator(
        places,
        step.domain,
        holder=holder,
        options=replace(options, until=until),
        reporter=reporter,
        failpoints=failpoints,
    )
    if step.verb == "migrate":
        await coordinator.migrate(step.target)
    if not options.yes:
        raise NotFinished(f"{step.domain} waits for a confirmation: {step.command.removesuffix(' --yes')}")
    if step.verb == "complete":
        await coordinator.complete()
    elif step.verb == "rollback":
        await coordinator.rollback()


async def _upgrade(places: Places, settings: Settings, step: Step, failpoints: Failpoints) -> None:
    options = UpgradeOptions(only=step.target, phase="pre")
    states = await Upgrade(settings, places.clock, load_revisions(), failpoints, options).run()
    bad = [state for state in states if state.state != "ready"]
    if bad:
        raise NotFinished(f"the schema of {bad[0].name!r} is {bad[0].state}: {bad[0].detail}", hint=step.command)
