"""A real OpenSearch as a backend: what it says of itself, foreign indexes, and what a caller is told of each fault."""

import asyncio
import http.server
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.record import Record
from datalayer.domains.search import MessageQuery, Phrase, parse_query, tombstone
from datalayer.errors import (
    Closed,
    ConfigurationError,
    DatalayerError,
    DeadlineExceeded,
    LostLease,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    SchemaBehind,
    StaleRoute,
    Unavailable,
)
from datalayer.schemas.opensearch import SHAPE, alias_of, index_of, mapping
from datalayer.settings import BackendUrl
from datalayer.stores.base import MetaRow, Token
from datalayer.stores.opensearch.backend import OpenSearchBackend, create_backend
from datalayer.stores.opensearch.session import OpenSearchSession
from datalayer.stores.opensearch.target import Target
from tests.servers import Servers
from tests.servers.proxy import TcpProxy

pytestmark = pytest.mark.servers

CLOCK = SystemClock()
ROOM, SENDER = uuid.UUID(int=7), uuid.UUID(int=8)


@pytest.fixture
def url(servers: Servers) -> str:
    return servers.opensearch().url_of(f"backend-{uuid.uuid4().hex[:8]}")


@asynccontextmanager
async def opened(url: str, *, pool_max: int = 8, create: bool = True) -> AsyncIterator[OpenSearchBackend]:
    backend = create_backend("search", BackendUrl.parse(url), pool_max=pool_max, clock=CLOCK)
    try:
        await backend.open()
        if create:
            await backend.ensure_schema(create=True)
        yield backend
    finally:
        await backend.close()


@pytest.fixture
async def backend(url: str) -> AsyncIterator[OpenSearchBackend]:
    async with opened(url) as backend:
        yield backend


@pytest.fixture
async def admin(url: str) -> AsyncIterator[OpenSearchSession]:
    """Somebody with the rights to do anything to the indexes."""
    session = OpenSearchSession("admin", Target.of("admin", BackendUrl.parse(url)), in_flight_max=2)
    yield session
    await session.close()


def document(at: int = 1, version: int = 5, body: str = "hello") -> Record:
    return Record("message_doc", ROOM.bytes + uuid.UUID(int=at).bytes, version, False, (SENDER.bytes, body))


def within(seconds: float = 10.0) -> Deadline:
    return Deadline(CLOCK, seconds)


HELLO = MessageQuery((Phrase(("hello",)),), (ROOM,))


async def test_meta_rows_are_kept_by_domain_and_attempt_and_a_later_epoch_stays(backend: OpenSearchBackend) -> None:
    rows = [MetaRow("search", 0, "d1", "authority", 3), MetaRow("search", 4, "d1", "copy", 3)]
    for row in rows:
        await backend.write_meta(row)
    await backend.write_meta(MetaRow("search", 0, "d1", "retired", 2))
    assert await backend.read_meta() == {(row.domain, row.attempt): row for row in rows}
    retired = MetaRow("search", 0, "d1", "retired", 4)
    await backend.write_meta(retired)
    assert (await backend.read_meta())["search", 0] == retired


async def test_many_who_write_the_state_at_once_lose_nothing_of_each_other(
    url: str, backend: OpenSearchBackend
) -> None:
    async with opened(url) as other:
        rows = [MetaRow("search", at, "d1", "copy", 1) for at in range(8)]
        await asyncio.gather(*((backend, other)[at % 2].write_meta(row) for at, row in enumerate(rows)))
        assert await other.read_meta() == {(row.domain, row.attempt): row for row in rows}


async def test_an_older_coordinator_has_lost_its_lease(url: str, backend: OpenSearchBackend) -> None:
    await backend.raise_token(Token("m1", "search", 4, 7))
    await backend.raise_token(Token("m1", "search", 4, 7))
    async with opened(url) as other:
        with pytest.raises(LostLease, match="newer coordinator of search"):
            await other.raise_token(Token("m0", "search", 3, 6))


async def test_without_its_indexes_it_is_behind_and_create_makes_them(url: str) -> None:
    async with opened(url, create=False) as backend:
        for call in (backend.ensure_schema(create=False), backend.read_meta()):
            with pytest.raises(SchemaBehind, match="datalayer schema upgrade"):
                await call
        with pytest.raises(SchemaBehind):
            await backend.write_meta(MetaRow("search", 0, "d1", "authority", 3))
        await backend.ensure_schema(create=True)
        await backend.ensure_schema(create=True)
        await backend.ensure_schema(create=False)
        assert await backend.store("search", 0).empty()
        await backend.write_meta(MetaRow("search", 0, "d1", "retired", 3))
        await backend.store("search", 0).drop()
        await backend.ensure_schema(create=True)
        await backend.ensure_schema(create=False)
        with pytest.raises(SchemaBehind):
            await backend.store("search", 0).empty()


