"""Broken control stores."""

import asyncio
import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace as changed
from typing import Any

from datalayer.control.base import Chunk, Migration, QuarantineRow
from datalayer.control.memory_server import _Lease
from datalayer.routing.route import Phase, Routing
from datalayer.testing.contract import ControlSuite
from tests.contract.broken.breakage import Registry, replace
from tests.contract.broken.intents import BrokenControls

CONTROLS = Registry()
breaks = CONTROLS.breaks


def on_client(broken: BrokenControls, name: str, make: Any) -> None:
    """Change one method of every client."""
    broken.each_client(lambda client: replace(client, name, make))


@breaks(ControlSuite, "test_deployment_has_one_lasting_id")
def deployment_is_drawn_each_time(broken: BrokenControls) -> None:
    numbers = itertools.count()

    async def deployment() -> str:
        return str(next(numbers))

    on_client(broken, "deployment", lambda _: deployment)


@breaks(ControlSuite, "test_open_again_keeps_everything")
def open_wipes(broken: BrokenControls) -> None:
    def make(open_: Any) -> Any:
        async def afresh(*, create: bool) -> None:
            await open_(create=create)
            broken.server.routes.clear()

        return afresh

    on_client(broken, "open", make)


@breaks(ControlSuite, "test_first_placement_is_published_once")
def first_placement_replaces(broken: BrokenControls) -> None:
    def ensure_routes(first: Mapping[str, Any]) -> None:
        for domain, place in first.items():
            broken.server.routes[domain] = Routing(domain, 1, Phase.SOURCE, place)

    replace(broken.server, "ensure_routes", lambda _: ensure_routes)


@breaks(ControlSuite, "test_racing_first_placements_publish_one")
def each_first_placement_raises_the_epoch(broken: BrokenControls) -> None:
    def ensure_routes(first: Mapping[str, Any]) -> None:
        for domain, place in first.items():
            stored = broken.server.routes.get(domain)
            broken.server.routes[domain] = Routing(
                domain, 1 if stored is None else stored.epoch + 1, Phase.SOURCE, place
            )

    replace(broken.server, "ensure_routes", lambda _: ensure_routes)


@breaks(ControlSuite, "test_publish_raises_epoch_and_news_and_sets_the_phase")
def publish_takes_the_epoch_given(broken: BrokenControls) -> None:
    def make(publish: Any) -> Any:
        def given(token: Any, routing: Routing, actor: str) -> Routing:
            publish(token, routing, actor)
            broken.server.routes[routing.domain] = routing
            return routing

        return given

    replace(broken.server, "publish", make)


@breaks(ControlSuite, "test_publish_raises_epoch_and_news_and_sets_the_phase")
def publish_leaves_the_phase(broken: BrokenControls) -> None:
    def make(publish: Any) -> Any:
        def without(token: Any, routing: Routing, actor: str) -> Any:
            before = dict(broken.server.migrations)
            done = publish(token, routing, actor)
            broken.server.migrations.update(before)
            return done

        return without

    replace(broken.server, "publish", make)


@breaks(
    ControlSuite,
    "test_waiting_for_news_ends_with_the_next_publish",
    "test_waiting_for_news_ends_at_once_where_it_is_known_already",
    "test_publish_raises_epoch_and_news_and_sets_the_phase",
)
def news_is_not_raised(broken: BrokenControls) -> None:
    replace(broken.server, "_raise_news", lambda _: lambda: None)


@breaks(ControlSuite, "test_waiting_for_news_ends_at_its_timeout")
def waiting_for_news_has_no_end(broken: BrokenControls) -> None:
    def make(wait_news: Any) -> Any:
        async def patient(seen: int, timeout_s: float, *, poll_s: float) -> Any:
            try:
                async with asyncio.timeout(timeout_s * 4):
                    return await wait_news(seen, 1e6, poll_s=poll_s)
            except TimeoutError:
                message = "still waiting"
                raise AssertionError(message) from None

        return patient

    on_client(broken, "wait_news", make)


@breaks(
    ControlSuite,
    "test_publish_with_an_old_token_changes_nothing",
    "test_changes_of_a_migration_need_the_newest_token",
)
def tokens_are_not_compared(broken: BrokenControls) -> None:
    replace(broken.server, "check", lambda _: lambda token: None)


