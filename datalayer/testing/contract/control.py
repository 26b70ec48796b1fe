"""What a control store promises: routes and epochs, the fleet, leases with fencing tokens, and the migrations' books."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from datalayer.control.base import QuarantineRow, coordinator_lease
from datalayer.errors import Closed, LostLease, PreconditionFailed
from datalayer.routing.route import Phase, Place
from datalayer.testing.contract.control_fixture import ControlFixture
from datalayer.testing.contract.fixture import outcomes, refused

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from datalayer.control.base import Control, Migration
    from datalayer.stores.base import Token

TASKS = 10


class ControlSuite:
    """Run it on a ControlFixture; IntentLogSuite covers the intents."""

    async def _migrating(self, fixture: ControlFixture) -> tuple[Control, Token, Migration]:
        control = await fixture.control()
        token = await fixture.token(control, fixture.name("domain"))
        await control.ensure_routes({token.domain: Place("main")})
        return control, token, await control.start_migration(token, fixture.migration(token), actor="ann")

    # the store
    async def test_deployment_has_one_lasting_id(self, fixture: ControlFixture) -> None:
        first, second = await fixture.control(), await fixture.control()
        assert await first.deployment() == await second.deployment() == await first.deployment()
        assert await first.deployment()

    async def test_open_again_keeps_everything(self, fixture: ControlFixture) -> None:
        control, token, migration = await self._migrating(fixture)
        await control.close()
        await control.close()
        again = await fixture.control()
        await again.open(create=True)
        assert [one.id for one in await again.migrations(token.domain)] == [migration.id]
        assert token.domain in (await again.routings())[1]

    # routes
    async def test_first_placement_is_published_once(self, fixture: ControlFixture) -> None:
        control, domain = await fixture.control(), fixture.name("domain")
        await control.ensure_routes({domain: Place("main", 3)})
        before = (await control.routings())[1][domain]
        assert (before.phase, before.source, before.target, before.epoch) == (Phase.SOURCE, Place("main", 3), None, 1)
        await control.ensure_routes({domain: Place("elsewhere")})
        assert (await control.routings())[1][domain] == before

    async def test_racing_first_placements_publish_one(self, fixture: ControlFixture) -> None:
        clients = [await fixture.control(), await fixture.control()]
        domain = fixture.name("domain")
        _, errors = await outcomes(
            [clients[at % 2].ensure_routes({domain: Place(f"backend-{at}")}) for at in range(TASKS)]
        )
        assert not errors
        routes = [(await client.routings())[1][domain] for client in clients]
        assert routes[0] == routes[1]
        assert routes[0].epoch == 1

    async def test_publish_raises_epoch_and_news_and_sets_the_phase(self, fixture: ControlFixture) -> None:
        control, token, migration = await self._migrating(fixture)
        peer = await fixture.control()
        news, before = await peer.routings()
        wanted = replace(fixture.routing(token), epoch=77, canary_pct=12, floor=(1 << 53) + 1)
        published = await control.publish(token, wanted, actor="ann")
        assert published == replace(wanted, epoch=before[token.domain].epoch + 1)
        later, routes = await peer.routings()
        assert later > news
        assert routes[token.domain] == published
        assert [one.phase for one in await peer.migrations(token.domain) if one.id == migration.id] == ["dual"]
        again = await control.publish(token, replace(published, phase=Phase.ARMED), actor="ann")
        assert again.epoch == published.epoch + 1

    async def test_publish_with_an_old_token_changes_nothing(self, fixture: ControlFixture) -> None:
        control, token, _ = await self._migrating(fixture)
        await control.release(coordinator_lease(token.domain), token.value)
        newer = await fixture.token(control, token.domain)
        before = await control.routings()
        await refused(LostLease, control.publish(token, fixture.routing(token), actor="ann"))
        assert (await control.routings())[1][token.domain] == before[1][token.domain]
        await control.publish(newer, fixture.routing(newer), actor="ann")

    async def test_waiting_for_news_ends_with_the_next_publish(self, fixture: ControlFixture) -> None:
        control, token, _ = await self._migrating(fixture)
        peer = await fixture.control()
        news, _ = await peer.routings()

        async def published() -> None:
            # Left to run first, so that the wait has begun.
            await asyncio.sleep(0.05)
            await control.publish(token, fixture.routing(token), actor="ann")

        started = fixture.clock.monotonic()
        seen, _ = await asyncio.gather(peer.wait_news(news, fixture.timeout_s, poll_s=0.02), published())
        assert seen > news
        assert fixture.clock.monotonic() - started < fixture.timeout_s / 2, "the wait did not end with the news"

    async def test_waiting_for_news_ends_at_once_where_it_is_known_already(self, fixture: ControlFixture) -> None:
        control, token, _ = await self._migrating(fixture)
        news, _ = await control.routings()
        await control.publish(token, fixture.routing(token), actor="ann")
        started = fixture.clock.monotonic()
        assert await control.wait_news(news, fixture.timeout_s, poll_s=0.05) > news
        assert fixture.clock.monotonic() - started < fixture.timeout_s / 2

    async def test_waiting_for_news_ends_at_its_timeout(self, fixture: ControlFixture) -> None:
        control = await fixture.control()
        news, _ = await control.routings()
        started = fixture.clock.monotonic()
        assert await control.wait_news(news, 0.1, poll_s=0.02) >= news
        assert fixture.clock.monotonic() - started < 10.0

    # fleet
    async def test_a_registered_process_is_listed_until_it_leaves(self, fixture: ControlFixture) -> None:
        control, domain = await fixture.control(), fixture.name("domain")
        info = fixture.process()
        await control.register(info, {domain: 3})
        peer = await fixture.control()
        (listed,) = [one for one in await peer.processes() if one.id == info.id]
        assert (listed.host, listed.pid, listed.boot_id, listed.name) == (info.host, info.pid, info.boot_id, info.name)
        assert listed.epochs[domain] == 3
        assert listed.lease_left_s > 0
        assert 0 <= listed.seen_ago_s < 20
        await control.leave(info.id)
        await control.leave(info.id)
        assert [one for one in await peer.processes() if one.id == info.id] == []
        await refused(Closed, control.renew(info.id, {domain: 4}))

    async def test_behind_names_those_that_have_not_acknowledged(self, fixture: ControlFixture) -> None:
        control, domain, other = await fixture.control(), fixture.name("domain"), fixture.name("domain")
        slow, quick, silent = fixture.process(), fixture.process(), fixture.process()
        for info, epochs in ((slow, {domain: 1}), (quick, {domain: 1, other: 9}), (silent, {other: 9})):
            await control.register(info, epochs)
        own = {slow.id, quick.id, silent.id}

        async def behind(epoch: int) -> set[str]:
            return {one.id for one in await control.behind(domain, epoch)} & own

        assert await behind(2) == own
        news = await control.renew(quick.id, {domain: 2, other: 9})
        assert news == (await control.routings())[0]
        assert await behind(2) == {slow.id, silent.id}
        await control.renew(slow.id, {domain: 5})
        assert await behind(2) == {silent.id}, "a later epoch acknowledges the earlier ones"
        assert await behind(1) == {silent.id}
        await control.leave(silent.id)
        assert await behind(5) == {quick.id}

    async def test_a_lease_that_is_not_renewed_runs_out_and_stays_listed(self, fixture: ControlFixture) -> None:
        control, domain = await fixture.control(), fixture.name("domain")
        info = fixture.process()
        await control.register(info, {domain: 1})
        await control.renew(info.id, {domain: 1}, lease_s=0.05)

        async def over() -> bool:
            return any(one.id == info.id and one.lease_left_s <= 0 for one in await control.processes())

        await fixture.until(over, "the lease to run out")
        assert info.id in {one.id for one in await control.behind(domain, 2)}, "a dead process blocks until removed"
        await control.renew(info.id, {domain: 2})
        assert info.id not in {one.id for one in await control.behind(domain, 2)}

    async def test_deregister_removes_by_globs_and_is_audited(self, fixture: ControlFixture) -> None:
        control, domain = await fixture.control(), fixture.name("domain")
        host = fixture.name("host")
        infos = [fixture.process(f"{host}-{at}", 100 + at) for at in range(5)]
        for info in infos:
            await control.register(info, {domain: 1})
        removed = await control.deregister([f"{host}-1", infos[2].name, f"{host}-3:*"], actor="ann")
        assert {one.id for one in removed} == {infos[1].id, infos[2].id, infos[3].id}
        left = {one.id for one in await control.processes()}
        assert {info.id for info in infos} & left == {infos[0].id, infos[4].id}
        await refused(Closed, control.renew(infos[1].id, {domain: 2}))
        assert any(row.actor == "ann" and host in row.detail for row in await control.audit_log(50))
        assert await control.deregister([f"nobody-{host}"], actor="ann") == []

    # leases
    async def test_a_lease_has_one_holder_and_rising_tokens(self, fixture: ControlFixture) -> None:
        control, peer, name = await fixture.control(), await fixture.control(), fixture.name("lease")
        first = await control.take(name, "ann", 60.0)
        assert first is not None
        assert await peer.take(name, "bob", 60.0) is None
        holder = await peer.holder(name)
        assert holder is not None
        assert holder[0] == "ann"
        assert 0 < holder[1] <= 61
        await control.keep(name, first, 60.0)
        await control.release(name, first)
        assert await peer.holder(name) is None
        second = await peer.take(name, "bob", 60.0)
        assert second is not None
        assert second > first
        await control.release(name, first)
        await refused(LostLease, control.keep(name, first, 60.0))
        assert (await peer.holder(name) or ("", 0.0))[0] == "bob"

    async def test_a_holder_that_takes_its_lease_again_keeps_it(self, fixture: ControlFixture) -> None:
        control, peer, name = await fixture.control(), await fixture.control(), fixture.name("lease")
        first = await control.take(name, "ann", 60.0)
        again = await control.take(name, "ann", 300.0)
        assert first is not None
        assert again is not None
        assert again >= first
        await control.keep(name, again, 300.0)
        held = await peer.holder(name)
        assert held is not None
        assert held[1] > 100
        assert await peer.take(name, "bob", 60.0) is None

    async def test_racing_takers_of_a_lease_have_one_winner(self, fixture: ControlFixture) -> None:
        clients, name = [await fixture.control(), await fixture.control()], fixture.name("lease")
        results, errors = await outcomes([clients[at % 2].take(name, f"h{at}", 60.0) for at in range(TASKS)])
        assert not errors
        assert len([token for token in results if token is not None]) == 1

    async def test_a_lease_that_ran_out_goes_to_the_next_with_a_higher_token(self, fixture: ControlFixture) -> None:
        control, name = await fixture.control(), fixture.name("lease")
        first = await control.take(name, "ann", 0.05)
        assert first is not None
        taken: list[int] = []

        async def free() -> bool:
            token = await control.take(name, "bob", 60.0)
            if token is not None:
                taken.append(token)
            return token is not None

        await fixture.until(free, "the lease to run out")
        assert taken[0] > first
        await refused(LostLease, control.keep(name, first, 60.0))

    # migrations
    async def test_a_domain_has_one_unfinished_migration(self, fixture: ControlFixture) -> None:
        control, token, migration = await self._migrating(fixture)
        (stored,) = await control.migrations(token.domain)
        assert (stored.id, stored.source, stored.target) == (migration.id, migration.source, migration.target)
        assert (stored.attempt, dict(stored.options), stored.milestones) == (1, {"rate": 5}, frozenset())
        second = replace(fixture.migration(token), id=f"{migration.id}-2", attempt=2)
        await refused(PreconditionFailed, control.start_migration(token, second, actor="ann"))
        await control.update_migration(token, migration.id, milestones=frozenset({"completed"}))
        await control.start_migration(token, second, actor="ann")
        assert [one.id for one in await control.migrations(token.domain)] == [second.id, migration.id]
        assert second.id in {one.id for one in await control.migrations()}

    async def test_a_domain_and_its_slot_groups_do_not_migrate_at_once(self, fixture: ControlFixture) -> None:
        clients = [await fixture.control(), await fixture.control()]
        for turn in range(6):
            domain = fixture.name("domain")
            names = [domain, *(f"{domain}/7/{first}-{first + 63}" for first in (0, 64, 128))]
            tokens = [await fixture.token(clients[0], name) for name in (names if turn % 2 else names[::-1])]
            starts: list[Awaitable[Any]] = [
                clients[at % 2].start_migration(token, fixture.migration(token), actor="ann")
                for at, token in enumerate(tokens)
            ]
            begun, errors = await outcomes(starts)
            assert {type(error) for error in errors} == {PreconditionFailed}
            whole = [migration for migration in begun if migration.domain == domain]
            assert len(begun) == (1 if whole else 3), "either the domain moves, or its groups do"
            for migration in begun:
                token = next(one for one in tokens if one.domain == migration.domain)
                await clients[0].update_migration(token, migration.id, milestones=frozenset({"cancelled"}))
            other = next(token for token in tokens if (token.domain == domain) != bool(whole))
            again = replace(fixture.migration(other), id=f"{other.migration}-2", attempt=2)
            await clients[1].start_migration(other, again, actor="ann")

    async def test_a_slot_group_may_migrate_while_its_domain_rests_at_target(self, fixture: ControlFixture) -> None:
        control = await fixture.control()
        domain = fixture.name("domain")
        await control.ensure_routes({domain: Place("main")})
        token, part = await fixture.token(control, domain), await fixture.token(control, f"{domain}/7/0-63")
        migration = await control.start_migration(token, fixture.migration(token), actor="ann")
        routing = (await control.routings())[1][domain]
        for phase in (Phase.DUAL, Phase.ARMED, Phase.TARGET, Phase.ARMED_BACK):
            away = replace(routing, phase=phase, target=migration.target, attempt=migration.attempt)
            await control.publish(token, away, actor="ann")
            if phase is not Phase.TARGET:
                await refused(PreconditionFailed, control.start_migration(part, fixture.migration(part), actor="ann"))
            else:
                begun = await control.start_migration(part, fixture.migration(part), actor="ann")
                await control.update_migration(part, begun.id, milestones=frozenset({"completed"}))
                part = replace(part, migration=f"{part.migration}-2", attempt=2)

    async def test_a_slot_group_begins_to_migrate_under_the_lease_of_its_domain(self, fixture: ControlFixture) -> None:
        control, domain = await fixture.control(), fixture.name("domain")
        part = await fixture.token(control, f"{domain}/7/0-63")
        old, new = await fixture.overtaken(control, domain)
        begins = fixture.migration(part)
        await refused(LostLease, control.start_migration(part, begins, actor="ann", within=old))
        assert await control.migrations(part.domain) == []
        await control.start_migration(part, begins, actor="ann", within=new)

    async def test_changes_of_a_migration_need_the_newest_token(self, fixture: ControlFixture) -> None:
        control, token, migration = await self._migrating(fixture)
        changed = await control.update_migration(token, migration.id, flips=3, milestones=frozenset({"backfilled"}))
        assert (changed.flips, set(changed.milestones)) == (3, {"backfilled"})
        await control.release(coordinator_lease(token.domain), token.value)
        await fixture.token(control, token.domain)
        await refused(LostLease, control.update_migration(token, migration.id, flips=4))
        await refused(LostLease, control.record_step(token, "fence", "doing"))
        (stored,) = await control.migrations(token.domain)
        assert stored.flips == 3

    async def test_an_operator_sets_options_without_the_lease(self, fixture: ControlFixture) -> None:
        control, token, migration = await self._migrating(fixture)
        await control.set_options(migration.id, {"max_hold_ms": 100}, actor="bob")
        (stored,) = await control.migrations(token.domain)
        assert dict(stored.options) == {"rate": 5, "max_hold_ms": 100}
        await control.set_options(migration.id, {"rate": 7}, actor="bob")
        (stored,) = await control.migrations(token.domain)
        assert dict(stored.options) == {"rate": 7, "max_hold_ms": 100}
        assert any(row.actor == "bob" for row in await control.audit_log(20))

    async def test_attempt_numbers_are_never_used_twice(self, fixture: ControlFixture) -> None:
        clients, domain = [await fixture.control(), await fixture.control()], fixture.name("domain")
        results, errors = await outcomes([clients[at % 2].next_attempt(domain) for at in range(TASKS)])
        assert not errors
        assert len(set(results)) == TASKS
        assert min(results) >= 1, "0 is the number of the plain names"

    async def test_steps_are_kept_newest_first(self, fixture: ControlFixture) -> None:
        control, token, migration = await self._migrating(fixture)
        for state in ("planned", "doing", "done"):
            await control.record_step(token, "arm journal", state, f"detail {state}")
        steps = await control.steps(migration.id)
        assert [(step.action, step.state) for step in steps][:1] == [("arm journal", "done")]
        assert steps[0].token == token.value
        assert steps[0].detail == "detail done"
        assert [step.seq for step in steps] == sorted((step.seq for step in steps), reverse=True)
        assert len(await control.steps(migration.id, limit=1)) == 1

    # chunks
    async def test_chunks_are_planned_once_and_leased_to_one(self, fixture: ControlFixture) -> None:
        clients, run = [await fixture.control(), await fixture.control()], fixture.name("run")
        ranges = [f"range {at}" for at in range(6)]
        await clients[0].plan_chunks(run, ranges)
        await clients[1].plan_chunks(run, ["another", "plan"])
        planned = await clients[1].chunks(run)
        assert [(chunk.number, chunk.range, chunk.after, chunk.rows, chunk.done) for chunk in planned] == [
            (planned[0].number + at, range_, None, 0, False) for at, range_ in enumerate(ranges)
        ]
        results, errors = await outcomes([clients[at % 2].take_chunk(run, f"h{at}", 60.0) for at in range(9)])
        assert not errors
        taken = [chunk.number for chunk in results if chunk is not None]
        assert sorted(taken) == [chunk.number for chunk in planned], "each to one holder, none twice"

    async def test_checkpoint_is_what_the_next_holder_goes_on_from(self, fixture: ControlFixture) -> None:
        control, run = await fixture.control(), fixture.name("run")
        await control.plan_chunks(run, ["only"])
        first = await control.take_chunk(run, "ann", 0.05)
        assert first is not None
        await control.checkpoint(replace(first, after="k1", rows=10, payload='{"d":1}'), 0.05)
        taken = []

        async def free() -> bool:
            chunk = await control.take_chunk(run, "bob", 60.0)
            if chunk is not None:
                taken.append(chunk)
            return chunk is not None

        await fixture.until(free, "the chunk's lease to run out")
        assert (taken[0].after, taken[0].rows, taken[0].payload) == ("k1", 10, '{"d":1}')
        assert taken[0].lease_token > first.lease_token
        await refused(LostLease, control.checkpoint(replace(first, after="k2", rows=20), 60.0))
        await control.checkpoint(replace(taken[0], after="k9", rows=90, done=True), 60.0)
        assert [(chunk.after, chunk.rows, chunk.done) for chunk in await control.chunks(run)] == [("k9", 90, True)]
        assert await control.take_chunk(run, "cat", 60.0) is None
        await control.drop_run(run)
        await control.drop_run(run)
        assert await control.chunks(run) == []

    # quarantine, documents, audit
    async def test_quarantine_is_kept_by_key_oldest_first(self, fixture: ControlFixture) -> None:
        control, _, migration = await self._migrating(fixture)
        rows = [QuarantineRow("message", bytes([at]) * 32, 10 + at, f"reason {at}", 1000 + at) for at in range(4)]
        await control.quarantine(migration.id, rows)
        newer = replace(rows[1], version=99, reason="another")
        await control.quarantine(migration.id, [newer])
        found = await control.quarantined(migration.id)
        assert {(row.key, row.version, row.reason) for row in found} == {
            (row.key, row.version, row.reason) for row in (rows[0], newer, rows[2], rows[3])
        }
        assert [row.at_us for row in found] == sorted(row.at_us for row in found)
        assert len(await control.quarantined(migration.id, limit=2)) == 2
        await control.release_quarantine(migration.id, [("message", rows[0].key), ("message", b"absent")])
        assert {row.key for row in await control.quarantined(migration.id)} == {row.key for row in rows[1:]}
        assert await control.quarantined(fixture.name("migration")) == []

    async def test_documents_are_replaced_by_name(self, fixture: ControlFixture) -> None:
        control, _, migration = await self._migrating(fixture)
        assert await control.document(migration.id, "verify") is None
        value = {"bins": [1, {"x": None}], "caf\u00e9": "\U0001f680", "n": 1 << 60}
        await control.put_document(migration.id, "verify", value)
        await control.put_document(migration.id, "progress", {"rows": 1})
        assert await (await fixture.control()).document(migration.id, "verify") == value
        await control.put_document(migration.id, "verify", {})
        assert await control.document(migration.id, "verify") == {}
        assert await control.document(migration.id, "progress") == {"rows": 1}

    async def test_a_document_that_is_ensured_is_the_first_one_whoever_comes_later(
        self, fixture: ControlFixture
    ) -> None:
        clients = [await fixture.control() for _ in range(2)]
        name = fixture.name("place")
        values = [{"eu": at} for at in range(TASKS)]
        found = await asyncio.gather(
            *(clients[at % 2].ensure_document(name, "regions", value) for at, value in enumerate(values))
        )
        first = await clients[0].document(name, "regions")
        assert first in values
        assert found == [first] * TASKS
        assert await clients[1].ensure_document(name, "regions", {}) == first

    async def test_audit_log_keeps_who_did_what_newest_first(self, fixture: ControlFixture) -> None:
        control, actor = await fixture.control(), fixture.name("actor")
        for at in range(3):
            await control.audit(actor, f"action {at}", f"detail {at}")
        rows = [row for row in await control.audit_log(50) if row.actor == actor]
        assert [(row.action, row.detail) for row in rows] == [(f"action {at}", f"detail {at}") for at in (2, 1, 0)]
        assert [row.seq for row in rows] == sorted((row.seq for row in rows), reverse=True)
        assert all(row.at_us > 0 for row in rows)
        assert len(await control.audit_log(2)) == 2
