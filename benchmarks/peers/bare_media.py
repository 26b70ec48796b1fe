"""boto3 alone: what a careful program does to store bytes and to read them, on a thread, with and without a hash of them."""

import asyncio
import hashlib
import io
from typing import Any

import boto3
from botocore.config import Config

from datalayer.settings import BackendUrl

LARGE = 8 << 20
"""Above this boto3's own transfers are used: parts of 8 MiB, ten threads, as it is set up by default."""
CONNECTIONS = 16


class BareMedia:
    """Objects of one bucket under a prefix of their own."""

    def __init__(self, url: BackendUrl, prefix: str, *, hashed: bool) -> None:
        """``hashed``: sha-256 of what is stored, compared with that of what is read."""
        self._bucket = url.database
        self._prefix = prefix
        self._hashed = hashed
        self._client = boto3.client(
            "s3",
            endpoint_url=str(url.options["endpoint"]),
            aws_access_key_id=url.user,
            aws_secret_access_key=url.password,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                max_pool_connections=CONNECTIONS,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    async def put(self, name: str, data: bytes) -> str:
        """The hash, where there is to be one."""
        return await asyncio.to_thread(self._put, name, data)

    async def get(self, name: str, digest: str, size: int) -> bytes:
        return await asyncio.to_thread(self._get, name, digest, size)

    async def clear(self) -> None:
        await asyncio.to_thread(self._clear)

    def close(self) -> None:
        self._client.close()

    def _put(self, name: str, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest() if self._hashed else ""
        key = self._prefix + name
        if len(data) > LARGE:
            self._client.upload_fileobj(io.BytesIO(data), self._bucket, key, {"ContentType": "image/png"})
        else:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType="image/png", IfNoneMatch="*")
        return digest

    def _get(self, name: str, digest: str, size: int) -> bytes:
        key = self._prefix + name
        if size > LARGE:
            into = io.BytesIO()
            self._client.download_fileobj(self._bucket, key, into)
            data = into.getvalue()
        else:
            data = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        assert not self._hashed or hashlib.sha256(data).hexdigest() == digest, "the bytes are others"
        assert len(data) == size
        return bytes(data)

    def _clear(self) -> None:
        while True:
            page: Any = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix)
            for item in page.get("Contents", ()):
                self._client.delete_object(Bucket=self._bucket, Key=item["Key"])
            if not page.get("IsTruncated"):
                return
