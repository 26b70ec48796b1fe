"""A primary that is killed and its standby promoted, under a DataLayer that stays open.

The oracle: what was acknowledged is in the new primary. It has a control that turns it red.
"""

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest

from datalayer.errors import DatalayerError
from datalayer.layer import DataLayer, LayerOptions
from tests.integration.live import create_schemas
from tests.integration.replicated import by_replica, elsewhere, healthy, settings_for, until, until_healthy
from tests.servers import Servers
from tests.servers.interface import PostgresPair
from tests.servers.proxy import TcpProxy

pytestmark = pytest.mark.servers


@dataclass
class Writers:
    """Appends without end; what was acknowledged, and when."""

    layer: DataLayer
    room: UUID = field(default_factory=uuid4)
    acked: dict[UUID, float] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    async def write(self) -> None:
        while not self.stopped:
            try:
                message = await self.layer.messages.append(self.room, sender_id=self.room, body="x", timeout=2)
                self.acked[message.id] = time.monotonic()
            except DatalayerError as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(0.005)

    def first_after(self, at: float) -> float | None:
        return min((when for when in self.acked.values() if when > at), default=None)


@contextlib.asynccontextmanager
async def failing_over(
    servers: Servers, how: str, *, synchronous: bool
) -> AsyncIterator[tuple[PostgresPair, str, str]]:
    """A pair of its own: (pair, URL for the layer, URL of the database on the standby)."""
    pair = servers.fresh_postgres_pair(f"failing-{how}-{uuid.uuid4().hex[:6]}", synchronous=synchronous)
    url = pair.primary.create_database("app")
    standby = pair.replica.url_of(url)
    try:
        if how == "hosts":
            there = urlsplit(standby)
            yield pair, url.replace("@", f"@{there.hostname}:{there.port},"), standby
        else:
            with TcpProxy.before(url) as proxy:
                promote = pair.replica.promote

                def promote_and_change_the_name() -> None:
                    promote()
                    proxy.lead_to(standby)
                    proxy.drop()

                pair.replica.promote = promote_and_change_the_name  # type: ignore[method-assign]
                yield pair, proxy.url(url), standby
    finally:
        await asyncio.to_thread(pair.replica.kill9)
        await asyncio.to_thread(pair.primary.kill9)


def lost(standby: str, writers: Writers) -> list[UUID]:
    """Acknowledged messages that the new primary does not have."""
    with psycopg.connect(standby) as connection:
        rows = connection.execute("SELECT id FROM messages WHERE conversation_id = %s", (writers.room,)).fetchall()
    found = {row[0] for row in rows}
    return [message_id for message_id in writers.acked if message_id not in found]


@pytest.mark.parametrize("how", ["hosts", "name"])
async def test_a_killed_primary_is_followed_to_its_standby_without_a_lost_write(servers: Servers, how: str) -> None:
    async with failing_over(servers, how, synchronous=True) as (pair, url, standby):
        settings = settings_for(url, standby)
        await create_schemas(settings)
        async with DataLayer.open(settings, options=LayerOptions(name="writer")) as layer:
            await until_healthy(layer)
            writers = Writers(layer)
            tasks = [asyncio.create_task(writers.write()) for _ in range(4)]
            await until(lambda: len(writers.acked) > 200)
            killed_at = time.monotonic()
            await asyncio.to_thread(pair.primary.kill9)
            await asyncio.to_thread(pair.replica.promote)
            promoted_at = time.monotonic()
            await until(lambda: (writers.first_after(promoted_at) or 0) > 0)
            acked = len(writers.acked)
            await until(lambda: len(writers.acked) > acked + 200)
            writers.stopped = True
            await asyncio.gather(*tasks)
            first = writers.first_after(promoted_at)
            assert first is not None
            print(
                f"\nfailover by {how}: {len(writers.acked)} acknowledged, {len(lost(standby, writers))} lost; first write "
                f"{first - promoted_at:.3f} s after the switch, {first - killed_at:.3f} s after the kill; {dict(writers.errors)}"
            )
            assert lost(standby, writers) == []
            with layer.reading("primary"):
                page = await layer.messages.history(writers.room, limit=100)
            assert len(page.items) == 100
            assert (await layer.health())["ready"] is True
            reason = layer.replicas()["main"][0]["reason"]
            assert "no standby" in reason or "standby" in reason, "the replica is the primary now"


async def test_after_a_failover_a_replica_serves_again_once_it_follows_the_new_primary(servers: Servers) -> None:
    async with failing_over(servers, "hosts", synchronous=True) as (pair, url, standby):
        third = servers.fresh_replica(pair.primary, f"third-{uuid.uuid4().hex[:6]}")
        settings = settings_for(url, third.url_of(standby))
        await create_schemas(settings)
        async with DataLayer.open(settings) as layer:
            await until_healthy(layer)
            ann = await layer.users.create(username="ann")
            token = await layer.token()
            await asyncio.to_thread(pair.primary.kill9)
            await asyncio.to_thread(pair.replica.promote)
            await until(lambda: "timeline" in layer.replicas()["main"][0]["reason"])
            before = by_replica(layer)

            async def read() -> None:
                with layer.reading_after(token), layer.reading("own_writes", max_lag_s=60):
                    assert await layer.users.get(ann.id) == ann
                with layer.reading("replica", max_lag_s=60):
                    assert await layer.users.get(ann.id) == ann

            await elsewhere(read())
            assert by_replica(layer) == before, "it follows nobody, and has not what the new primary writes"
            there = urlsplit(standby)
            follow = f"host={there.hostname} port={there.port} user={there.username} password={there.password}"
            with psycopg.connect(third.url, autocommit=True) as connection:
                connection.execute(f"ALTER SYSTEM SET primary_conninfo = '{follow}'".encode())
                connection.execute("ALTER SYSTEM SET primary_slot_name = ''")
                connection.execute("SELECT pg_reload_conf()")
            bob = await layer.users.create(username="bob")
            await until(lambda: healthy(layer))
            await until_healthy(layer)
            assert await layer.users.get(bob.id) == bob
            before = by_replica(layer)
            await elsewhere(read())
            assert by_replica(layer) == before + 2, "the old token asks for what the new primary began with"
        await asyncio.to_thread(third.kill9)


async def test_a_standby_that_does_not_hold_up_commits_loses_some(servers: Servers) -> None:
    async with failing_over(servers, "hosts", synchronous=False) as (pair, url, standby):
        settings = settings_for(url)
        await create_schemas(settings)
        await asyncio.to_thread(pair.replica.await_caught_up)
        async with DataLayer.open(settings) as layer:
            writers = Writers(layer)
            tasks = [asyncio.create_task(writers.write()) for _ in range(4)]
            await until(lambda: len(writers.acked) > 50)
            await asyncio.to_thread(pair.replica.kill9)  # one that is only paused has the rest in its socket
            acked = len(writers.acked)
            await until(lambda: len(writers.acked) > acked + 50)
            await asyncio.to_thread(pair.primary.kill9)
            writers.stopped = True
            await asyncio.to_thread(pair.replica.start)
            await asyncio.to_thread(pair.replica.promote)
            await asyncio.gather(*tasks)
            assert len(lost(standby, writers)) > 20