@breaks(ControlSuite, "test_a_registered_process_is_listed_until_it_leaves")
def renew_registers_again(broken: BrokenControls) -> None:
    known: dict[str, Any] = {}

    def make_register(register: Any) -> Any:
        def remembered(info: Any, epochs: Any, lease_s: float) -> None:
            known[info.id] = info
            register(info, epochs, lease_s)

        return remembered

    def renew(process_id: str, epochs: Any, lease_s: float) -> int:
        broken.server.register(known[process_id], epochs, lease_s)
        return broken.server.news

    replace(broken.server, "register", make_register)
    replace(broken.server, "renew", lambda _: renew)


@breaks(ControlSuite, "test_behind_names_those_that_have_not_acknowledged")
def a_silent_process_is_not_behind(broken: BrokenControls) -> None:
    async def behind(domain: str, epoch: int) -> list[Any]:
        return [one for one in broken.server.processes() if one.epochs.get(domain, epoch) < epoch]

    on_client(broken, "behind", lambda _: behind)


@breaks(ControlSuite, "test_behind_names_those_that_have_not_acknowledged")
def only_the_very_epoch_counts(broken: BrokenControls) -> None:
    async def behind(domain: str, epoch: int) -> list[Any]:
        return [one for one in broken.server.processes() if one.epochs.get(domain, 0) != epoch]

    on_client(broken, "behind", lambda _: behind)


@breaks(ControlSuite, "test_a_lease_that_is_not_renewed_runs_out_and_stays_listed")
def a_process_whose_lease_ran_out_is_forgotten(broken: BrokenControls) -> None:
    def make(processes: Any) -> Any:
        return lambda: [one for one in processes() if one.lease_left_s > 0]

    replace(broken.server, "processes", make)


@breaks(ControlSuite, "test_deregister_removes_by_globs_and_is_audited")
def deregister_looks_at_ids_alone(broken: BrokenControls) -> None:
    def deregister(patterns: Sequence[str], actor: str) -> list[Any]:
        found = [one for one in broken.server.processes() if any(fnmatch.fnmatch(one.id, p) for p in patterns)]
        for one in found:
            broken.server.leave(one.id)
        return found

    replace(broken.server, "deregister", lambda _: deregister)


@breaks(
    ControlSuite, "test_deregister_removes_by_globs_and_is_audited", "test_an_operator_sets_options_without_the_lease"
)
def nothing_is_audited(broken: BrokenControls) -> None:
    replace(broken.server, "note", lambda _: lambda actor, action, detail: None)


@breaks(
    ControlSuite,
    "test_a_lease_has_one_holder_and_rising_tokens",
    "test_racing_takers_of_a_lease_have_one_winner",
    "test_a_holder_that_takes_its_lease_again_keeps_it",
)
def everybody_gets_the_lease(broken: BrokenControls) -> None:
    def take(name: str, holder: str, ttl_s: float) -> int:
        token = broken.server._leases.get(name, _Lease()).token + 1
        broken.server._leases[name] = _Lease(token, holder, broken.server.clock.monotonic() + ttl_s)
        return token

    replace(broken.server, "take", lambda _: take)


@breaks(
    ControlSuite,
    "test_a_lease_has_one_holder_and_rising_tokens",
    "test_a_lease_that_ran_out_goes_to_the_next_with_a_higher_token",
)
def tokens_do_not_rise(broken: BrokenControls) -> None:
    def make(take: Any) -> Any:
        def same(name: str, holder: str, ttl_s: float) -> int | None:
            if take(name, holder, ttl_s) is None:
                return None
            broken.server._leases[name].token = 1
            return 1

        return same

    replace(broken.server, "take", make)


@breaks(
    ControlSuite,
    "test_a_domain_has_one_unfinished_migration",
    "test_a_domain_and_its_slot_groups_do_not_migrate_at_once",
    "test_a_slot_group_may_migrate_while_its_domain_rests_at_target",
    "test_a_slot_group_begins_to_migrate_under_the_lease_of_its_domain",
)
def migrations_may_overlap(broken: BrokenControls) -> None:
    def start(token: Any, migration: Migration, actor: str, **_: Any) -> Migration:
        broken.server.migrations[migration.id] = migration
        return migration

    replace(broken.server, "start_migration", lambda _: start)


