"""Real conversations, the same queries on every product: the same hits in the same order. And 20,000 hostile queries."""

import gzip
import itertools
import json
import random
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from datalayer.clock import Deadline, SystemClock
from datalayer.domains.messages import to_record
from datalayer.domains.record import Record
from datalayer.domains.search import Found, MessageQuery, Phrase, document_of, matches, parse_query
from datalayer.errors import InvalidArgument
from datalayer.ids import NAMESPACE, imported_message_id
from datalayer.settings import BackendUrl
from datalayer.stores.registry import open_factory
from datalayer.testing.contract import Maker, StoreFixture
from datalayer.testing.contract.search import HOSTILE, VOCABULARY, Talk, answers
from datalayer.types import Message
from tests.conftest import TIER
from tests.servers import Servers

pytestmark = pytest.mark.servers

CLOCK = SystemClock()
LINES = {"check": 2_000, "test": 5_000, "deep": 60_000}[TIER]
QUERIES = 200


def messages_of(path: Path | None, limit: int) -> list[Message]:
    """Of the file of real conversations, or made up in their shape."""
    lines = _made_up(limit) if path is None else _read(path, limit)
    return [
        Message(
            imported_message_id(line["conversation"], line["id"], int(line["sent_at"] * 1_000_000)),
            uuid.uuid5(NAMESPACE, line["conversation"]),
            uuid.uuid5(NAMESPACE, f"sender {line['sender']}"),
            line["body"],
            version=int(line["sent_at"] * 1_000_000),
        )
        for line in lines
    ]


def _read(path: Path, limit: int) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in itertools.islice(file, limit)]


def _made_up(limit: int) -> list[dict[str, Any]]:
    rng = random.Random(7)
    return [
        {
            "conversation": f"room {int(rng.paretovariate(1))}",
            "id": at,
            "sender": rng.randrange(40),
            "sent_at": 1_600_000_000 + at,
            "body": f"<p>{' '.join(rng.choices(VOCABULARY, k=rng.randrange(40)))} <code>x_{at % 50}</code></p>",
        }
        for at in range(limit)
    ]


@pytest.fixture
async def stores(servers: Servers, tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    """An empty place of search on every product."""
    postgres = servers.postgres(1)[0].create_database(f"search_{uuid.uuid4().hex[:8]}")
    urls: dict[str, tuple[str, dict[str, Any]]] = {
        "sqlite": (f"sqlite:///{tmp_path}/search.sqlite", {}),
        "tsvector": (postgres, {}),
        "like": (postgres, {"search": "like"}),
        "opensearch": (servers.opensearch().url_of(f"everywhere-{uuid.uuid4().hex[:8]}"), {}),
    }
    async with AsyncExitStack() as exits:
        places = {}
        for attempt, (name, (text, options)) in enumerate(urls.items(), start=1):
            url = BackendUrl.parse(text)
            backend = open_factory(url.scheme, name)(name, url, pool_max=8, clock=CLOCK, **options)
            exits.push_async_callback(backend.close)
            await backend.open()
            store = backend.store("search", attempt)
            await store.create()
            exits.push_async_callback(store.drop)
            places[name] = store
        yield places


async def filled(stores: dict[str, Any], documents: list[Record]) -> None:
    for store in stores.values():
        for at in range(0, len(documents), 1000):
            await store.apply(documents[at : at + 1000])
        await store.refresh()


def within() -> Deadline:
    return Deadline(CLOCK, 30.0)


async def test_real_conversations_are_found_alike_on_every_product(
    stores: dict[str, Any], chat_data: Path | None
) -> None:
    sent = messages_of(chat_data, LINES)
    documents = [document for one in sent if (document := document_of(to_record(one)))]
    by_key = {one.key: one for one in documents}
    rng = random.Random(11)
    await filled(stores, documents)
    rooms = sorted({one.conversation_id for one in sent})
    found_some = 0
    spent = dict.fromkeys(stores, 0.0)
    for _ in range(QUERIES):
        query = _query(rng, rng.choice(list(by_key.values())), rooms)
        expected = answers(query, by_key.values())
        found_some += bool(expected)
        for name, store in stores.items():
            start = time.perf_counter()
            found: list[Found] = await store.messages(query, 50, within())
            spent[name] += time.perf_counter() - start
            assert found == expected[:50], f"{name}: {query.phrases}"
    assert found_some > QUERIES / 2
    print({name: f"{seconds / QUERIES * 1e3:.1f} ms" for name, seconds in spent.items()}, f"{len(by_key)} messages")


def _query(rng: random.Random, seen: Record, rooms: list[uuid.UUID]) -> MessageQuery:
    """Words, a row or a beginning that some message holds, in some of the rooms or in all of a thousand."""
    words = str(seen.fields[1]).split() or ["nothing"]
    at = rng.randrange(len(words))
    phrases = [Phrase((words[at],)), Phrase(tuple(words[at : at + rng.randrange(1, 4)]))]
    phrases.append(Phrase((*words[max(0, at - 1) : at], words[at][: rng.randrange(1, 5)]), prefix=True))
    chosen = {uuid.UUID(bytes=seen.key[:16]), *rng.sample(rooms, min(len(rooms), rng.choice((0, 20, 999))))}
    sender = uuid.UUID(bytes=seen.fields[0]) if rng.random() < 0.2 else None  # type: ignore[arg-type]
    return MessageQuery(tuple(rng.sample(phrases, rng.randrange(1, 4))), tuple(sorted(chosen)), sender)


async def test_twenty_thousand_hostile_queries_reach_no_syntax(stores: dict[str, Any]) -> None:
    """All of them on SQLite; of those, the same share on every product."""
    fixture = StoreFixture(connect=_nobody, seed=20_000)
    talk = Talk(fixture, Maker(fixture), 60)
    await filled(stores, talk.documents)
    rng = random.Random(20_000)
    rooms = tuple(talk.rooms)
    asked = 0
    for turn in range(20_000):
        typed = rng.choice(("", " ")).join(rng.choices((*HOSTILE, *VOCABULARY), k=rng.randrange(1, 9)))
        try:
            phrases = parse_query(typed)
        except InvalidArgument:
            continue
        query = MessageQuery(phrases, rooms)
        expected = answers(query, talk.documents)
        asked += 1
        for name, store in stores.items():
            if name == "sqlite" or turn % 100 == 0:
                assert await store.messages(query, 100, within()) == expected, f"{name}: {typed!r}"
        assert all(
            matches(phrases, str(one.fields[1]))
            for one in talk.documents
            if one.key[16:] in {f.id.bytes for f in expected}
        )
    assert asked > 10_000


async def _nobody() -> Any:
    raise NotImplementedError
