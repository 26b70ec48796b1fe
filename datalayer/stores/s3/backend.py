"""A bucket as a backend of media: boto3 in a bounded number of threads, its own retries off."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import boto3
from botocore.config import Config

from datalayer.errors import Closed, ConfigurationError, DeadlineExceeded, NotFound
from datalayer.stores.objects import ObjectMeta
from datalayer.stores.s3.faults import no_bucket, no_s3, told
from datalayer.stores.s3.store import S3Objects
from datalayer.stores.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datalayer.clock import Clock, Deadline
    from datalayer.settings import BackendUrl
    from datalayer.stores.base import AuthorityClass, MetaRow, Token

R = TypeVar("R")
CONNECT_S: Final = 5
READ_S: Final = 20
THREADS_MAX: Final = 16
LARGE_AT_ONCE: Final = 2
"""Uploads in parts at once: each holds one part in memory."""
REGION: Final = "us-east-1"
WRITES: Final = frozenset({"put_object", "delete_object", "complete_multipart_upload"})
"""What somebody sees afterwards; parts are seen by nobody."""
_NOTES: Final = "_datalayer/"


class S3Backend:
    """One bucket, or a prefix of one. AWS S3, MinIO, versitygw and others that speak the protocol."""

    product: str = "s3"
    authority_class: AuthorityClass = "transactional"

    def __init__(self, name: str, url: BackendUrl, *, threads: int, clock: Clock, cdn_url: str | None = None) -> None:
        self.name = name
        self.bucket = url.database
        self.cdn_url = cdn_url
        self.clock = clock
        prefix = str(url.options.get("prefix", "")).strip("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._url = url
        self._connections = threads
        self._threads = Threads(name, threads)
        self._client: Any = None
        self._meta = ObjectMeta(_Notes(self), f"backend {name!r}")

    async def open(self) -> None:
        self._threads.open()
        if self._client is None:
            self._client = await self.run("the login", self._connect)
        await self._ask()

    def _connect(self) -> Any:
        options = self._url.options
        endpoint = options.get("endpoint")
        session = boto3.session.Session(
            aws_access_key_id=self._url.user,
            aws_secret_access_key=self._url.password,
            aws_session_token=options.get("session_token"),
            region_name=options.get("region"),
            profile_name=options.get("profile"),
        )
        path_style = options.get("path_style", endpoint is not None)
        config = Config(
            signature_version="s3v4",
            connect_timeout=CONNECT_S,
            read_timeout=READ_S,
            max_pool_connections=self._connections,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if path_style else "auto"},
        )
        region = session.region_name or REGION
        return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
        self._threads.close()

    async def ping(self, deadline: Deadline) -> None:
        if deadline.passed:
            raise DeadlineExceeded
        await self._ask()

    async def _ask(self) -> None:
        """Whether the bucket answers this login: a listing of one, whose refusals name their reason (HEAD has no body)."""
        try:
            found = await self.call("list_objects_v2", "a listing", Prefix=self.prefix, MaxKeys=1)
        except NotFound as error:
            raise no_bucket(self.bucket) from error
        if "Name" not in found:  # a page of some other server, read as an empty listing
            raise no_s3(self.bucket)

    def refuses(self, domain: str) -> str | None:
        return None if domain == "media" else f"a bucket holds media, not {domain}"

    def store(self, domain: str, attempt: int) -> S3Objects:
        if self.refuses(domain):
            raise ConfigurationError(f"backend {self.name}: {self.refuses(domain)}")
        return S3Objects(self, attempt)

    async def ensure_schema(self, *, create: bool) -> None:
        """A bucket has no schema."""

    async def read_meta(self) -> Mapping[tuple[str, int], MetaRow]:
        return await self._meta.read_meta()

    async def write_meta(self, row: MetaRow) -> None:
        await self._meta.write_meta(row)

    async def raise_token(self, token: Token) -> None:
        await self._meta.raise_token(token)

    @property
    def client(self) -> Any:
        """The boto3 client; Closed."""
        if self._client is None:
            raise Closed
        return self._client

    async def call(self, operation: str, what: str, **parameters: Any) -> Any:
        """One call about this bucket, in a thread. OutcomeUnknown for one of ``WRITES`` whose answer was lost."""
        function = partial(getattr(self.client, operation), Bucket=self.bucket, **parameters)
        with told(self.bucket, what, write=operation in WRITES):
            return await self._threads.run(function)

    async def run(self, what: str, function: Callable[..., R], *args: Any) -> R:
        """A blocking call in a thread that changes nothing; its errors as the library's."""
        with told(self.bucket, what):
            return await self._threads.run(function, *args)


class _Notes:
    """Empty objects under a prefix of their own."""

    def __init__(self, backend: S3Backend) -> None:
        self._backend = backend
        self._prefix = backend.prefix + _NOTES

    async def notes(self) -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            page = await self._backend.call(
                "list_objects_v2", "a listing", Prefix=self._prefix, StartAfter=after or self._prefix
            )
            keys = [item["Key"] for item in page.get("Contents", ())]
            found += [key.removeprefix(self._prefix) for key in keys]
            if not page.get("IsTruncated") or not keys:
                return sorted(name for name in found if name)
            after = keys[-1]

    async def note(self, name: str) -> None:
        await self._backend.call("put_object", "a note", Key=self._prefix + name, Body=b"")

    async def unnote(self, name: str) -> None:
        await self._backend.call("delete_object", "a note", Key=self._prefix + name)


def create_backend(name: str, url: Any, *, pool_max: int, clock: Clock, cdn_url: str | None = None) -> S3Backend:
    """The backend of an ``s3://`` URL; ``pool_max`` bounds its threads and connections."""
    threads = max(1, min(THREADS_MAX, pool_max))
    return S3Backend(name, url, threads=threads, clock=clock, cdn_url=cdn_url)
