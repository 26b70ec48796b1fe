"""Many records at once on a real Postgres: COPY in, raw scans out, the newer one wins."""

import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from datalayer.domains.record import Key, Record
from datalayer.domains.users import claim_key, claim_record
from datalayer.errors import Quarantine
from datalayer.stores.postgres.bulk import COPY_MIN
from tests.integration.postgres_places import IDS, TOKEN, Place, database, place, program
from tests.servers import Servers

pytestmark = pytest.mark.servers
TEXTS = ("", "plain", "tab\tline\nreturn\rback\\slash \\N \\.", "ünïcödé 🙂 \u2028", '{"quote": "\'"}', "x" * 70_000)
JSONS = ("{}", '{"a":1e22,"b":-0.0,"c":[null,true,"\\u0000"]}', '{"z":1,"a":2}')


@pytest.fixture(scope="module")
def url(servers: Servers) -> Iterator[str]:
    with database(servers, "bulk") as found:
        yield found


@pytest.fixture
async def here(url: str) -> AsyncIterator[Place]:
    async with place(url) as found:
        yield found


def message(draw: random.Random, version: int) -> Record:
    ids = [IDS.uuid7().bytes for _ in range(6)]
    fields = (
        ids[2],
        draw.choice(TEXTS),
        draw.choice(("text", "", "système")),
        draw.choice((None, ids[3])),
        draw.choice((b"", ids[4], ids[4] + ids[5])),
        draw.choice((None, 0, -1, (1 << 63) - 1)),
        draw.choice(JSONS),
    )
    return Record("message", ids[0] + ids[1], version, draw.random() < 0.2, fields)


def user(draw: random.Random, version: int) -> Record:
    email = draw.choice((None, "", "ann@example.org"))
    rest = (draw.choice((0, 1 << 60)), draw.choice(JSONS), draw.choice((None, "eu", "us-east")))
    fields = (draw.choice(TEXTS), email, draw.choice(TEXTS), "active", *rest)
    return Record("user", IDS.uuid7().bytes, version, draw.random() < 0.2, fields)


def claim(draw: random.Random, version: int) -> Record:
    key = claim_key(draw.choice(("username", "email")), f"{draw.choice(TEXTS[:5])}{draw.random()}")
    return claim_record(key, IDS.uuid7(), version, deleted=draw.random() < 0.2)


async def scanned(store: Any, ranges: int = 3, limit: int = 50) -> dict[Key, Record]:
    found: dict[Key, Record] = {}
    for one in await store.plan_scan(ranges):
        after = None
        while True:
            page = await store.scan(one, after, limit)
            assert not found.keys() & {record.ident for record in page.records}
            found |= {record.ident: record for record in page.records}
            if page.done:
                break
            after = page.after
    return found


@pytest.mark.parametrize("size", [1, COPY_MIN - 1, COPY_MIN, 400])
@pytest.mark.parametrize("domain", ["messages", "users"])
async def test_what_is_applied_is_scanned_and_fetched_bit_by_bit(here: Place, domain: str, size: int) -> None:
    draw = random.Random(size)
    store = here.backend.store(domain, 0)
    makers = [message] if domain == "messages" else [user, claim]
    records = [draw.choice(makers)(draw, draw.randrange(-5, 1 << 60)) for _ in range(size)]
    await store.apply(records)
    expected = {record.ident: record for record in records}
    assert await scanned(store) == expected
    assert await store.fetch(list(expected)) == expected


async def test_the_newer_record_wins_whichever_way_the_batches_go(here: Place) -> None:
    draw = random.Random(1)
    keys = [message(draw, 0) for _ in range(300)]
    model: dict[Key, Record] = {}
    for _ in range(12):
        batch = []
        for _ in range(draw.choice((10, COPY_MIN, 600))):  # the same key may come twice in one batch
            one = draw.choice(keys)
            batch.append(one._replace(version=draw.randrange(1000), fields=message(draw, 0).fields))
        batch = list({(record.ident, record.version): record for record in batch}.values())
        await here.messages.apply(batch)
        for record in batch:
            if record.ident not in model or record.version > model[record.ident].version:
                model[record.ident] = record
    found = await scanned(here.messages)
    assert {key: record.version for key, record in found.items()} == {k: r.version for k, r in model.items()}
    assert found == model


