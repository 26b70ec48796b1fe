"""The search index in OpenSearch: an index of messages and one of users at each place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from datalayer.domains.search import KINDS, Found, FoundUser, Phrase, matches
from datalayer.errors import (
    DatalayerError,
    DeadlineExceeded,
    InvalidArgument,
    PreconditionFailed,
    Quarantine,
    SchemaBehind,
    StaleRoute,
    Unavailable,
)
from datalayer.schemas.opensearch import REFRESH_S, alias_of, creation, difference, index_of
from datalayer.stores.base import ScanPage
from datalayer.stores.opensearch import queries
from datalayer.stores.opensearch.bulk import bodies_of, record_of, unfit
from datalayer.stores.opensearch.faults import item_error, type_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.clock import Deadline
    from datalayer.domains.record import Key, Kind, Record
    from datalayer.domains.search import MessageQuery
    from datalayer.stores.opensearch.session import OpenSearchSession

BASES: Final = {"message_doc": "messages", "user_doc": "users"}
GET_MAX: Final = 1000
SAMPLES_PER_RANGE: Final = 16
SAMPLES_MAX: Final = 10_000
SCHEMA_S: Final = 60.0
SLACK_S: Final = 0.2
"""What a refresh itself may take."""
_SHORT: Final = {"filter_path": "errors,items.index.status,items.index.error.type"}


class OpenSearchSearch:
    """Port and SearchReads over two indexes."""

    visible_within_s: float = REFRESH_S + SLACK_S

    def __init__(self, session: OpenSearchSession, prefix: str, attempt: int) -> None:
        self.kinds: Sequence[Kind] = KINDS
        self._session = session
        self._names = {kind: alias_of(prefix, base, attempt) for kind, base in BASES.items()}

    # --- the indexes -----------------------------------------------------------------------------------------------

    async def create(self) -> None:
        for kind, alias in self._names.items():
            await create_index(self._session, BASES[kind], alias)

    async def drop(self) -> None:
        for alias in self._names.values():
            await self._session.call("DELETE", f"/{index_of(alias)}", write=True, allow=(404,), timeout_s=SCHEMA_S)

    async def check_shape(self) -> None:
        """PreconditionFailed for an index of another mapping, SchemaBehind for one that is not there."""
        for kind, alias in self._names.items():
            await check_index(self._session, BASES[kind], alias)

    async def empty(self) -> bool:
        try:
            await self.refresh()
            return not await self.estimate()
        except StaleRoute as error:
            raise SchemaBehind(f"{error.message}: search is not at this place") from error

    async def estimate(self) -> int:
        counts = [await self._session.call("GET", f"/{one}/_count", write=False) for one in self._names.values()]
        return sum(int(answer.body["count"]) for answer in counts)

    async def refresh(self) -> None:
        for alias in self._names.values():
            await self._session.call("POST", f"/{alias}/_refresh", write=False)

    # --- scan, fetch, apply ----------------------------------------------------------------------------------------

    async def plan_scan(self, n: int) -> list[str]:
        if n < 1:
            raise InvalidArgument(f"a scan has at least one range, not {n}")
        await self.refresh()
        ranges: list[str] = []
        for kind, alias in self._names.items():
            last = await self._search(alias, queries.last_key(kind))
            if not last:
                continue
            high = str(last[0]["_id"])
            size = min(SAMPLES_MAX, n * SAMPLES_PER_RANGE)
            sampled = await self._search(alias, queries.sample(size)) if n > 1 else []
            below = sorted({str(one["_id"]) for one in sampled if str(one["_id"]) < high})
            cuts = [below[at] for at in sorted({len(below) * at // n for at in range(1, n)})] if below else []
            ranges += [f"{kind}:{low}:{top}" for low, top in zip(["", *cuts], [*cuts, high], strict=True)]
        return ranges

    async def scan(self, range_: str, after: str | None, limit: int) -> ScanPage:
        kind, low, high = range_.split(":")
        hits = await self._search(self._names[kind], queries.scan(kind, after or low, high, limit))
        # a range may end within a conversation: what lies beyond in it is the next one's
        mine = [hit for hit in hits if str(hit["_id"]) <= high]
        records = [record_of(kind, str(hit["_id"]), hit["_source"]) for hit in mine]
        return ScanPage(records, str(mine[-1]["_id"]) if mine else after, len(mine) < limit)

    async def fetch(self, keys: Sequence[Key]) -> dict[Key, Record]:
        found: dict[Key, Record] = {}
        for kind, alias in self._names.items():
            ids = list(dict.fromkeys(key.hex() for name, key in keys if name == kind))
            for at in range(0, len(ids), GET_MAX):
                answer = await self._session.call(
                    "POST", f"/{alias}/_mget", {"ids": ids[at : at + GET_MAX]}, write=False
                )
                for one in answer.body["docs"]:
                    if "error" in one:
                        raise self._item_error(503, one)
                    if one["found"]:
                        record = record_of(kind, one["_id"], one["_source"])
                        found[record.ident] = record
        return found

    async def apply(self, records: Sequence[Record]) -> None:
        rejected: dict[Key, str] = {}
        for kind, alias in self._names.items():
            mine = []
            for record in records:
                why = self.check(record) if record.kind == kind else None
                if why is not None:
                    rejected[record.ident] = why
                elif record.kind == kind:
                    mine.append(record)
            for part, body in bodies_of(mine):
                rejected |= await self._bulk(alias, part, body)
        rejected |= {
            record.ident: why for record in records if record.kind not in BASES and (why := self.check(record))
        }
        if rejected:
            raise Quarantine(rejected)

    def check(self, record: Record) -> str | None:
        return unfit(record)

    async def _bulk(self, alias: str, records: Sequence[Record], body: bytes) -> dict[Key, str]:
        """Apply some; those that the server refuses for what they are. Repeating it is harmless."""
        params = {"require_alias": "true", **_SHORT}
        answer = await self._session.call("POST", f"/{alias}/_bulk", body, write=True, params=params)
        if not answer.body.get("errors"):
            return {}
        rejected = {}
        for record, item in zip(records, answer.body["items"], strict=True):
            status = int(item["index"]["status"])
            if status < 300 or status == 409:
                continue
            kind = str(item["index"].get("error", {}).get("type", ""))
            if status != 400:
                raise self._item_error(status, {"error": {"type": kind}})
            rejected[record.ident] = f"the server refuses the document: {kind}"
        return rejected

    def _item_error(self, status: int, item: Mapping[str, Any]) -> DatalayerError:
        kind = type_of(item)
        where = self._session.where
        return item_error(status, kind, where) or Unavailable(f"{where} could not handle a document: {kind or status}")

    # --- queries ---------------------------------------------------------------------------------------------------

    async def messages(
        self, query: MessageQuery, limit: int, deadline: Deadline, *, after: tuple[UUID, UUID] | None = None
    ) -> list[Found]:
        position = None if after is None else [after[0].hex, after[1].hex]
        hits = await self._found(
            "message_doc", query.phrases, queries.messages(query), limit, deadline=deadline, after=position
        )
        return [Found(UUID(hit["sort"][1]), UUID(hit["sort"][0]), int(hit["_version"])) for hit in hits]

    async def users(
        self, phrase: Phrase, limit: int, deadline: Deadline, *, after: tuple[str, UUID] | None = None
    ) -> list[FoundUser]:
        position = None if after is None else [after[0], after[1].hex]
        hits = await self._found("user_doc", (phrase,), queries.users(phrase), limit, deadline=deadline, after=position)
        return [FoundUser(UUID(hit["sort"][1]), str(hit["sort"][0]), int(hit["_version"])) for hit in hits]

    async def _found(
        self,
        kind: str,
        phrases: Sequence[Phrase],
        body: dict[str, Any],
        limit: int,
        *,
        deadline: Deadline,
        after: list[str] | None,
    ) -> list[Mapping[str, Any]]:
        """What matches. A phrase that ends in the beginning of a word is no query that the server answers exactly: its
        words are asked for, and their order is looked at here.
        """
        column = queries.COLUMNS[kind]
        inexact = [phrase for phrase in phrases if phrase.prefix and len(phrase.words) > 1]
        body = body | {"size": limit, "_source": [column] if inexact else False, "version": True}
        met: list[Mapping[str, Any]] = []
        while True:
            hits = await self._search(
                self._names[kind], body if after is None else body | {"search_after": after}, deadline
            )
            met += [hit for hit in hits if not inexact or matches(inexact, hit["_source"][column])]
            if len(hits) < limit or len(met) >= limit:
                return met[:limit]
            after = hits[-1]["sort"]

    async def _search(
        self, alias: str, body: Mapping[str, Any], deadline: Deadline | None = None
    ) -> list[Mapping[str, Any]]:
        answer = await self._session.call("POST", f"/{alias}/_search", body, write=False, deadline=deadline)
        if answer.body.get("timed_out"):
            raise DeadlineExceeded(f"{self._session.where} did not finish a search in time")
        if answer.body["_shards"]["failed"]:
            raise Unavailable(f"{self._session.where}: a shard of {alias} did not answer")
        hits: list[Mapping[str, Any]] = answer.body["hits"]["hits"]
        return hits


async def create_index(session: OpenSearchSession, base: str, alias: str) -> None:
    """Make an index with its alias if it is absent. PreconditionFailed for one of another mapping."""
    answer = await session.call(
        "PUT", f"/{index_of(alias)}", creation(base, alias), write=True, allow=(400,), timeout_s=SCHEMA_S
    )
    if answer.status == 400:
        kind = type_of(answer.body)
        if kind != "resource_already_exists_exception":
            raise PreconditionFailed(
                f"{session.where} does not make the index {index_of(alias)}: {kind}",
                hint=f"give this backend another prefix, or remove what is named {alias}"
                if kind == "invalid_alias_name_exception"
                else "",
            )
        await check_index(session, base, alias)


async def check_index(session: OpenSearchSession, base: str, alias: str) -> None:
    """PreconditionFailed for an index of another mapping, SchemaBehind for one that is not there."""
    answer = await session.call("GET", f"/{alias}/_mapping", write=False, allow=(404,))
    if answer.status == 404:
        raise SchemaBehind(f"{session.where} has no index {alias}", hint="datalayer schema upgrade")
    for name, found in answer.body.items():
        why = difference(base, found["mappings"])
        if why is not None:
            raise PreconditionFailed(
                f"the mapping of the index {name} of {session.where} {why}",
                hint="give this backend another prefix, or build the index anew",
            )
