"""A Redis server and a cluster as a backend: what they say of themselves, and what a caller is told of each fault."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from datalayer.clock import SystemClock
from datalayer.errors import (
    Closed,
    ConfigurationError,
    DatalayerError,
    DeadlineExceeded,
    LostLease,
    Outcome,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    Unavailable,
)
from datalayer.stores.base import MetaRow, Token
from datalayer.stores.redis.backend import RedisBackend
from datalayer.stores.redis.faults import Refused
from datalayer.stores.redis.scripts import Script, command
from tests.integration.redis_backends import opened, prefixed, session_of, unopened, within
from tests.servers import Servers
from tests.servers.proxy import TcpProxy

pytestmark = pytest.mark.servers

PUT = Script("return redis.call('SET', KEYS[1], ARGV[1])")
ADD = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


@pytest.fixture(params=["server", "cluster"])
def url(request: pytest.FixtureRequest, servers: Servers) -> str:
    if request.param == "server":
        return servers.redis().create_database()
    return prefixed(servers.redis_cluster().url)


@pytest.fixture
async def backend(url: str) -> AsyncIterator[RedisBackend]:
    async with opened(url) as backend:
        yield backend


async def test_meta_rows_are_kept_by_domain_and_attempt_and_a_later_epoch_stays(backend: RedisBackend) -> None:
    rows = [
        MetaRow("sessions", 0, "d1", "authority", 3),
        MetaRow("sessions", 4, "d1", "copy", 3),
        MetaRow("presence", 0, "d1", "authority", 1),
    ]
    for row in rows:
        await backend.write_meta(row)
    await backend.write_meta(MetaRow("sessions", 0, "d1", "retired", 2))
    assert await backend.read_meta() == {(row.domain, row.attempt): row for row in rows}
    retired = MetaRow("sessions", 0, "d1", "retired", 4)
    await backend.write_meta(retired)
    assert (await backend.read_meta())["sessions", 0] == retired


async def test_an_older_coordinator_has_lost_its_lease(backend: RedisBackend) -> None:
    await backend.raise_token(Token("m1", "sessions", 4, 7))
    await backend.raise_token(Token("m1", "sessions", 4, 7))
    await backend.raise_token(Token("m2", "presence", 1, 2))
    with pytest.raises(LostLease, match="newer coordinator of sessions"):
        await backend.raise_token(Token("m0", "sessions", 3, 6))


async def test_two_prefixes_on_one_server_do_not_meet(servers: Servers) -> None:
    url = servers.redis().create_database()
    async with opened(f"{url}?prefix=first") as first, opened(f"{url}?prefix=second") as second:
        await first.write_meta(MetaRow("sessions", 0, "d1", "authority", 3))
        assert not await second.read_meta()


async def test_a_script_is_sent_whole_to_a_server_that_does_not_know_it(url: str) -> None:
    async with session_of(url) as session:
        keys = [f"s:{{{number}}}".encode() for number in range(12)]
        calls = [ADD.call([key], (number,)) for number, key in enumerate(keys)]
        for times in (1, 2, 3):
            assert await session.batch(calls, write=True) == [number * times for number in range(12)]
            if times == 2:
                await session.of_primaries(command("SCRIPT", "FLUSH"))
        await session.batch([command("DEL", key) for key in keys], write=True)


async def test_an_answer_that_came_too_late_is_nobodys(servers: Servers) -> None:
    url = servers.redis().create_database()
    with TcpProxy.before(url) as proxy:
        async with session_of(proxy.url(url), pool_max=1) as session:
            await session.run(command("SET", b"a", "of a"), write=True)
            await session.run(command("SET", b"b", "of b"), write=True)
            proxy.hang_replies()
            with pytest.raises(DeadlineExceeded):
                await session.run(command("GET", b"a"), write=False, deadline=within(0.2))
            proxy.restore()
            await session.run(command("PING"), write=False)
            proxy.hang_replies()
            with pytest.raises(OutcomeUnknown):
                await session.run(command("SET", b"a", "again"), write=True, deadline=within(0.2))
            proxy.restore()
            await session.run(command("PING"), write=False)
            proxy.hang_replies()
            cancelled = asyncio.ensure_future(session.run(command("GET", b"a"), write=False))
            await asyncio.sleep(0.05)
            cancelled.cancel()
            proxy.restore()
            assert await session.run(command("GET", b"b"), write=False) == b"of b"


async def test_a_write_cut_off_is_unknown_and_one_never_sent_is_not_applied(servers: Servers) -> None:
    url = servers.redis().create_database()
    with TcpProxy.before(url) as proxy:
        async with session_of(proxy.url(url)) as session:
            proxy.hang_replies()
            write = asyncio.ensure_future(session.run(command("SET", b"a", "1"), write=True))
            await asyncio.sleep(0.05)
            proxy.cut()
            with pytest.raises(OutcomeUnknown):
                await write
            with pytest.raises(Unavailable, match="cannot be reached") as error:
                await session.run(command("SET", b"a", "1"), write=True)
            assert error.value.outcome is Outcome.NOT_APPLIED


async def test_a_server_that_restarted_is_used_again_at_once(servers: Servers) -> None:
    server = servers.fresh_redis("restarts")
    async with session_of(server.url) as session:
        await session.run(ADD.call([b"n"], (1,)), write=True)
        server.kill9()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await session.run(ADD.call([b"n"], (1,)), write=True)
        server.start()
        assert await session.run(ADD.call([b"n"], (1,)), write=True) == 2


async def test_a_server_that_evicts_is_refused(servers: Servers) -> None:
    server = servers.fresh_redis("evicts", settings={"maxmemory-policy": "allkeys-lru"})
    with pytest.raises(PreconditionFailed, match="maxmemory-policy is allkeys-lru"):
        async with opened(server.url):
            pass


async def test_logins_are_told_apart_and_never_repeated(servers: Servers) -> None:
    server = servers.fresh_redis("login", settings={"requirepass": "correct-horse"})
    async with opened(server.url) as backend:
        await backend.ping(within(5))
        assert "correct-horse" not in repr(backend._target)
    for url, said in (
        (server.url.replace("correct-horse", "wrong-horse"), "refuses the login"),
        (server.url.replace(":correct-horse@", ""), "asks for a login"),
    ):
        backend = unopened(url)
        with pytest.raises(PreconditionFailed, match=said) as error:
            await backend.open()
        await backend.close()
        chain = f"{error.value!r} {error.value.__cause__!r} {error.value.__context__!r}"
        assert "horse" not in chain


async def test_a_user_without_the_right_is_told(servers: Servers) -> None:
    server = servers.fresh_redis("rights")
    server.ask("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@read", "+info", "+time", "+ping")
    async with session_of(server.url.replace("redis://", "redis://reader:secret@")) as session:
        with pytest.raises(PreconditionFailed, match="does not permit"):
            await session.run(command("SET", b"a", "1"), write=True)


async def test_a_full_server_takes_no_writes_and_says_why(servers: Servers) -> None:
    server = servers.fresh_redis("full", settings={"maxmemory": "3mb"})
    async with session_of(server.url) as session:
        fill = [command("SET", b"%d" % number, b"x" * 100_000) for number in range(40)]
        with pytest.raises(Overloaded, match="has reached maxmemory") as error:
            await session.batch(fill, write=True)
        assert error.value.outcome is Outcome.NOT_APPLIED
        with pytest.raises(Overloaded):
            await session.run(PUT.call([b"n"], (b"x" * 1_000_000,)), write=True)


async def test_a_replica_takes_no_writes_and_says_why(servers: Servers) -> None:
    primary, replica = servers.fresh_redis("first"), servers.fresh_redis("second")
    replica.ask("REPLICAOF", primary.host, str(primary.port))
    async with session_of(replica.url) as session:
        for call in (command("SET", b"a", "1"), ADD.call([b"n"], (1,))):
            with pytest.raises(Unavailable, match="is a replica and takes no writes"):
                await session.run(call, write=True)


async def test_a_command_that_makes_no_sense_is_refused(url: str) -> None:
    async with session_of(url) as session:
        await session.run(command("SET", b"{text}", "no number"), write=True)
        with pytest.raises(Refused, match=r"refuses the command \(ERR\)") as told:
            await session.run(ADD.call([b"{text}"], (1,)), write=True)
        assert "not an integer" in str(told.value.__cause__)
        await session.run(command("DEL", b"{text}"), write=True)


async def test_replicas_that_do_not_confirm_leave_a_write_unknown(servers: Servers) -> None:
    primary, replica = servers.fresh_redis("confirms"), servers.fresh_redis("confirmed")
    async with session_of(f"{primary.url}?wait_replicas=1") as session:
        with pytest.raises(OutcomeUnknown, match="0 of 1 replicas"):
            await session.run(command("SET", b"a", "1"), write=True, deadline=within(0.5))
        replica.ask("REPLICAOF", primary.host, str(primary.port))
        await session.run(command("SET", b"a", "2"), write=True, deadline=within(20))
        assert replica.ask("GET", "a") == "2"


async def test_no_more_requests_are_in_flight_than_allowed(servers: Servers) -> None:
    server = servers.fresh_redis("bounded")
    async with session_of(server.url, pool_max=3) as session:
        await asyncio.gather(*(session.run(ADD.call([b"n"], (1,)), write=True) for _ in range(100)))
        assert len(str(await session.run(command("CLIENT", "LIST"), write=False)).split("id=")) <= 1 + 3
        waiting = [asyncio.ensure_future(session.run(command("BLPOP", b"none", 0), write=False)) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(DeadlineExceeded, match="all connections were busy"):
            await session.run(command("PING"), write=False, deadline=within(0.1))
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await session.run(command("PING"), write=False)


async def test_the_kind_of_url_must_fit_the_server(servers: Servers) -> None:
    node = servers.redis_cluster().url.removeprefix("redis+cluster://").partition(",")[0]
    with pytest.raises(PreconditionFailed, match="is one node of a cluster"):
        async with opened(f"redis://{node}/0"):
            pass
    alone = servers.redis().url.removeprefix("redis://").partition("/")[0]
    with pytest.raises(PreconditionFailed, match="is no cluster"):
        async with opened(f"redis+cluster://{alone}"):
            pass
    with pytest.raises(ConfigurationError, match="names one server"):
        unopened("redis://a,b/0")
    with pytest.raises(ConfigurationError, match="prefix"):
        unopened("redis://a/0?prefix=%7Ba%7D")


async def test_a_closed_backend_says_so(backend: RedisBackend) -> None:
    await backend.close()
    await backend.close()
    with pytest.raises(Closed):
        await backend.ping(within(1))


async def test_clocks_that_differ_are_told(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    class Behind(SystemClock):
        def now_us(self) -> int:
            return super().now_us() - 3_000_000

    backend = unopened(servers.redis().url, clock=Behind())
    with caplog.at_level(logging.WARNING):
        await backend.open()
        await backend.ensure_schema(create=False)
        await backend.close()
    assert "3.0 s ahead of this process's" in caplog.text


async def test_an_address_that_no_client_reaches_is_named(servers: Servers) -> None:
    settings = {"cluster-enabled": "yes", "cluster-announce-ip": "127.0.0.9", "cluster-announce-port": "7"}
    node = servers.fresh_redis("announces", settings=settings)
    node.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    backend = unopened(f"redis+cluster://127.0.0.1:{node.port}")
    with pytest.raises(Unavailable, match=r"127.0.0.9:7.*that the cluster announces.*cluster-announce-ip"):
        await backend.open()
    await backend.close()


async def test_a_cluster_serves_again_after_a_failover(servers: Servers) -> None:
    cluster = servers.fresh_redis_cluster("fails-over")
    async with session_of(cluster.url) as session:
        keys = [b"{%d}" % number for number in range(60)]
        await session.batch([ADD.call([key], (1,)) for key in keys], write=True)
        primary = cluster.primary_of("{7}")
        await session.run(command("WAIT", 1, 5000, key=b"{7}"), write=False)
        primary.kill9()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await session.batch([ADD.call([key], (1,)) for key in keys], write=True, deadline=within(1))
        cluster.await_failover(primary)
        found = await session.batch([command("GET", key) for key in keys], write=False)
        assert set(found) <= {b"1", b"2"}
        await session.batch([ADD.call([key], (1,)) for key in keys], write=True)


async def test_a_slot_that_moves_is_followed(servers: Servers) -> None:
    cluster = servers.fresh_redis_cluster("moves")
    source = cluster.primary_of("{7}")
    target = next(node for node in cluster.nodes[:3] if node is not source)
    slot = str(source.ask("CLUSTER", "KEYSLOT", "{7}"))
    ids = {node: node.text("CLUSTER", "MYID") for node in (source, target)}
    async with session_of(cluster.url) as session:
        keys = [b"{7}:%d" % number for number in range(20)]
        await session.batch([ADD.call([key], (1,)) for key in keys], write=True)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        for key in keys[:10]:
            source.ask("MIGRATE", target.host, str(target.port), key.decode(), "0", "5000")
        # half of the keys are answered by ASK
        assert await session.batch([ADD.call([key], (1,)) for key in keys], write=True) == [2] * 20
        for key in keys[10:]:
            source.ask("MIGRATE", target.host, str(target.port), key.decode(), "0", "5000")
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        # now all are answered by MOVED, once
        assert await session.batch([ADD.call([key], (1,)) for key in keys], write=True) == [3] * 20
        assert session._owners[int(slot)] == (target.host, target.port)


async def test_every_error_is_one_of_the_librarys(servers: Servers) -> None:
    async with session_of(servers.redis().create_database()) as session:
        for call in (command("NO SUCH COMMAND"), command("GET"), command("INCR", b"x", "y"), ADD.call([b"x"], ("z",))):
            with pytest.raises(DatalayerError):
                await session.run(call, write=True)
