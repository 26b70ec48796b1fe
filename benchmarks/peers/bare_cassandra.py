"""cassandra-driver alone, its callbacks bridged to asyncio; values bound by its prepared statements."""

import asyncio
import json
from typing import Any
from uuid import UUID

from benchmarks.peers.bare import LIMIT, id_source
from datalayer.ids import id_time_us
from datalayer.settings import BackendUrl
from datalayer.stores.cassandra import cells
from datalayer.stores.cassandra import cluster as clusters
from datalayer.stores.cassandra.cluster import Target
from datalayer.types import Message

_BUCKET_MAX = (1 << 31) - 1
_BUCKETS_PAGE = 200
_CQL = {
    "put_bucket": "INSERT INTO message_buckets{n} (conversation_id, bucket) VALUES (?, ?) USING TIMESTAMP 1",
    "put": "INSERT INTO messages{n} (conversation_id, bucket, id, record) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
    "get": "SELECT record FROM messages{n} WHERE conversation_id = ? AND bucket = ? AND id = ?",
    "buckets": "SELECT bucket FROM message_buckets{n} WHERE conversation_id = ? AND bucket <= ? LIMIT ?",
    "newest": "SELECT id, record FROM messages{n} WHERE conversation_id = ? AND bucket = ? LIMIT ?",
}


class BareCassandra:
    """Messages of one table, laid out as the data layer lays them out."""

    def __init__(self, url: BackendUrl, attempt: int) -> None:
        self._url = url
        self._suffix = f"_{attempt}" if attempt else ""
        self._cluster: Any = None
        self._session: Any = None
        self._prepared: dict[str, Any] = {}
        self._known: set[tuple[UUID, int]] = set()
        self._ids = id_source()

    async def open(self) -> None:
        self._cluster = clusters.build(Target.of(self._url))
        self._session = await asyncio.to_thread(self._cluster.connect, self._url.database)
        for name, cql in _CQL.items():
            self._prepared[name] = await asyncio.to_thread(self._session.prepare, cql.format(n=self._suffix))

    async def close(self) -> None:
        await asyncio.to_thread(self._cluster.shutdown)

    async def append(self, conversation: UUID, sender: UUID, body: str) -> Message:
        ident = self._ids.uuid7()
        version, bucket = id_time_us(ident), cells.bucket_of(ident.bytes)
        if (conversation, bucket) not in self._known:
            await self._run("put_bucket", conversation, bucket)
            self._known.add((conversation, bucket))
        fields = [version, 0, sender.hex, body, "text", None, "", None, "{}"]
        record = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
        await self._run("put", conversation, bucket, ident, record, version)
        return Message(ident, conversation, sender, body, version=version)

    async def get(self, conversation: UUID, ident: UUID) -> Message | None:
        rows = await self._run("get", conversation, cells.bucket_of(ident.bytes), ident)
        return _message(conversation, ident, rows[0][0]) if rows else None

    async def history(self, conversation: UUID) -> list[Message]:
        found: list[Message] = []
        for (bucket,) in await self._run("buckets", conversation, _BUCKET_MAX, _BUCKETS_PAGE):
            rows = await self._run("newest", conversation, bucket, LIMIT - len(found))
            messages = (_message(conversation, ident, record) for ident, record in rows)
            found += [message for message in messages if not message.deleted]
            if len(found) >= LIMIT:
                break
        return found

    async def _run(self, name: str, *values: object) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        answer = self._session.execute_async(self._prepared[name].bind(values))
        answer.add_callbacks(
            lambda rows: loop.call_soon_threadsafe(future.set_result, rows),
            lambda error: loop.call_soon_threadsafe(future.set_exception, error),
        )
        return await future


def _message(conversation: UUID, ident: UUID, record: str) -> Message:
    version, deleted, sender, body, kind, thread, attachments, edited, attributes = json.loads(record)
    return Message(
        ident,
        conversation,
        UUID(sender),
        body,
        kind,
        None if thread is None else UUID(thread),
        tuple(UUID(attachments[at : at + 32]) for at in range(0, len(attachments), 32)),
        edited,
        deleted == 1,
        version,
        json.loads(attributes),
    )
