"""Tables of one prefix as a backend of presence and typing: boto3 in a bounded number of threads, its own retries off."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config

from datalayer.domains.soft import SOFT_DOMAINS
from datalayer.errors import (
    Closed,
    ConfigurationError,
    DeadlineExceeded,
    LostLease,
    OutcomeUnknown,
    SchemaBehind,
    StaleRoute,
    Unavailable,
)
from datalayer.stores.base import MetaRow
from datalayer.stores.dynamodb.faults import ConditionFailed, InUse, Invalid, told
from datalayer.stores.dynamodb.soft import DynamoSoft

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.clock import Clock, Deadline
    from datalayer.settings import BackendUrl
    from datalayer.stores.base import AuthorityClass, Token

CONNECT_S: Final = 2
READ_S: Final = 5
CALL_S: Final = 10.0
"""For calls that carry no deadline."""
THREADS_MAX: Final = 16
TABLE_S: Final = 60.0
POLL_S: Final = 0.1
REGION: Final = "us-east-1"


class DynamoBackend:
    """DynamoDB, or what speaks its protocol at an endpoint."""

    product: str = "dynamodb"
    authority_class: AuthorityClass = "last_writer"

    def __init__(self, name: str, url: BackendUrl, *, threads: int, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self._url = url
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._client: Any = None

    async def open(self) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=f"datalayer-{self.name}")
        if self._client is None:
            try:
                self._client = await self._thread(self._connect, self._where("the login"), CALL_S, write=False)
            except ValueError as error:
                raise ConfigurationError(f"backend {self.name}: its url names no endpoint") from error
        await self.call("list_tables", "", Limit=1)

    def _connect(self) -> Any:
        options = self._url.options
        session = boto3.session.Session(
            aws_access_key_id=self._url.user,
            aws_secret_access_key=self._url.password,
            aws_session_token=options.get("session_token"),
            region_name=options.get("region"),
            profile_name=options.get("profile"),
        )
        config = Config(
            connect_timeout=CONNECT_S,
            read_timeout=READ_S,
            max_pool_connections=self._threads,
            retries={"total_max_attempts": 1, "mode": "standard"},
        )
        region = session.region_name or REGION
        return session.client("dynamodb", endpoint_url=options.get("endpoint"), region_name=region, config=config)

    async def close(self) -> None:
        client, self._client = self._client, None
        pool, self._pool = self._pool, None
        if client is not None:
            client.close()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    async def ping(self, deadline: Deadline) -> None:
        await self.call("list_tables", "", deadline=deadline, Limit=1)

    def refuses(self, domain: str) -> str | None:
        return None if domain in SOFT_DOMAINS else f"dynamodb holds presence and typing, not {domain}"

    def store(self, domain: str, attempt: int) -> DynamoSoft:
        if self.refuses(domain):
            raise ConfigurationError(f"backend {self.name}: {self.refuses(domain)}")
        table = self._table(domain) if attempt == 0 else self._table(f"{domain}_{attempt}")
        return DynamoSoft(self, domain, table)

    def _table(self, name: str) -> str:
        return f"{self._url.database}_{name}"

    def _where(self, table: str) -> str:
        return f"backend {self.name} (dynamodb{f', table {table}' if table else ''})"

    # --- schema ------------------------------------------------------------------------------------------------------

    async def ensure_schema(self, *, create: bool) -> None:
        """The tables of both domains and the one of notes; those of a domain that was purged may be missing."""
        notes = self._table("datalayer")
        if create:
            await self.make_table(notes, "k", "S")
        missing = [] if await self.has_table(notes) else [notes]
        gone: set[str] = set()
        if not missing:
            gone = {
                d for (d, attempt), row in (await self.read_meta()).items() if not attempt and row.role == "retired"
            }
        for domain in SOFT_DOMAINS:
            if domain in gone:
                continue
            if create:
                await self.store(domain, 0).create()
            elif not await self.has_table(self._table(domain)):
                missing.append(self._table(domain))
        if missing:
            raise SchemaBehind(
                f"{self._where('')} has no table {', '.join(missing)}", hint=f"datalayer schema upgrade {self.name}"
            )

    async def has_table(self, table: str) -> bool:
        """Whether a table is there and may be used."""
        try:
            found = await self.call("describe_table", table)
        except StaleRoute:
            return False
        return bool(found["Table"]["TableStatus"] in {"ACTIVE", "UPDATING"})

    async def make_table(self, table: str, key: str, kind: str, *, ttl: str | None = None) -> None:
        """Make a table if absent, and wait until it may be used. PreconditionFailed where the rights for it are missing."""
        with suppress(InUse):  # it is in the making
            if not await self.has_table(table):
                await self.call(
                    "create_table",
                    table,
                    write=True,
                    AttributeDefinitions=[{"AttributeName": key, "AttributeType": kind}],
                    KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
                    BillingMode="PAY_PER_REQUEST",
                )
        until = self.clock.monotonic() + TABLE_S
        while not await self.has_table(table):
            if self.clock.monotonic() >= until:
                raise Unavailable(f"{self._where(table)} is not ready after {TABLE_S:g} s")
            await asyncio.sleep(POLL_S)
        if ttl is not None:
            with suppress(Invalid):  # it is set already
                await self.call(
                    "update_time_to_live",
                    table,
                    write=True,
                    TimeToLiveSpecification={"Enabled": True, "AttributeName": ttl},
                )

    # --- what it says of itself --------------------------------------------------------------------------------------

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        rows: dict[tuple[str, int], MetaRow] = {}
        more: dict[str, Any] = {}
        while True:
            try:
                page = await self.call("scan", self._table("datalayer"), ConsistentRead=True, **more)
            except StaleRoute as error:
                raise SchemaBehind(error.message, hint=f"datalayer schema upgrade {self.name}") from error
            for item in page["Items"]:
                if item["k"]["S"].startswith("meta/"):
                    row = MetaRow(**json.loads(item["d"]["S"]))
                    rows[row.domain, row.attempt] = row
            if "LastEvaluatedKey" not in page:
                return rows
            more = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    async def write_meta(self, row: MetaRow) -> None:
        fields = ("domain", "attempt", "deployment", "role", "epoch")
        text = json.dumps({name: getattr(row, name) for name in fields})
        with suppress(ConditionFailed):
            await self._note(f"meta/{row.domain}/{row.attempt}", row.epoch, text)

    async def raise_token(self, token: Token) -> None:
        try:
            await self._note(f"token/{token.domain}", token.value, token.migration)
        except ConditionFailed:
            raise LostLease(f"{self._where('')} has seen a newer coordinator of {token.domain}") from None

    async def _note(self, key: str, number: int, text: str) -> None:
        await self.call(
            "put_item",
            self._table("datalayer"),
            write=True,
            Item={"k": {"S": key}, "n": {"N": str(number)}, "d": {"S": text}},
            ConditionExpression="attribute_not_exists(k) OR n <= :n",
            ExpressionAttributeValues={":n": {"N": str(number)}},
        )

    # --- calls -------------------------------------------------------------------------------------------------------

    async def call(
        self, operation: str, table: str, *, write: bool = False, deadline: Deadline | None = None, **parameters: Any
    ) -> Any:
        """One call about a table (none: about all), in a thread."""
        if self._client is None:
            raise Closed
        seconds = CALL_S if deadline is None else deadline.remaining()
        if seconds <= 0:
            raise DeadlineExceeded
        if table and operation != "batch_get_item":
            parameters["TableName"] = table
        return await self._thread(
            partial(getattr(self._client, operation), **parameters), self._where(table), seconds, write=write
        )

    async def _thread(self, function: Any, where: str, seconds: float, *, write: bool) -> Any:
        """A blocking call in a thread; one that is not waited for any longer ends by its own timeouts."""
        if self._pool is None:
            raise Closed

        def run() -> Any:
            with told(where, write=write):
                return function()

        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, run)
        except TimeoutError:
            if write:
                raise OutcomeUnknown(f"{where} did not confirm the write in time") from None
            raise DeadlineExceeded(f"{where} did not answer in time") from None


def create_backend(name: str, url: BackendUrl, *, pool_max: int, clock: Clock) -> DynamoBackend:
    """The backend of a URL, not yet opened: at most ``pool_max`` calls in flight, 16 at most."""
    return DynamoBackend(name, url, threads=min(pool_max, THREADS_MAX), clock=clock)