async def test_a_batch_that_meets_stored_rows_lands_whole_and_leaves_no_staging_table(here: Place) -> None:
    draw = random.Random(2)
    old = [message(draw, 10) for _ in range(COPY_MIN)]
    await here.messages.apply(old)
    mixed = [record._replace(version=5 + 10 * (number % 2)) for number, record in enumerate(old)]
    new = [message(draw, 1) for _ in range(COPY_MIN)]
    await here.messages.apply([*mixed, *new])
    found = await scanned(here.messages)
    assert [found[record.ident].version for record in old] == [10, 15] * (COPY_MIN // 2)
    assert all(found[record.ident] == record for record in new)
    rows = await here.backend.db.fetch("SELECT relname FROM pg_class WHERE relname LIKE 'datalayer_stage%%'", ())
    assert rows == []


async def test_records_that_postgres_cannot_hold_are_named_and_the_rest_lands(here: Place) -> None:
    draw = random.Random(3)
    good = [message(draw, 1) for _ in range(COPY_MIN)]
    bad = [message(draw, 1) for _ in range(4)]
    spoilt = [
        bad[0]._replace(fields=("\x00" * 16, "a\x00b", *bad[0].fields[2:])),
        bad[1]._replace(fields=(bad[1].fields[0], "a\ud800b", *bad[1].fields[2:])),
        bad[2]._replace(version=1 << 63),
        bad[3]._replace(fields=(*bad[3].fields[:-1], "{not json")),  # only the server finds this one
    ]
    with pytest.raises(Quarantine) as caught:
        await here.messages.apply([*good[:50], *spoilt, *good[50:]])
    assert set(caught.value.rejected) == {record.ident for record in spoilt}
    assert await scanned(here.messages) == {record.ident: record for record in good}


async def test_bulk_applies_pass_the_guard_and_plain_copies_do_not(here: Place) -> None:
    draw = random.Random(4)
    guard = here.guard
    await guard.install(TOKEN, sealed=True)
    records = [message(draw, number + 1) for number in range(2 * COPY_MIN)]
    await guard.apply(records)
    await guard.apply([record._replace(version=10_000) for record in records])
    assert {record.version for record in (await scanned(here.messages)).values()} == {10_000}
    assert await here.journalled() == {}
    async with program(here.url) as connection:
        cursor = connection.cursor()

        async def load() -> None:
            async with cursor.copy("COPY messages (conversation_id, id, sender_id, body) FROM STDIN") as copy:
                await copy.write_row((IDS.uuid7(), IDS.uuid7(), IDS.uuid7(), "x"))

        with pytest.raises(psycopg.Error, match="held"):
            await load()


async def test_a_scan_ends_where_it_was_planned_and_its_ranges_share_the_rows(here: Place) -> None:
    draw = random.Random(5)
    await here.messages.apply([message(draw, 1) for _ in range(2000)])
    async with program(here.url, "datalayer/test") as admin:
        await admin.execute("ANALYZE messages")
    ranges = await here.messages.plan_scan(8)
    assert len(ranges) == 8
    sizes = []
    for one in ranges:
        page = await here.messages.scan(one, None, 3000)
        sizes.append(len(page.records))
        assert page.done
        assert page.records == sorted(page.records, key=lambda record: record.key)
    assert sum(sizes) == 2000
    assert max(sizes) < 3 * 2000 / 8
    assert abs(await here.messages.estimate() - 2000) < 500
    await here.messages.apply([message(draw, 1)])  # ids rise: it lies beyond the plan
    assert sum([len((await here.messages.scan(one, None, 3000)).records) for one in ranges]) == 2000