FOREIGN: list[tuple[dict[str, Any], str]] = [
    ({"properties": {"body": {"type": "text"}}}, "is not one of datalayer's"),
    (mapping("messages") | {"_meta": {"datalayer_shape": SHAPE + 1}}, f"has the shape {SHAPE + 1}, not {SHAPE}"),
    (mapping("messages") | {"dynamic": "true"}, "takes unknown fields"),
    (
        mapping("messages") | {"properties": mapping("messages")["properties"] | {"body": {"type": "keyword"}}},
        "has another field body",
    ),
    (
        mapping("messages") | {"properties": mapping("messages")["properties"] | {"extra": {"type": "keyword"}}},
        "has another field extra",
    ),
]


@pytest.mark.parametrize(("found", "said"), FOREIGN, ids=lambda value: value if isinstance(value, str) else "")
async def test_an_index_with_a_foreign_mapping_is_refused_in_a_sentence(
    url: str, admin: OpenSearchSession, found: dict[str, Any], said: str
) -> None:
    alias = alias_of(BackendUrl.parse(url).database, "messages")
    analysis = {"analyzer": {"datalayer_words": {"type": "custom", "tokenizer": "whitespace"}}}
    body = {"mappings": found, "settings": {"analysis": analysis}, "aliases": {alias: {}}}
    await admin.call("PUT", f"/{index_of(alias)}", body, write=True)
    async with opened(url, create=False) as backend:
        with pytest.raises(PreconditionFailed, match=f"the mapping of the index .* {said}") as refused:
            await backend.ensure_schema(create=True)
        assert "another prefix" in str(refused.value)
        with pytest.raises(PreconditionFailed, match=said):
            await backend.ensure_schema(create=False)


async def test_a_late_apply_makes_no_index(url: str, backend: OpenSearchBackend, admin: OpenSearchSession) -> None:
    store = backend.store("search", 3)
    await store.create()
    await store.apply([document()])
    await store.drop()
    with pytest.raises(StaleRoute):
        await store.apply([document(2)])
    prefix = BackendUrl.parse(url).database
    listed = await admin.call("GET", f"/_cat/indices/{prefix}*", write=False, params={"format": "json"})
    assert {one["index"] for one in listed.body} == {
        index_of(alias_of(prefix, base)) for base in ("messages", "users", "state")
    }


async def test_versions_outlive_the_servers_memory_of_deleted_documents(
    url: str, backend: OpenSearchBackend, admin: OpenSearchSession
) -> None:
    """Control: a document deleted there is forgotten with its version; our marker is not."""
    store = backend.store("search", 0)
    alias = alias_of(BackendUrl.parse(url).database, "messages")
    await admin.call("PUT", f"/{alias}/_settings", {"index": {"gc_deletes": "0s"}}, write=True)
    await store.apply([document(version=5), tombstone("message_doc", document().key, 9)])
    theirs = {"version": 9, "version_type": "external_gte"}
    await admin.call("DELETE", f"/{alias}/_doc/{document(2).key.hex()}", write=True, params=theirs, allow=(404,))
    found: list[int] = []
    for _ in range(100):  # the server forgets at a refresh, and only what is older than a tick of its coarse clock
        await store.refresh()
        await store.apply([document(version=5), document(2, version=5)])
        await store.refresh()
        found = [one.id.int for one in await store.messages(HELLO, 10, within())]
        if found:
            break
    assert found == [2], "the control is resurrected, the marker holds"


async def test_what_was_acknowledged_survives_a_kill(servers: Servers) -> None:
    node = servers.fresh_opensearch("killed")
    async with opened(node.url) as backend:
        store = backend.store("search", 0)
        await store.create()
        sent: list[Record] = []
        failures: list[DatalayerError] = []

        async def write() -> None:
            for at in range(1, 400):
                batch = [document(at * 10 + one, version=1000 + at) for one in range(10)]
                try:
                    await store.apply(batch)
                except (Unavailable, OutcomeUnknown) as error:
                    failures.append(error)
                    return
                sent.extend(batch)

        writing = asyncio.create_task(write())
        while len(sent) < 200:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(node.kill9)
        await writing
        assert failures, "control: the kill was met"
        with pytest.raises(Unavailable):
            await backend.ping(within())
        await asyncio.to_thread(node.start)
        assert {record.ident: record for record in sent}.items() <= (
            await store.fetch([one.ident for one in sent])
        ).items()
        await store.refresh()
        found = await store.messages(HELLO, 1000, within())
        assert {one.id for one in found} >= {uuid.UUID(bytes=one.key[16:]) for one in sent[:1000]}
    await asyncio.to_thread(node.stop)


# --- faults ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_hangs_costs_the_deadline_and_says_what_is_known(url: str) -> None:
    with TcpProxy.before(url.replace("opensearch+http", "http")) as proxy:
        async with opened(proxy.url(url)) as backend:
            store = backend.store("search", 0)
            await store.apply([document()])
            proxy.hang()
            with pytest.raises(DeadlineExceeded):
                await store.messages(HELLO, 10, within(0.3))
            proxy.cut()
            with pytest.raises(Unavailable, match="does not answer"):
                await store.messages(HELLO, 10, within())
            with pytest.raises(Unavailable, match="does not answer"):
                await store.apply([document(2)])
            proxy.restore()
            proxy.hang_replies()
            writing = asyncio.create_task(store.apply([document(3)]))
            await asyncio.sleep(0.3)
            proxy.cut()
            with pytest.raises(OutcomeUnknown, match="did not confirm"):
                await writing
            proxy.restore()
            assert set(await store.fetch([document(3).ident])) == {document(3).ident}, "it had arrived"


