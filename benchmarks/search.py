"""Search: documents indexed a second beside opensearch-py, and how long a query takes on each backend."""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from opensearchpy import OpenSearch, helpers

from benchmarks.figures import Aim, Figure, ratio, rounded
from benchmarks.shape import in_parts, records
from benchmarks.stage import Ground, settings_of
from datalayer.clock import Deadline, SystemClock
from datalayer.domains.record import Record
from datalayer.domains.search import MessageQuery, Phrase, document_of
from datalayer.layer import make_backends
from datalayer.schemas.opensearch import alias_of
from datalayer.settings import BackendUrl, parse_settings
from datalayer.stores.opensearch.bulk import lines_of

BATCH = 2000
ROOMS = 20
"""Conversations of a reader."""
PAGE = 20
QUERIES = 300
INDEXED_MAX = 200_000
PREFIX = "bench"
Say = Callable[[str], None]
AIMS = {"helpers.bulk": Aim(1.0), "raw bodies": Aim(0.6)}


@dataclass(frozen=True, slots=True)
class Done:
    """One contender in one round."""

    seconds: float
    cpu_s: float


async def measure(ground: Ground, messages: int, rounds: int, say: Say) -> dict[str, Any]:
    """Indexing of as many messages, but not above INDEXED_MAX, then latencies over all."""
    found: dict[str, Any] = {"messages": messages, "rounds": rounds}
    sent = list(records(min(messages, INDEXED_MAX)))
    found |= {"indexed": len(sent), "indexing": await indexing(ground, sent, rounds, say)}
    del sent
    return found | {"latency": await latencies(ground, messages, rounds, say)}


# --- indexing --------------------------------------------------------------------------------------------------------


async def indexing(ground: Ground, sent: Sequence[Record], rounds: int, say: Say) -> dict[str, Any]:
    """Ours, helpers.bulk and bodies that were put together beforehand, each into an empty index of the same mapping."""
    url = ground.opensearch(PREFIX)
    documents = [document for one in sent if (document := document_of(one)) is not None]
    bodies = [b"".join(map(lines_of, part)) for part in batches(documents)]
    address = BackendUrl.parse(url).hosts[0]
    client = OpenSearch([{"host": address.name, "port": address.port}], max_retries=0, timeout=60)
    backend = make_backends(settings_of({"main": "memory://", "search": url}, "memory://"), SystemClock())["search"]
    await backend.open()
    done: dict[str, list[Done]] = {"ours": [], "helpers.bulk": [], "raw bodies": []}
    attempts = itertools.count(1)
    try:
        for at in range(rounds + 1):  # the first warms the server up
            for name, mine in done.items():
                attempt = next(attempts)
                store = backend.store("search", attempt)
                await store.create()
                alias = alias_of(PREFIX, "messages", attempt)
                began, cpu = time.perf_counter(), time.process_time()
                if name == "ours":
                    for part in batches(documents):
                        await store.apply(part)
                elif name == "helpers.bulk":
                    await asyncio.to_thread(_by_driver, client, alias, documents)
                else:
                    await asyncio.to_thread(_raw, client, alias, bodies)
                ended = Done(time.perf_counter() - began, time.process_time() - cpu)
                await store.refresh()
                assert await store.estimate() == len(documents), f"{name} left documents out"
                await store.drop()
                if at:
                    mine.append(ended)
            say(f"search: round {at} of indexing measured")
    finally:
        client.close()
        await backend.close()
    return raced(done, len(documents))


def raced(done: dict[str, list[Done]], number: int) -> dict[str, Any]:
    rates = {name: [number / one.seconds for one in rounds] for name, rounds in done.items()}
    contenders = {
        name: {
            "documents_per_s": Figure.of(rates[name]).document(),
            "client_cpu_us_per_document": rounded(min(one.cpu_s for one in rounds) / number * 1e6),
        }
        for name, rounds in done.items()
    }
    ratios = []
    for peer, aim in AIMS.items():
        figure = ratio(rates["ours"], rates[peer])
        told = {"ours": "ours", "peer": peer, "documents_per_s": figure.document()}
        ratios.append(told | {"aim": f">= {aim.bound}", "met": aim.met(figure.median)})
    return {"contenders": contenders, "ratios": ratios}


