"""What every control store promises; the Postgres one runs the same claims in tests/integration."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from datalayer.control.base import (
    Control,
    IntentLog,
    Migration,
    ProcessInfo,
    QuarantineRow,
    coordinator_lease,
)
from datalayer.control.memory import MemoryControl, MemoryControlServer
from datalayer.control.store import SqlControl
from datalayer.domains.record import Record
from datalayer.errors import Closed, LostLease, NotFound, PreconditionFailed
from datalayer.routing.route import Phase, Place, Routing
from datalayer.stores.base import Token
from datalayer.stores.sqlite.database import SqliteDatabase

MAIN = Place("main")
CASSANDRA = Place("cassandra", 1)
LEASE = coordinator_lease("messages")


class HandClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now_us(self) -> int:
        return round(self.seconds * 1e6)

    def monotonic(self) -> float:
        return self.seconds

    def boottime(self) -> float:
        return self.seconds


@dataclass
class Store:
    """One control store: further clients of it, and its time."""

    connect: Callable[[], Awaitable[Control]]
    pass_time: Callable[[float], Awaitable[None]]


def process(name: str, host: str = "web1", pid: int = 7) -> ProcessInfo:
    return ProcessInfo(name, host, pid, "boot", f"service-{name}")


def migration(name: str = "m1", domain: str = "messages") -> Migration:
    return Migration(name, domain, 1, MAIN, CASSANDRA, "source", frozenset(), {"rate": 5}, 0, 0, 0)


def record(version: int = 100, *, deleted: bool = False, key: bytes | None = None, body: str = "hi ☃") -> Record:
    fields = (b"s" * 16, body, "text", None, b"", None, '{"a":1}')
    return Record("message", key or os.urandom(32), version, deleted, fields)


async def coordinate(control: Control, holder: str = "ann", ttl_s: float = 60.0) -> Token:
    value = await control.take(LEASE, holder, ttl_s)
    assert value is not None
    return Token("m1", "messages", 1, value)


async def overtaken(control: Control, store: Store) -> Token:
    """A token of a coordinator whose lease ran out and went to another."""
    old = await coordinate(control, "ann", 5.0)
    await store.pass_time(10.0)
    assert await control.take(LEASE, "bob", 60.0) == old.value + 1
    return old


async def gate(control: Control, *, sealed: bool = False) -> tuple[Token, IntentLog]:
    token = await coordinate(control)
    log = control.intents("messages", 1, "target")
    await log.install(token, sealed=sealed)
    return token, log


class ControlContract:
    """Claims about routes, fleet, leases, migrations, chunks and the small tables; subclasses bring the store."""

    # --- routes -----------------------------------------------------------------------------------------------------

    async def test_first_placement_is_published_once(self, store: Store) -> None:
        one, two = await store.connect(), await store.connect()
        await asyncio.gather(one.ensure_routes({"messages": MAIN}), two.ensure_routes({"messages": Place("other")}))
        news, routings = await one.routings()
        await one.ensure_routes({"messages": Place("third"), "users": MAIN})
        again, later = await two.routings()
        assert routings["messages"].epoch == 1
        assert routings["messages"].phase is Phase.SOURCE
        assert later["messages"] == routings["messages"]
        assert later["users"] == Routing("users", 1, Phase.SOURCE, MAIN)
        assert again > news > 0

    async def test_publish_raises_epoch_news_and_phase_together_and_is_audited(self, store: Store) -> None:
        control = await store.connect()
        await control.ensure_routes({"messages": MAIN, "users": MAIN})
        token = await coordinate(control)
        await control.start_migration(token, migration(), actor="op")
        before, _ = await control.routings()
        wanted = Routing("messages", 99, Phase.ARMED, MAIN, CASSANDRA, 1, 25, 17)
        published = await control.publish(token, wanted, actor="op")
        news, routings = await control.routings()
        assert published == replace(wanted, epoch=2) == routings["messages"]
        assert routings["users"].epoch == 1
        assert news == before + 1
        assert (await control.migrations("messages"))[0].phase == "armed"
        assert [row.action for row in await control.audit_log(2)] == ["publish", "start"]

    async def test_publish_with_an_old_token_changes_nothing(self, store: Store) -> None:
        one, two = await store.connect(), await store.connect()
        await one.ensure_routes({"messages": MAIN})
        old = await overtaken(one, store)
        before = await two.routings()
        with pytest.raises(LostLease):
            await one.publish(old, Routing("messages", 0, Phase.DUAL, MAIN, CASSANDRA, 1), actor="ann")
        assert await two.routings() == before
        assert await one.audit_log() == []
        # the control: the newest token is accepted
        new = replace(old, value=old.value + 1)
        assert (await two.publish(new, Routing("messages", 0, Phase.DUAL, MAIN, CASSANDRA, 1), actor="bob")).epoch == 2

    async def test_a_token_given_back_is_refused(self, store: Store) -> None:
        control = await store.connect()
        await control.ensure_routes({"messages": MAIN})
        token = await coordinate(control)
        await control.release(LEASE, token.value)
        with pytest.raises(LostLease):
            await control.publish(token, Routing("messages", 0, Phase.DUAL, MAIN, CASSANDRA, 1), actor="ann")

    async def test_wait_news_returns_when_another_client_publishes(self, store: Store) -> None:
        one, two = await store.connect(), await store.connect()
        await one.ensure_routes({"messages": MAIN})
        token = await coordinate(one)
        seen, _ = await two.routings()
        waiting = asyncio.create_task(two.wait_news(seen, 30.0, poll_s=0.005))
        done, _ = await asyncio.wait({waiting}, timeout=0.05)
        assert not done
        await one.publish(token, Routing("messages", 0, Phase.DUAL, MAIN, CASSANDRA, 1), actor="ann")
        async with asyncio.timeout(5):
            assert await waiting == seen + 1

    async def test_wait_news_that_are_there_already_returns_at_once(self, store: Store) -> None:
        control = await store.connect()
        await control.ensure_routes({"messages": MAIN})
        seen, _ = await control.routings()
        async with asyncio.timeout(5):
            assert await control.wait_news(seen - 1, 30.0, poll_s=10.0) == seen

    # --- fleet ------------------------------------------------------------------------------------------------------

    async def test_behind_names_who_has_not_acknowledged(self, store: Store) -> None:
        control = await store.connect()
        for name in ("a", "b", "c"):
            await control.register(process(name), {})
        await control.renew("a", {"messages": 3, "users": 1})
        await control.renew("b", {"messages": 4})
        assert [info.id for info in await control.behind("messages", 4)] == ["a", "c"]
        assert [info.id for info in await control.behind("messages", 3)] == ["c"]
        assert [info.epochs for info in await control.processes()] == [{"messages": 3, "users": 1}, {"messages": 4}, {}]

    async def test_a_lease_runs_out_by_the_stores_own_clock(self, store: Store) -> None:
        control = await store.connect()
        await control.register(process("a"), {})
        await control.renew("a", {}, lease_s=25.0)
        before = (await control.processes())[0]
        await store.pass_time(30.0)
        after = (await control.processes())[0]
        assert 0 < before.lease_left_s < 25.01
        assert after.lease_left_s < 0
        assert after.seen_ago_s >= 29.9
        await control.renew("a", {}, lease_s=60.0)
        assert (await control.processes())[0].lease_left_s > 50

    async def test_renew_returns_the_news(self, store: Store) -> None:
        control = await store.connect()
        await control.ensure_routes({"messages": MAIN})
        await control.register(process("a"), {})
        assert await control.renew("a", {}) == (await control.routings())[0]

    @pytest.mark.parametrize("pattern", ["a?", "web2*", "service-a1", "web2:*"])
    async def test_deregister_matches_id_host_name_and_pid(self, store: Store, pattern: str) -> None:
        control = await store.connect()
        await control.register(process("a1", "web2", 11), {})
        await control.register(process("b1", "web1", 12), {})
        removed = await control.deregister(["nobody", pattern], actor="op")
        assert [info.id for info in removed] == ["a1"]
        assert [info.id for info in await control.processes()] == ["b1"]
        assert [(row.actor, row.action) for row in await control.audit_log()] == [("op", "deregister")]
        with pytest.raises(Closed):
            await control.renew("a1", {})
        await control.renew("b1", {})

    async def test_leaving_twice_is_no_error(self, store: Store) -> None:
        control = await store.connect()
        await control.register(process("a"), {})
        await control.leave("a")
        await control.leave("a")
        assert await control.processes() == []

    # --- leases -----------------------------------------------------------------------------------------------------

    async def test_of_many_that_take_a_lease_at_once_one_gets_it(self, store: Store) -> None:
        clients = [await store.connect() for _ in range(2)]
        for _ in range(5):
            tokens = await asyncio.gather(*(clients[at % 2].take("x", f"holder-{at}", 5.0) for at in range(6)))
            assert len([token for token in tokens if token is not None]) == 1
            await store.pass_time(10.0)

    async def test_tokens_rise_and_are_never_used_twice(self, store: Store) -> None:
        one, two = await store.connect(), await store.connect()
        first = await one.take("x", "ann", 60)
        assert first is not None
        await one.release("x", first)
        second = await two.take("x", "ann", 60)
        assert second == first + 1
        await one.release("x", first)  # late: no error, and no effect
        assert await one.take("x", "bob", 60) is None

    async def test_taking_ones_own_lease_again_prolongs_it(self, store: Store) -> None:
        control = await store.connect()
        token = await control.take("x", "ann", 5)
        assert await control.take("x", "ann", 500) == token
        held = await control.holder("x")
        assert held is not None
        assert held[0] == "ann"
        assert held[1] > 400

    async def test_keep_fails_once_somebody_else_has_it(self, store: Store) -> None:
        control = await store.connect()
        token = await control.take("x", "ann", 5.0)
        assert token is not None
        await store.pass_time(10.0)
        assert await control.holder("x") is None
        await control.keep("x", token, 5.0)  # nobody took it: it lives again
        await store.pass_time(10.0)
        assert await control.take("x", "bob", 60) == token + 1
        with pytest.raises(LostLease):
            await control.keep("x", token, 60)

    # --- migrations -------------------------------------------------------------------------------------------------

    async def test_of_two_that_start_a_migration_at_once_one_succeeds(self, store: Store) -> None:
        one, two = await store.connect(), await store.connect()
        token = await coordinate(one)
        results = await asyncio.gather(
            one.start_migration(token, migration("m1"), actor="ann"),
            two.start_migration(token, migration("m2"), actor="ann"),
            return_exceptions=True,
        )
        refused = [result for result in results if isinstance(result, BaseException)]
        assert len(refused) == 1
        assert isinstance(refused[0], PreconditionFailed)
        assert len(await one.migrations("messages")) == 1

    async def test_a_finished_migration_lets_the_next_one_start(self, store: Store) -> None:
        control = await store.connect()
        token = await coordinate(control)
        await control.start_migration(token, migration("m1"), actor="ann")
        with pytest.raises(PreconditionFailed, match="m1"):
            await control.start_migration(token, migration("m2"), actor="ann")
        await control.update_migration(token, "m1", milestones={"cancelled"})
        await store.pass_time(0.001)
        started = await control.start_migration(token, migration("m2"), actor="ann")
        assert started.started_us > 0
        assert [m.id for m in await control.migrations()] == ["m2", "m1"]
        assert [m.finished for m in await control.migrations()] == [False, True]
        assert await control.migrations("users") == []

    async def test_coordinators_and_operators_options_are_merged(self, store: Store) -> None:
        control = await store.connect()
        token = await coordinate(control)
        await control.start_migration(token, migration(), actor="ann")
        await control.set_options("m1", {"workers": 3, "paused": True}, actor="op")
        updated = await control.update_migration(token, "m1", options={"max_hold": 250}, flips=2)
        assert updated.options == {"rate": 5, "workers": 3, "max_hold": 250}
        assert (updated.flips, updated.paused) == (2, True)
        await control.set_options("m1", {"rate": None, "paused": False}, actor="op")
        stored = (await control.migrations())[0]
        assert (stored.options, stored.paused) == ({"workers": 3, "max_hold": 250}, False)
        assert [row.action for row in await control.audit_log()] == ["options", "options", "start"]
        with pytest.raises(NotFound):
            await control.set_options("m9", {}, actor="op")

    async def test_an_overtaken_coordinator_can_write_nothing(self, store: Store) -> None:
        control = await store.connect()
        new = await coordinate(control, "zoe", 5.0)
        await control.start_migration(new, migration(), actor="zoe")
        await store.pass_time(10.0)
        old = await overtaken(control, store)
        log = control.intents("messages", 1, "target")
        for call in (
            control.start_migration(old, migration("m2"), actor="ann"),
            control.update_migration(old, "m1", flips=9),
            control.record_step(old, "Fence", "doing"),
            log.install(old, sealed=False),
            log.fence(old, 1, 5.0, 1.0),
            log.seal(old, 1),
            log.remove(old, keep_fence=False),
        ):
            with pytest.raises(LostLease):
                await call
        assert await control.steps("m1") == []
        assert [(m.id, m.flips) for m in await control.migrations()] == [("m1", 0)]

    async def test_steps_come_newest_first_with_their_token(self, store: Store) -> None:
        control = await store.connect()
        token = await coordinate(control)
        await control.record_step(token, "Fence", "doing", "lapse 0.25 s")
        await control.record_step(token, "Fence", "done")
        steps = await control.steps("m1")
        assert [(s.action, s.state, s.detail, s.token) for s in steps] == [
            ("Fence", "done", "", token.value),
            ("Fence", "doing", "lapse 0.25 s", token.value),
        ]
        assert [s.state for s in await control.steps("m1", 1)] == ["done"]

    async def test_attempt_numbers_are_never_given_twice(self, store: Store) -> None:
        clients = [await store.connect() for _ in range(2)]
        numbers = await asyncio.gather(*(clients[at % 2].next_attempt("messages") for at in range(10)))
        assert sorted(numbers) == list(range(1, 11))
        assert await clients[0].next_attempt("users") == 1

    # --- chunks -----------------------------------------------------------------------------------------------------

    async def test_a_run_is_planned_once(self, store: Store) -> None:
        one, two = await store.connect(), await store.connect()
        await asyncio.gather(one.plan_chunks("r", ["a", "b"]), two.plan_chunks("r", ["c", "d", "e"]))
        planned = await one.chunks("r")
        await one.plan_chunks("r", ["x", "y", "z", "w"])
        assert [chunk.range for chunk in planned] in (["a", "b"], ["c", "d", "e"])
        assert await two.chunks("r") == planned

    async def test_no_two_workers_get_one_chunk(self, store: Store) -> None:
        clients = [await store.connect() for _ in range(2)]
        await clients[0].plan_chunks("r", [str(at) for at in range(5)])
        taken = await asyncio.gather(*(clients[at % 2].take_chunk("r", "worker", 60) for at in range(8)))
        numbers = sorted(chunk.number for chunk in taken if chunk is not None)
        assert len(numbers) == len(set(numbers))
        while (chunk := await clients[0].take_chunk("r", "worker", 60)) is not None:
            numbers.append(chunk.number)
        assert sorted(numbers) == [0, 1, 2, 3, 4]

    async def test_a_checkpoint_of_a_lost_chunk_lands_nowhere(self, store: Store) -> None:
        control = await store.connect()
        await control.plan_chunks("r", ["a"])
        slow = await control.take_chunk("r", "slow", 5.0)
        assert slow is not None
        await control.checkpoint(replace(slow, after="k1", rows=10, payload="{}"), 5.0)
        await store.pass_time(10.0)
        quick = await control.take_chunk("r", "quick", 60)
        assert quick is not None
        assert (quick.after, quick.rows, quick.payload) == ("k1", 10, "{}")
        with pytest.raises(LostLease):
            await control.checkpoint(replace(slow, after="k0", rows=1), 60)
        await control.checkpoint(replace(quick, after="k2", rows=20, done=True), 60)
        await store.pass_time(10.0)
        assert await control.take_chunk("r", "third", 60) is None
        assert [(c.after, c.rows, c.done) for c in await control.chunks("r")] == [("k2", 20, True)]

    async def test_a_dropped_run_may_be_planned_again(self, store: Store) -> None:
        control = await store.connect()
        await control.plan_chunks("r", ["a", "b"])
        await control.drop_run("r")
        await control.drop_run("r")
        assert await control.chunks("r") == []
        await control.plan_chunks("r", ["c"])
        assert [chunk.range for chunk in await control.chunks("r")] == ["c"]

    # --- the small tables -------------------------------------------------------------------------------------------

    async def test_quarantine_keeps_the_newest_reason_of_a_key(self, store: Store) -> None:
        control = await store.connect()
        rows = [QuarantineRow("message", bytes([at, 0, 255]), at, f"reason {at}", 100 - at) for at in range(3)]
        await control.quarantine("m1", rows)
        await control.quarantine("m1", [replace(rows[0], version=9, reason="worse")])
        await control.quarantine("m2", rows[:1])
        named = await control.quarantined("m1")
        assert [row.reason for row in named] == ["reason 2", "reason 1", "worse"]
        assert [row.reason for row in await control.quarantined("m1", 1)] == ["reason 2"]
        await control.release_quarantine("m1", [("message", rows[2].key), ("message", b"unknown")])
        assert [row.key for row in await control.quarantined("m1")] == [rows[1].key, rows[0].key]
        assert len(await control.quarantined("m2")) == 1

    async def test_documents_are_replaced_by_name(self, store: Store) -> None:
        control = await store.connect()
        await control.put_document("m1", "verify", {"bins": [1, 2], "text": "\x00☃"})
        await control.put_document("m1", "progress", {"rows": 1})
        await control.put_document("m1", "progress", {"rows": 2})
        assert await control.document("m1", "verify") == {"bins": [1, 2], "text": "\x00☃"}
        assert await control.document("m1", "progress") == {"rows": 2}
        assert await control.document("m2", "progress") is None

    async def test_the_audit_log_is_newest_first(self, store: Store) -> None:
        control = await store.connect()
        for at in range(3):
            await control.audit("op", f"act {at}", "detail")
        assert [row.action for row in await control.audit_log(2)] == ["act 2", "act 1"]

    async def test_every_client_sees_one_deployment_id(self, store: Store) -> None:
        one, two = await store.connect(), await store.connect()
        assert await one.deployment() == await two.deployment() != ""


class MemoryStore:
    @pytest.fixture
    async def store(self) -> Store:
        clock = HandClock()
        server = MemoryControlServer("control", clock)

        async def connect() -> Control:
            client = MemoryControl(server)
            await client.open(create=True)
            return client

        return Store(connect, hand_time(clock))


class SqliteStore:
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        clock = HandClock()
        clients: list[Control] = []

        async def connect() -> Control:
            database = SqliteDatabase(tmp_path / "control.sqlite", clock, readers=1, synchronous="OFF")
            client = SqlControl(database, clock)
            await client.open(create=True)
            clients.append(client)
            return client

        yield Store(connect, hand_time(clock))
        for client in clients:
            await client.close()


def hand_time(clock: HandClock) -> Callable[[float], Awaitable[None]]:
    async def pass_time(seconds: float) -> None:
        clock.seconds += seconds

    return pass_time


class TestMemory(MemoryStore, ControlContract):
    pass


class TestSqlite(SqliteStore, ControlContract):
    pass
