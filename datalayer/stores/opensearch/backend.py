"""One configured cluster: its search indexes, and what it says of itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import ConfigurationError, LostLease, PreconditionFailed, SchemaBehind, Unavailable
from datalayer.schemas.opensearch import alias_of
from datalayer.stores.base import MetaRow
from datalayer.stores.opensearch.search import OpenSearchSearch, check_index, create_index
from datalayer.stores.opensearch.session import OpenSearchSession
from datalayer.stores.opensearch.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datalayer.clock import Clock, Deadline
    from datalayer.settings import BackendUrl
    from datalayer.stores.base import AuthorityClass, Token

OLDEST_SERVER: Final = 2
RACES_MAX: Final = 50
IN_FLIGHT_MAX: Final = 32
_EMPTY: Final[dict[str, Any]] = {}


class OpenSearchBackend:
    """An OpenSearch cluster, or the part of it under one prefix of index names."""

    product: str = "opensearch"
    authority_class: AuthorityClass = "last_writer"

    def __init__(self, name: str, url: BackendUrl, *, in_flight_max: int) -> None:
        self.name = name
        target = Target.of(name, url)
        self._prefix = target.prefix
        self._state = alias_of(target.prefix, "state")
        self._session = OpenSearchSession(name, target, in_flight_max=in_flight_max)
        self._stores: dict[int, OpenSearchSearch] = {}

    async def open(self) -> None:
        answer = await self._session.call("GET", "/", write=False)
        version = answer.body.get("version", {}) if isinstance(answer.body, dict) else {}
        if version.get("distribution") != "opensearch":
            raise PreconditionFailed(f"{self._session.where} is no OpenSearch")
        number = str(version.get("number", "0"))
        if int(number.partition(".")[0]) < OLDEST_SERVER:
            raise PreconditionFailed(f"{self._session.where} is version {number}; {OLDEST_SERVER}.0 or later is needed")

    async def close(self) -> None:
        await self._session.close()

    async def ping(self, deadline: Deadline) -> None:
        await self._session.call("GET", "/", write=False, deadline=deadline)

    def refuses(self, domain: str) -> str | None:
        return None if domain == "search" else f"opensearch holds search, not {domain}"

    def store(self, domain: str, attempt: int) -> OpenSearchSearch:
        reason = self.refuses(domain)
        if reason is not None:
            raise ConfigurationError(f"backend {self.name}: {reason}")
        if attempt not in self._stores:
            self._stores[attempt] = OpenSearchSearch(self._session, self._prefix, attempt)
        return self._stores[attempt]

    async def ensure_schema(self, *, create: bool) -> None:
        """The index of what the backend says of itself, and the first place of search, unless that was purged."""
        first = self.store("search", 0)
        if create:
            await create_index(self._session, "state", self._state)
            if not await self._purged():
                await first.create()
            return
        await check_index(self._session, "state", self._state)
        if not await self._purged():
            await first.check_shape()

    async def _purged(self) -> bool:
        row = (await self.read_meta()).get(("search", 0))
        return row is not None and row.role == "retired"

    # --- what the cluster says of itself ---

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        content, _ = await self._read("meta")
        rows = [MetaRow(**row) for row in content.values()]
        return {(row.domain, row.attempt): row for row in rows}

    async def write_meta(self, row: MetaRow) -> None:
        def change(content: dict[str, Any]) -> dict[str, Any] | None:
            key = f"{row.domain}/{row.attempt}"
            stored = content.get(key)
            if stored is not None and stored["epoch"] > row.epoch:
                return None
            return content | {key: asdict(row)}

        await self._change("meta", change)

    async def raise_token(self, token: Token) -> None:
        def change(content: dict[str, Any]) -> dict[str, Any]:
            if content.get(token.domain, _EMPTY).get("value", 0) > token.value:
                raise LostLease(f"{self._session.where} has seen a newer coordinator of {token.domain}")
            mine = {"migration": token.migration, "attempt": token.attempt, "value": token.value}
            return content | {token.domain: mine}

        await self._change("token", change)

    async def _read(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """A document of the state, and the condition under which it is still this one."""
        answer = await self._session.call("GET", f"/{self._state}/_doc/{name}", write=False, allow=(404,))
        if answer.status == 404:
            if "error" in (answer.body or _EMPTY):
                raise SchemaBehind(f"{self._session.where} has no index {self._state}", hint="datalayer schema upgrade")
            return {}, {"op_type": "create"}
        body = answer.body
        return body["_source"]["content"], {"if_seq_no": body["_seq_no"], "if_primary_term": body["_primary_term"]}

    async def _change(self, name: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Replace a document of the state while nobody else does."""
        for _ in range(RACES_MAX):
            content, condition = await self._read(name)
            changed = change(content)
            if changed is None:
                return
            params = condition | {"require_alias": "true"}
            answer = await self._session.call(
                "PUT", f"/{self._state}/_doc/{name}", {"content": changed}, write=True, params=params, allow=(409,)
            )
            if answer.status != 409:
                return
        raise Unavailable(f"{self._session.where}: its state kept changing under this write")


def create_backend(name: str, url: BackendUrl, *, pool_max: int, clock: Clock) -> OpenSearchBackend:
    """The backend of a URL, not yet opened: at most ``pool_max`` requests in flight, 32 at most."""
    del clock  # nothing here asks what time it is
    return OpenSearchBackend(name, url, in_flight_max=min(pool_max, IN_FLIGHT_MAX))
