"""A keyspace's schema, what it says of itself, and the tokens of coordinators - on a real Cassandra."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from datalayer.errors import (
    Closed,
    ConfigurationError,
    DatalayerError,
    LostLease,
    PreconditionFailed,
    SchemaAhead,
    SchemaBehind,
    Unavailable,
)
from datalayer.settings import BackendUrl
from datalayer.stores.base import MetaRow, Token
from datalayer.stores.cassandra.backend import CassandraBackend, create_backend
from tests.integration.cassandra_backends import CLOCK, opened, within
from tests.servers import Servers

pytestmark = pytest.mark.servers


def _unopened(url: str) -> CassandraBackend:
    return create_backend("cassandra", BackendUrl.parse(url), pool_max=5, clock=CLOCK)


def _keyspace(servers: Servers) -> str:
    """The URL of a keyspace that does not exist yet."""
    where, query = servers.cassandra().url.split("/?")
    return f"{where}/backend_{uuid.uuid4().hex[:8]}?{query}"


@pytest.fixture
async def backend(servers: Servers) -> AsyncIterator[CassandraBackend]:
    async with opened(_keyspace(servers)) as backend:
        yield backend


async def test_a_keyspace_is_behind_until_its_schema_was_made(servers: Servers) -> None:
    backend = _unopened(_keyspace(servers))
    await backend.open()
    try:
        with pytest.raises(SchemaBehind, match="datalayer schema upgrade"):
            await backend.ensure_schema(create=False)
        with pytest.raises(SchemaBehind):
            await backend.store("messages", 0).empty()
        await backend.ensure_schema(create=True)
        await backend.ensure_schema(create=True)
        await backend.ensure_schema(create=False)
        assert await backend.store("messages", 0).empty()
    finally:
        await backend.close()


async def test_a_schema_half_made_is_finished(backend: CassandraBackend) -> None:
    await backend._rows("DELETE FROM {keyspace}.datalayer_schema WHERE part = 'backend' AND version = 2", write=True)
    await backend.store("messages", 0).drop()
    with pytest.raises(SchemaBehind):
        await backend.ensure_schema(create=False)
    await backend.ensure_schema(create=True)
    assert await backend.store("messages", 0).empty()


async def test_a_newer_schema_is_refused(backend: CassandraBackend) -> None:
    await backend._rows("INSERT INTO {keyspace}.datalayer_schema (part, version) VALUES ('backend', 999)", write=True)
    for create in (False, True):
        with pytest.raises(SchemaAhead, match="999"):
            await backend.ensure_schema(create=create)


async def test_meta_rows_come_back_and_never_go_back(backend: CassandraBackend) -> None:
    assert await backend.read_meta() == {}
    first = MetaRow("messages", 0, "deployment", "authority", 5)
    other = MetaRow("messages", 3, "deployment", "copy", 7)
    for row in (first, other, first):
        await backend.write_meta(row)
    assert await backend.read_meta() == {("messages", 0): first, ("messages", 3): other}
    newer = MetaRow("messages", 0, "deployment", "retired", 6)
    await backend.write_meta(newer)
    await backend.write_meta(MetaRow("messages", 0, "deployment", "copy", 5))
    assert (await backend.read_meta())["messages", 0] == newer


async def test_of_many_coordinators_at_once_the_newest_stays(backend: CassandraBackend) -> None:
    tokens = [Token(f"m{value}", "messages", 1, value) for value in range(1, 9)]
    done = await asyncio.gather(*(backend.raise_token(token) for token in tokens), return_exceptions=True)
    assert done[-1] is None
    assert {type(one) for one in done} <= {type(None), LostLease}
    await backend.raise_token(tokens[-1])
    for token in tokens[:-1]:
        with pytest.raises(LostLease, match="messages"):
            await backend.raise_token(token)
    await backend.raise_token(Token("u1", "users", 1, 1))  # the control: domains do not shut each other out


async def test_a_domain_that_needs_compare_and_set_is_refused(servers: Servers) -> None:
    backend = _unopened(_keyspace(servers))
    assert backend.refuses("messages") is None
    assert backend.refuses("users") == "users needs compare-and-set"
    with pytest.raises(ConfigurationError, match="compare-and-set"):
        backend.store("users", 0)


async def test_use_before_open_and_after_close_says_closed(servers: Servers) -> None:
    backend = _unopened(_keyspace(servers))
    with pytest.raises(Closed):
        await backend.ping(within(1))
    await backend.open()
    await backend.ping(within(5))
    await backend.close()
    await backend.close()
    with pytest.raises(Closed):
        await backend.ping(within(1))


@pytest.mark.parametrize(
    ("where", "error", "says"),
    [
        ("cassandra://app:s3cr3t@127.0.0.1:1/app", Unavailable, "Connection refused"),
        ("cassandra://app:s3cr3t@nowhere.invalid/app", Unavailable, "resolved"),
    ],
)
async def test_open_says_in_one_sentence_why_nothing_answers(
    where: str, error: type[DatalayerError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        await _unopened(where).open()
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_open_names_the_data_centres_that_there_are(servers: Servers) -> None:
    url = _keyspace(servers).replace("local_dc=", "local_dc=not_")
    with pytest.raises(PreconditionFailed, match=r"no data centre 'not_.*set local_dc in its URL to"):
        await _unopened(url).open()


async def test_a_keyspace_s_name_must_be_plain() -> None:
    for name in ("Chat", "chat-1", "1chat", "x" * 49, "a%22%3B"):
        with pytest.raises(ConfigurationError):
            _unopened(f"cassandra://127.0.0.1/{name}")
