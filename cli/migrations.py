"""datalayer migrations: what an operator sees of a migration and can do with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import click

from datalayer.cli.console import Console, command, group
from datalayer.cli.exits import ExitCode
from datalayer.cli.progress import Watcher
from datalayer.cli.running import Stop, holder, run, with_places
from datalayer.cli.texts import difference_lines, status_text, table, verdict_text
from datalayer.clock import SystemClock
from datalayer.control.base import Migration
from datalayer.errors import PreconditionFailed
from datalayer.migrators import status as engine_status
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.memories import no_way_back
from datalayer.migrators.opening import open_places
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.routing.places import Places

WATCH_EVERY_S: Final = 1.0
_chosen = click.argument("migration", required=False)
_confirmation = click.option("--yes", is_flag=True, help="Do not ask.")
Act = Callable[[Coordinator, Migration], Awaitable[Any]]
Choose = Callable[[Places], Awaitable[Migration]]


@group()
def migrations() -> None:
    """Watch and steer migrations. MIGRATION defaults to the only unfinished one."""


# --- seeing ----------------------------------------------------------------------------------------------------------


@command("list")
def list_(console: Console) -> None:
    """Every migration, newest first."""
    found = with_places(console, _all)
    rows = [(m.id, m.domain, m.source.backend, m.target.backend, _state(m)) for m in found]
    listed = [
        {"id": i, "domain": domain, "source": source, "target": target, "state": state}
        for i, domain, source, target, state in rows
    ]
    text = table(rows, ("migration", "domain", "source", "target", "state")) if rows else "there is no migration yet"
    console.result({"migrations": listed}, text)


async def _all(places: Places) -> list[Migration]:
    return await places.control.migrations()


@command()
@_chosen
@click.option("--watch", is_flag=True, help="Go on, once a second, until the migration ends; one line of JSON each.")
def status(console: Console, migration: str | None, *, watch: bool) -> None:
    """Where a migration stands."""

    async def work(stop: Stop) -> dict[str, Any]:
        async with open_places(console.settings(), SystemClock(), claim=False) as places:
            while True:
                found = await engine_status.choose(places.control, migration)
                told = await engine_status.status(places, found)
                if not watch or found.finished or stop.requested:
                    return told
                _show(console, told)
                await _pause(stop)

    told = run(console, work)
    console.result(told, status_text(told), next_steps=told["next_steps"])


def _show(console: Console, told: Mapping[str, Any]) -> None:
    if console.as_json:
        console.event(told)
    else:
        click.echo(status_text(told))


async def _pause(stop: Stop) -> None:
    until = asyncio.get_running_loop().time() + WATCH_EVERY_S
    while not stop.requested and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.05)


@command()
@_chosen
def why(console: Console, migration: str | None) -> None:
    """Why a migration does not go on, and what to do about each reason."""

    async def look(places: Places) -> tuple[Migration, list[dict[str, str]]]:
        found = await engine_status.choose(places.control, migration)
        return found, await engine_status.why(places, found)

    found, reasons = with_places(console, look)
    lines = [f"{item['reason']}: {item['detail']} -> {item['way_out']}" for item in reasons]
    console.result({"id": found.id, "reasons": reasons}, "\n".join(lines))


# --- steering without the lease --------------------------------------------------------------------------------------


@command()
@_chosen
def pause(console: Console, migration: str | None) -> None:
    """Stop a migration at the next safe point; dual writes go on."""
    found = _set_options(console, migration, {"paused": True})
    console.result(
        {"id": found.id, "paused": True}, f"{found.id} is paused", next_steps=["datalayer migrations resume"]
    )


@command()
@_chosen
def resume(console: Console, migration: str | None) -> None:
    """Let a paused migration go on."""
    found = _set_options(console, migration, {"paused": False})
    step = f"datalayer migrate {found.domain} --to {found.target.backend}"
    console.result({"id": found.id, "paused": False}, f"{found.id} may go on", next_steps=[step])


@command()
@_chosen
@click.option("--rate", required=True, metavar="ROWS_PER_S", help="The new cap of the backfill, or off.")
def throttle(console: Console, migration: str | None, *, rate: str) -> None:
    """Cap the backfill, also of a running one."""
    cap = _rate(rate)
    found = _set_options(console, migration, {"rate_rows_per_s": cap})
    text = f"{found.id} is not capped any more" if cap is None else f"{found.id} copies at most {cap:g} rows a second"
    console.result({"id": found.id, "rate_rows_per_s": cap}, text)


def _rate(text: str) -> float | None:
    if text == "off":
        return None
    try:
        return MigrateOptions(rate_rows_per_s=float(text)).checked().rate_rows_per_s
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number above 0 nor off", param_hint="--rate") from None


def _set_options(console: Console, wanted: str | None, options: Mapping[str, Any]) -> Migration:
    async def change(places: Places) -> Migration:
        found = await _unfinished(places, wanted)
        await places.control.set_options(found.id, options, actor=holder("operator"))
        return found

    return with_places(console, change)


# --- acting as the coordinator ---------------------------------------------------------------------------------------


@command()
@_chosen
def verify(console: Console, migration: str | None) -> ExitCode | None:
    """Compare source and target now; ends with 4 when they differ."""
    _, verdict = _act(console, migration, lambda coordinator, _: coordinator.verify())
    return _tell_verdict(console, verdict)


@command()
@_chosen
def repair(console: Console, migration: str | None) -> ExitCode | None:
    """Bring quarantined and differing records in step, then compare again."""
    _, verdict = _act(console, migration, lambda coordinator, _: coordinator.repair())
    return _tell_verdict(console, verdict)


def _tell_verdict(console: Console, verdict: Mapping[str, Any]) -> ExitCode | None:
    quarantined = verdict.get("quarantined", 0)
    lines = [verdict_text(verdict), *difference_lines(verdict)]
    if "repaired" in verdict:
        lines.insert(0, f"{verdict['repaired']} repaired, {quarantined} still in quarantine")
    if verdict["differences"] or quarantined:
        console.result(verdict, "\n".join(lines), next_steps=["datalayer migrations repair"])
        return ExitCode.DIFFERENCES
    if verdict["undecided"]:
        # Records that change all the time are neither equal nor different: a later pass decides.
        console.result(verdict, "\n".join(lines), next_steps=["datalayer migrations verify"])
        return ExitCode.NOT_FINISHED
    console.result(verdict, "\n".join(lines))
    return None


@command()
@_chosen
@_confirmation
def cutover(console: Console, migration: str | None, *, yes: bool) -> None:
    """Go on until the target rules."""
    _confirm(console, yes, "cutover", "Let the target serve from now on?")
    _steer(console, migration, lambda coordinator, _: coordinator.cutover())


@command()
@_chosen
@_confirmation
def rollback(console: Console, migration: str | None, *, yes: bool) -> None:
    """Back to the source; the copy stays and is kept in step."""
    _confirm(console, yes, "rollback", "Let the source serve again?")
    settings = console.settings()

    async def back(coordinator: Coordinator, found: Migration) -> Any:
        if reason := no_way_back(settings, found):
            raise PreconditionFailed(reason, hint=f"datalayer migrations complete {found.id}")
        return await coordinator.rollback()

    _steer(console, migration, back)


@command()
@_chosen
@_confirmation
def complete(console: Console, migration: str | None, *, yes: bool) -> None:
    """End a migration whose target rules: the source is fenced for good, there is no way back."""
    _confirm(console, yes, "complete", "The way back will be closed for good.", word="complete")
    _steer(console, migration, lambda coordinator, _: coordinator.complete())


@command()
@_chosen
@_confirmation
def cancel(console: Console, migration: str | None, *, yes: bool) -> None:
    """Before the target rules: back to the source, and the copy is dropped."""
    _confirm(console, yes, "cancel", "The copy will be dropped.", word="cancel")
    _steer(console, migration, lambda coordinator, _: coordinator.cancel())


@command()
@_chosen
@_confirmation
def purge(console: Console, migration: str | None, *, yes: bool) -> None:
    """Drop the retired data of the source of a completed migration."""
    _confirm(console, yes, "purge", "The data at the source will be dropped.", word="purge")

    async def choose(places: Places) -> Migration:
        retired = [m for m in await _all(places) if "completed" in m.milestones and "purged" not in m.milestones]
        if migration is not None:
            found = await engine_status.choose(places.control, migration)
            if found.id in {m.id for m in retired}:
                return found
            why = "has been purged already" if "purged" in found.milestones else f"is not completed: {_state(found)}"
            raise PreconditionFailed(f"{found.id} {why}; nothing was dropped", hint="datalayer migrations list")
        if len(retired) == 1:
            return retired[0]
        if retired:
            names = ", ".join(m.id for m in retired)
            raise PreconditionFailed("several migrations have retired data", hint=f"name one of: {names}")
        raise PreconditionFailed("no migration has retired data", hint="datalayer migrations list")

    _steer(console, migration, lambda coordinator, found: coordinator.purge(found.id), choose=choose)


def _confirm(console: Console, yes: bool, act: str, question: str, *, word: str | None = None) -> None:  # noqa: FBT001 - as click gives it
    if yes or console.confirmed(question, word=word):
        return
    raise PreconditionFailed(f"{act} was not confirmed; nothing was changed", hint="add --yes to do it without asking")


def _steer(console: Console, wanted: str | None, act: Act, *, choose: Choose | None = None) -> None:
    """Act, then tell where the migration stands."""
    told, _ = _act(console, wanted, act, choose=choose)
    console.result(told, status_text(told), next_steps=told["next_steps"])


def _act(console: Console, wanted: str | None, act: Act, *, choose: Choose | None = None) -> tuple[dict[str, Any], Any]:
    """(status afterwards, result) of something that only the coordinator may do."""
    settings = console.settings()

    async def work(stop: Stop) -> tuple[dict[str, Any], Any]:
        watcher = Watcher(console)
        async with open_places(settings, SystemClock(), claim=False) as places:
            found = await (choose(places) if choose else _unfinished(places, wanted))
            console.way_on = [_again(found)]
            options = MigrateOptions(until=Until.TARGET, yes=True)
            coordinator = Coordinator(
                places, found.domain, holder=holder("migrations"), options=options, reporter=watcher, failpoints=stop
            )
            try:
                result = await act(coordinator, found)
            finally:
                watcher.close()
            found = await engine_status.choose(places.control, found.id)
            return await engine_status.status(places, found), result

    return run(console, work)


def _again(found: Migration) -> str:
    """This command once more, for the same migration."""
    context = click.get_current_context()
    return f"datalayer migrations {context.info_name} {found.id}{' --yes' if context.params.get('yes') else ''}"


async def _unfinished(places: Places, wanted: str | None) -> Migration:
    found = await engine_status.choose(places.control, wanted)
    if found.finished:
        named = f"{found.id} has ended" if wanted else f"no migration is unfinished; the last was {found.id}"
        raise PreconditionFailed(named, hint="datalayer migrations list")
    return found


def _state(migration: Migration) -> str:
    if "purged" in migration.milestones:
        return "purged"
    if migration.finished:
        return "completed" if "completed" in migration.milestones else "cancelled"
    return f"{migration.phase}{', paused' if migration.paused else ''}"


for _one in (list_, status, why, pause, resume, throttle, verify, repair, cutover, rollback, complete, cancel, purge):
    migrations.add_command(_one)