def _by_driver(client: OpenSearch, alias: str, documents: Sequence[Record]) -> None:
    def actions() -> Iterable[dict[str, Any]]:
        for one in documents:
            key = one.key.hex()
            sender, body = one.fields
            assert isinstance(sender, bytes)
            source = {"conversation": key[:32], "id": key[32:], "sender": sender.hex(), "body": body}
            source |= {"deleted": one.deleted, "version": one.version}
            yield {
                "_index": alias,
                "_id": key,
                "version": one.version,
                "version_type": "external_gte",
                "_source": source,
            }

    helpers.bulk(client, actions(), chunk_size=BATCH, max_chunk_bytes=4 << 20)


def _raw(client: OpenSearch, alias: str, bodies: Sequence[bytes]) -> None:
    for body in bodies:
        answer = client.transport.perform_request(
            "POST", f"/{alias}/_bulk", params={"filter_path": "errors"}, body=body
        )
        assert not answer["errors"]


def batches(documents: Sequence[Record]) -> list[Sequence[Record]]:
    """In the size of a batch."""
    return [documents[at : at + BATCH] for at in range(0, len(documents), BATCH)]


# --- latency ---------------------------------------------------------------------------------------------------------


async def latencies(ground: Ground, messages: int, rounds: int, say: Say) -> list[dict[str, Any]]:
    """Queries of a reader of some conversations on every backend, in rounds."""
    urls = {
        "sqlite": f"sqlite:///{ground.folder}/search.sqlite",
        "tsvector": ground.database(),
        "like": ground.database(),
        "opensearch": ground.opensearch(PREFIX),
    }
    document: dict[str, Any] = {
        "backends": {name: {"url": url} for name, url in urls.items()},
        "routes": {"users": "sqlite", "messages": "sqlite"},
        "control": {"url": "memory://"},
    }
    document["backends"]["like"]["search"] = "like"
    backends = make_backends(parse_settings(document), SystemClock())
    queries = asked(messages)
    found = []
    async with AsyncExitStack() as exits:
        for name in urls:
            backend = backends[name]
            exits.push_async_callback(backend.close)
            await backend.open()
            await backend.ensure_schema(create=True)
            store = backend.store("search", 0)
            began = time.perf_counter()
            for part in in_parts(messages, BATCH):
                await store.apply([one for record in part if (one := document_of(record)) is not None])
            await store.refresh()
            say(f"search: {messages:,} messages into {name}, {messages / (time.perf_counter() - began):,.0f}/s")
            if name in {"tsvector", "like"}:
                await backend.db.run("VACUUM ANALYZE search_messages")  # type: ignore[attr-defined]
            for what, wanted in queries.items():
                times = [
                    [await _timed(store.messages(one, PAGE, _deadline())) for one in wanted] for _ in range(rounds + 1)
                ]
                found.append({"backend": name, "what": what, **_percentiles(times[1:])})  # the first warms up
            say(f"search: {name} measured")
    return found


def asked(messages: int) -> dict[str, list[MessageQuery]]:
    """Queries of three kinds, each of a reader's own conversations."""
    rng = random.Random(5)
    rooms: set[UUID] = set()
    picked: list[Record] = []
    every = max(1, messages // QUERIES)
    for part in in_parts(messages, every):
        rooms.update(UUID(bytes=one.key[:16]) for one in part)
        picked.append(rng.choice(part))
    known = sorted(rooms)
    kinds: dict[str, list[MessageQuery]] = {"a word": [], "two in a row": [], "a beginning": []}
    for record in picked[:QUERIES]:
        seen = document_of(record)
        assert seen is not None
        words = str(seen.fields[1]).split() or ["the", "the"]
        at = rng.randrange(len(words))
        mine = {UUID(bytes=seen.key[:16]), *rng.sample(known, min(ROOMS - 1, len(known)))}
        of = tuple(sorted(mine))
        kinds["a word"].append(MessageQuery((Phrase((words[at],)),), of))
        kinds["two in a row"].append(MessageQuery((Phrase(tuple(words[at : at + 2])),), of))
        kinds["a beginning"].append(MessageQuery((Phrase((words[at][:3],), prefix=True),), of))
    return kinds


async def _timed(call: Awaitable[Any]) -> float:
    start = time.perf_counter()
    await call
    return 1e3 * (time.perf_counter() - start)


def _deadline() -> Deadline:
    return Deadline(SystemClock(), 30.0)


def _percentiles(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    ordered = [sorted(one) for one in rounds]
    return {
        "p50_ms": Figure.of([one[len(one) // 2] for one in ordered]).document(),
        "p99_ms": Figure.of([one[len(one) * 99 // 100] for one in ordered]).document(),
    }