@breaks(ControlSuite, "test_an_operator_sets_options_without_the_lease")
def options_are_replaced(broken: BrokenControls) -> None:
    def set_options(migration_id: str, options: Mapping[str, Any], actor: str) -> None:
        stored = broken.server.migrations[migration_id]
        broken.server.migrations[migration_id] = changed(stored, options=dict(options))
        broken.server.note(actor, "options", "")

    replace(broken.server, "set_options", lambda _: set_options)


@breaks(ControlSuite, "test_attempt_numbers_are_never_used_twice")
def attempts_are_counted_from_what_is_there(broken: BrokenControls) -> None:
    def next_attempt(domain: str) -> int:
        return len([one for one in broken.server.migrations.values() if one.domain == domain]) + 1

    replace(broken.server, "next_attempt", lambda _: next_attempt)


@breaks(ControlSuite, "test_steps_are_kept_newest_first")
def steps_are_oldest_first(broken: BrokenControls) -> None:
    replace(broken.server, "steps", lambda steps: lambda migration, limit: steps(migration, 10_000)[::-1][:limit])


@breaks(ControlSuite, "test_chunks_are_planned_once_and_leased_to_one")
def a_second_plan_replaces_the_first(broken: BrokenControls) -> None:
    def make(plan: Any) -> Any:
        def again(run: str, ranges: Sequence[str]) -> None:
            broken.server.drop_run(run)
            plan(run, ranges)

        return again

    replace(broken.server, "plan_chunks", make)


@breaks(ControlSuite, "test_chunks_are_planned_once_and_leased_to_one")
def chunks_are_given_to_everybody(broken: BrokenControls) -> None:
    def take(run: str, ttl_s: float) -> Chunk | None:
        return next((chunk for chunk in broken.server.chunks(run) if not chunk.done), None)

    replace(broken.server, "take_chunk", lambda _: take)


@breaks(ControlSuite, "test_checkpoint_is_what_the_next_holder_goes_on_from")
def checkpoints_of_lost_chunks_are_taken(broken: BrokenControls) -> None:
    def checkpoint(chunk: Chunk, _ttl_s: float) -> None:
        broken.server._runs[chunk.run][0].chunk = chunk

    replace(broken.server, "checkpoint", lambda _: checkpoint)


@breaks(ControlSuite, "test_quarantine_is_kept_by_key_oldest_first")
def quarantine_keeps_the_first_reason(broken: BrokenControls) -> None:
    def quarantine(migration_id: str, rows: Sequence[QuarantineRow]) -> None:
        kept = broken.server._quarantine.setdefault(migration_id, {})
        for row in rows:
            kept.setdefault((row.kind, row.key), row)

    replace(broken.server, "quarantine", lambda _: quarantine)


@breaks(ControlSuite, "test_a_document_that_is_ensured_is_the_first_one_whoever_comes_later")
def the_last_document_wins(broken: BrokenControls) -> None:
    def make(_: Any) -> Any:
        async def ensure_document(migration_id: str, name: str, value: Any) -> Any:
            broken.server.documents[migration_id, name] = dict(value)
            return dict(value)

        return ensure_document

    on_client(broken, "ensure_document", make)


@breaks(ControlSuite, "test_documents_are_replaced_by_name")
def documents_are_merged(broken: BrokenControls) -> None:
    def make(_put: Any) -> Any:
        async def merge(migration_id: str, name: str, value: Mapping[str, Any]) -> None:
            broken.server.documents.setdefault((migration_id, name), {}).update(value)

        return merge

    on_client(broken, "put_document", make)


@breaks(ControlSuite, "test_audit_log_keeps_who_did_what_newest_first")
def audit_is_oldest_first(broken: BrokenControls) -> None:
    async def audit_log(limit: int = 100) -> list[Any]:
        return broken.server.audit[:limit]

    on_client(broken, "audit_log", lambda _: audit_log)