async def test_of_several_hosts_one_that_answers_is_asked(url: str) -> None:
    with TcpProxy.before(url.replace("opensearch+http", "http")) as proxy:
        dead = proxy.url(url).partition("://")[2].partition("/")[0]
        proxy.cut()
        both = url.replace("://", f"://{dead},")
        async with opened(both) as backend:
            await backend.store("search", 0).apply([document()])
            await backend.ping(within())


async def test_a_full_disk_is_said(url: str, backend: OpenSearchBackend, admin: OpenSearchSession) -> None:
    alias = alias_of(BackendUrl.parse(url).database, "messages")
    await admin.call("PUT", f"/{alias}/_settings", {"index.blocks.read_only_allow_delete": True}, write=True)
    with pytest.raises((Unavailable, Overloaded), match=r"disk may be full|overloaded"):
        await backend.store("search", 0).apply([document()])
    await admin.call("PUT", f"/{alias}/_settings", {"index.blocks.read_only_allow_delete": None}, write=True)
    await backend.store("search", 0).apply([document()])


async def test_a_closed_backend_says_so(backend: OpenSearchBackend) -> None:
    await backend.close()
    await backend.close()
    with pytest.raises(Closed):
        await backend.store("search", 0).apply([document()])


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that gives every request the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


ANSWERS: list[tuple[int, bytes, type[DatalayerError], str]] = [
    (401, b"", PreconditionFailed, "refuses the login"),
    (403, b'{"error":{"type":"security_exception","reason":"no permissions for s3cret"}}', PreconditionFailed, "login"),
    (200, b'{"version":{"number":"8.11.0"}}', PreconditionFailed, "is no OpenSearch"),
    (200, b"<html>", PreconditionFailed, "is no OpenSearch"),
    (
        200,
        b'{"version":{"number":"1.3.2","distribution":"opensearch"}}',
        PreconditionFailed,
        "version 1.3.2; 2.0 or later",
    ),
    (429, b'{"error":{"type":"circuit_breaking_exception"}}', Overloaded, "overloaded"),
    (503, b"", Unavailable, "cannot answer"),
    (502, b"bad gateway", Unavailable, "cannot answer"),
    (400, b'{"error":{"type":"parsing_exception"}}', DatalayerError, "refuses the request: parsing_exception"),
]


@pytest.mark.parametrize(("status", "body", "kind", "said"), ANSWERS, ids=lambda value: str(value)[:20])
async def test_answers_are_told_apart_and_no_secret_is_repeated(
    status: int, body: bytes, kind: type[DatalayerError], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with answering(status, body) as host:
        backend = create_backend(
            "search", BackendUrl.parse(f"opensearch+http://ann:s3cret@{host}/x"), pool_max=2, clock=CLOCK
        )
        with pytest.raises(kind, match=said) as refused:
            await backend.open()
        await backend.close()
    told = f"{refused.value} {refused.value!r} {backend!r} {refused.value.__cause__!r}"
    assert "s3cret" not in told
    assert not any("ann:" in record.getMessage() for record in caplog.records)


async def test_a_port_without_a_server_and_tls_without_trust_are_told_apart(url: str) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        async with opened("opensearch+http://127.0.0.1:1/x"):
            pass
    secure = url.replace("opensearch+http", "opensearch+https")
    with pytest.raises((PreconditionFailed, Unavailable)):
        async with opened(secure):
            pass
    with pytest.raises(ConfigurationError, match="cannot be read"):
        create_backend("search", BackendUrl.parse(f"{secure}?ca=/nowhere.pem"), pool_max=2, clock=CLOCK)
    for prefix in ("Upper", "_x", "a*", "x" * 65):
        with pytest.raises(ConfigurationError, match="prefix of indexes"):
            create_backend("search", BackendUrl.parse(f"opensearch+http://h/{prefix}"), pool_max=2, clock=CLOCK)


async def test_it_holds_search_alone(backend: OpenSearchBackend) -> None:
    assert backend.refuses("search") is None
    assert backend.refuses("users") == "opensearch holds search, not users"


async def test_a_query_of_many_rooms_and_words_is_one_request(backend: OpenSearchBackend) -> None:
    store = backend.store("search", 0)
    await store.apply([document()])
    await store.refresh()
    rooms = (*(uuid.UUID(int=at << 64) for at in range(1, 1000)), ROOM)
    assert len(await store.messages(MessageQuery(HELLO.phrases, rooms), 10, within())) == 1
    words = parse_query(" ".join(f"w{at}*" for at in range(32)))
    assert await store.messages(MessageQuery(words, rooms), 10, within()) == []
