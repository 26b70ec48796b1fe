"""Redis alone and as a cluster: what was acknowledged survives kills, a killed primary is replaced, nothing is left."""

import os
import threading
import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import NotControllable, Servers, StartFailed
from tests.servers.given import REDIS_CLUSTER_VARIABLE, REDIS_VARIABLE
from tests.servers.ports import is_free
from tests.servers.redis import LocalRedis, LocalRedisCluster
from tests.servers.watchdog import look

# Where servers are given by address there is no local starter to test.
__test__ = not (REDIS_VARIABLE in os.environ or REDIS_CLUSTER_VARIABLE in os.environ)
pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def local() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture(scope="module")
def server(local: Servers) -> LocalRedis:
    server = local.redis()
    assert isinstance(server, LocalRedis)
    assert local.redis() is server
    return server


@pytest.fixture(scope="module")
def cluster(local: Servers) -> LocalRedisCluster:
    cluster = local.redis_cluster()
    assert isinstance(cluster, LocalRedisCluster)
    assert local.redis_cluster() is cluster
    return cluster


def through(cluster: LocalRedisCluster) -> "redis.RedisCluster":
    first = cluster.nodes[-1]
    return redis.RedisCluster(host=first.host, port=first.port, decode_responses=True)


def test_kill9_and_start_keep_what_was_acknowledged(server: LocalRedis) -> None:
    with redis.Redis.from_url(server.create_database(), decode_responses=True) as client:
        for number in range(200):
            client.set(f"key-{number}", number)
        pid = server.pid
        server.kill9()
        assert look(pid) is None
        assert is_free(server.host, server.port)
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        assert [client.get(f"key-{number}") for number in range(200)] == [str(number) for number in range(200)]


def test_stop_and_start_may_be_repeated(server: LocalRedis) -> None:
    server.stop()
    server.stop()
    assert not server.running
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid


def test_pause_hangs_and_resume_answers(server: LocalRedis) -> None:
    answers: list[object] = []
    with redis.Redis.from_url(server.url) as client:
        client.ping()
        server.pause()
        asked = threading.Thread(target=lambda: answers.append(client.ping()))
        try:
            asked.start()
            asked.join(0.3)
            assert not answers
        finally:
            server.resume()
        asked.join(30)
    assert answers == [True]


def test_databases_are_empty_and_apart(server: LocalRedis) -> None:
    first, second = server.create_database(), server.create_database()
    with redis.Redis.from_url(first) as one, redis.Redis.from_url(second) as other:
        one.set("here", 1)
        assert other.dbsize() == 0


def test_settings_of_ones_own(local: Servers) -> None:
    settings = {"requirepass": "secret", "maxmemory": "4mb", "maxmemory-policy": "noeviction"}
    own = local.fresh_redis("own", settings=settings)
    own.kill9()
    own.start()
    with redis.Redis(port=own.port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis.from_url(own.url) as client, pytest.raises(redis.OutOfMemoryError):
        client.mset({f"key-{number}": b"x" * 100_000 for number in range(100)})
    own.stop()


def test_a_server_that_cannot_start_says_why(local: Servers) -> None:
    with pytest.raises(StartFailed, match="no_such_setting"):
        local.fresh_redis("broken", settings={"no_such_setting": "1"})


def test_a_given_redis_is_used_and_not_steered(server: LocalRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REDIS_VARIABLE, server.url)
    with redis.Redis.from_url(server.url) as client:
        client.select(1)
        client.set("taken", 1)
    with Servers() as servers:
        given = servers.redis()
        assert given.url == server.url
        taken, other = given.create_database(), given.create_database()
        assert taken != other
        assert not {taken, other} & {server.url, server.url.removesuffix("/0") + "/1"}
        with pytest.raises(NotControllable, match=rf"127.0.0.1:{server.port} .* cannot be killed"):
            given.kill9()
        with pytest.raises(NotControllable, match=REDIS_VARIABLE):
            servers.fresh_redis("own")


def test_a_cluster_replaces_a_primary_that_was_killed(local: Servers) -> None:
    cluster = local.fresh_redis_cluster("broken")
    with through(cluster) as client:
        for number in range(100):
            client.set(f"key-{number}", number)
            client.wait(1, 1000, target_nodes=client.get_node_from_key(f"key-{number}"))
        primary = cluster.primary_of("key-1")
        began = time.monotonic()
        primary.kill9()
        cluster.await_failover(primary)
        took = time.monotonic() - began
        successor = cluster.primary_of("key-1")
        assert successor is not primary
        assert [client.get(f"key-{number}") for number in range(100)] == [str(number) for number in range(100)]
        client.set("key-1", "after")
    primary.start()
    cluster.await_whole()
    assert cluster.primary_of("key-1") is successor
    cluster.stop()
    print(f"failover after {took:.2f} s")
    assert took < 10


def test_a_cluster_is_killed_whole_and_starts_over_the_same_data(cluster: LocalRedisCluster) -> None:
    with through(cluster) as client:
        for number in range(50):
            client.set(f"kept-{number}", number)
    cluster.kill9()
    assert all(is_free(node.host, node.port) for node in cluster.nodes)
    cluster.start()
    with through(cluster) as client:
        assert [client.get(f"kept-{number}") for number in range(50)] == [str(number) for number in range(50)]


def test_a_paused_primary_is_replaced_and_steps_back(cluster: LocalRedisCluster) -> None:
    primary = cluster.primary_of("paused")
    primary.pause()
    cluster.await_failover(primary)
    with through(cluster) as client:
        client.set("paused", "written")
    primary.resume()
    cluster.await_whole()
    assert cluster.primary_of("paused") is not primary
    with through(cluster) as client:
        assert client.get("paused") == "written"


def test_a_given_cluster_is_used(cluster: LocalRedisCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REDIS_CLUSTER_VARIABLE, cluster.url)
    with Servers() as servers:
        given = servers.redis_cluster()
        assert given.url == cluster.url
        assert not given.nodes
        with pytest.raises(NotControllable, match="cannot be killed"):
            given.kill9()
        with pytest.raises(NotControllable, match=REDIS_CLUSTER_VARIABLE):
            servers.fresh_redis_cluster("own")


def test_closing_ends_all_nodes() -> None:
    with Servers() as servers:
        alone, cluster = servers.fresh_redis("alone"), servers.fresh_redis_cluster("closed")
        pids = [alone.pid, *(node.pid for node in cluster.nodes)]
        folder = servers._folder
        assert folder is not None
        assert folder.exists()
    assert not any(look(pid) for pid in pids)
    assert not folder.exists()
